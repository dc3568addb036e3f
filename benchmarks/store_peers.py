"""Ways to keep an array of activations ``[layer, sample, hidden]`` on a disk, sonde's among them.

Every peer is given the same buffers, one per range of 1,024 samples, C-contiguous bfloat16 ``[layer, 1024, hidden]``,
and has kept a range before it takes the next. A durable write ends each range by fsync of every file and folder that
it touched, on as many threads as the store has, unless the peer waits for the disk by itself. Peers whose dtypes lack
bfloat16 keep its bits as uint16.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, TypeVar

import numpy as np
import zarr
from numpy.typing import NDArray

from sonde.store import ArraySpec, Schema, Store, as_torch, bfloat16

SAMPLES = 1024
"""Of one range, and of one chunk."""

THREADS = 4
"""That `RangeWriter` writes on, and `Layer` reads on."""

SITE, TOKENS = "resid_post", "last"
CHUNKS = f"activations/{SITE}/{TOKENS}"

T = TypeVar("T")
Shape = tuple[int, int, int]
Array = NDArray[Any]
Mapped: TypeAlias = "np.memmap[Any, Any]"


def fsync(paths: Iterable[Path]) -> None:
    """Wait until files, or the names in folders, are on the disk."""

    def wait(path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    on_threads(wait, list(paths), THREADS)


def new_folder(place: Path, *, durable: bool) -> Path:
    """Make a folder, and those above it that are missing."""
    missing = [path for path in (place, *place.parents) if not path.exists()]
    place.mkdir(parents=True)
    if durable:
        fsync([path.parent for path in missing])
    return place


def write_file(path: Path, parts: Sequence[Array], *, durable: bool) -> None:
    """Write a new file from at most 1,024 C-contiguous arrays, one behind the other."""
    left = [x.reshape(-1).view(np.uint8).data for x in parts]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
        if durable:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_file(path: Path, out: Array) -> None:
    """Fill a C-contiguous array from the beginning of a file."""
    left = out.reshape(-1).view(np.uint8).data
    with path.open("rb", buffering=0) as file:
        while left:
            left = left[file.readinto(left) or len(left) :]


def tensor_of(path: Path) -> Any:
    """Map the one tensor of a safetensors file into memory."""
    from safetensors import safe_open

    file: Any = safe_open(path, "pt")
    return file.get_slice(SITE)


def on_threads(run: Callable[[T], object], places: Sequence[T], threads: int) -> None:
    """Call ``run`` for every place, on the standard library's pool where there is more than one thread."""
    if threads == 1 or len(places) == 1:
        for place in places:
            run(place)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, places))


def shape_of(buffers: Sequence[Array]) -> Shape:
    """(layers, samples, hidden) of all ranges."""
    n_layers, size, hidden = buffers[0].shape
    return n_layers, size * len(buffers), hidden


class Peer(ABC):
    """One way to keep the array.

    Attributes
    ----------
    name
        In the table.
    checks
        What finds a damaged byte on reading.
    slow
        Whether it is to be timed on a few samples.
    reads_into
        Whether `layer` reads into memory that it is given.
    """

    name: str
    checks: ClassVar[str] = "nothing"
    slow: ClassVar[bool] = False
    reads_into: ClassVar[bool] = False

    @abstractmethod
    def create(self, place: Path, shape: Shape, *, durable: bool) -> Any:
        """Make an empty array at ``place``, where nothing is yet."""

    @abstractmethod
    def write(self, target: Any, buffers: Sequence[Array], *, durable: bool) -> None:
        """Write all ranges to what `create` made."""

    @abstractmethod
    def open(self, place: Path, shape: Shape) -> Any:
        """Return whatever the peer reads from; ``shape`` may have fewer samples than were written."""

    @abstractmethod
    def layer(self, source: Any, layer: int, out: Array | None = None) -> Array:
        """Read one layer, 2-byte ``[sample, hidden]``, into ``out`` where `reads_into`."""

    @abstractmethod
    def rows(self, source: Any, layer: int, rows: NDArray[np.int64]) -> Array:
        """Read some samples of one layer, 2-byte ``[row, hidden]``."""


@dataclass(frozen=True)
class RawFiles(Peer):
    """A file per chunk without a checksum: the floor. It reads the store's own chunk files, without their crc32c."""

    name: str
    threads: int
    reads_into: ClassVar[bool] = True

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Path:
        return new_folder(place / CHUNKS, durable=durable)

    def write(self, target: Path, buffers: Sequence[Array], *, durable: bool) -> None:
        for index, buffer in enumerate(buffers):

            def keep(layer: int, buffer: Array = buffer, index: int = index) -> None:
                write_file(target / f"c.{layer}.{index}.0", [buffer[layer]], durable=durable)

            on_threads(keep, range(len(buffer)), self.threads)
            if durable:
                fsync([target])

    def open(self, place: Path, shape: Shape) -> tuple[Path, Shape]:
        return place / CHUNKS, shape

    def layer(self, source: tuple[Path, Shape], layer: int, out: Array | None = None) -> Array:
        folder, (_, n_samples, hidden) = source
        x = np.empty((n_samples, hidden), dtype=bfloat16) if out is None else out

        def read(index: int) -> None:
            read_file(folder / f"c.{layer}.{index}.0", x[index * SAMPLES : (index + 1) * SAMPLES])

        on_threads(read, range(n_samples // SAMPLES), self.threads)
        return x

    def rows(self, source: tuple[Path, Shape], layer: int, rows: NDArray[np.int64]) -> Array:
        folder, (_, n_samples, hidden) = source
        out = np.empty((len(rows), hidden), dtype=bfloat16)
        files = [os.open(folder / f"c.{layer}.{index}.0", os.O_RDONLY) for index in range(n_samples // SAMPLES)]
        for row, x in zip(rows.tolist(), out.view(np.uint8), strict=True):
            os.preadv(files[row // SAMPLES], [x.data], row % SAMPLES * x.nbytes)
        for descriptor in files:
            os.close(descriptor)
        return out


class Sonde(Peer):
    """The store of this project: crc32c of every chunk, a commit record for every range."""

    name = "sonde"
    checks = "crc32c"
    reads_into = True

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Store:
        n_layers, n_samples, hidden = shape
        spec = ArraySpec(SITE, TOKENS, tuple(range(n_layers)), hidden)
        schema = Schema((spec,), n_samples, SAMPLES, {"name": "benchmark"}, {})
        ids = [str(i) for i in range(n_samples)]
        return Store.create(place, schema, {"id": ids, "group": ids}, fsync=durable)

    def write(self, target: Store, buffers: Sequence[Array], *, durable: bool) -> None:
        writer = target.writer()
        for range_, buffer in zip(target.ranges, buffers, strict=True):
            writer.commit(range_, {f"{SITE}/{TOKENS}": buffer})

    def open(self, place: Path, shape: Shape) -> Store:
        return Store.open(place)

    def layer(self, source: Store, layer: int, out: Array | None = None) -> Array:
        return source.layer(SITE, TOKENS, layer).numpy(out)

    def rows(self, source: Store, layer: int, rows: NDArray[np.int64]) -> Array:
        return source.layer(SITE, TOKENS, layer).rows(rows)


@dataclass(frozen=True)
class ZarrPython(Peer):
    """zarr-python in chunks as the store's, with its own or another codec pipeline and the compressors it is given."""

    name: str
    compressors: Any
    pipeline: str = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def create(self, place: Path, shape: Shape, *, durable: bool) -> tuple[Path, Any]:
        with zarr.config.set({"codec_pipeline.path": self.pipeline}):
            array = zarr.create_array(
                store=str(place),
                shape=shape,
                chunks=(1, SAMPLES, shape[2]),
                dtype="uint16",
                compressors=self.compressors,
            )
        if durable:
            fsync([place / "zarr.json", place, place.parent])
        return place, array

    def write(self, target: tuple[Path, Any], buffers: Sequence[Array], *, durable: bool) -> None:
        place, array = target
        for index, buffer in enumerate(buffers):
            array[:, index * SAMPLES : (index + 1) * SAMPLES] = buffer.view(np.uint16)
            if durable:
                folders = [place / f"c/{layer}/{index}" for layer in range(len(buffer))]
                fsync([folder / "0" for folder in folders])
                fsync([*folders, *(folder.parent for folder in folders), place / "c", place])

    def open(self, place: Path, shape: Shape) -> Any:
        with zarr.config.set({"codec_pipeline.path": self.pipeline}):
            return zarr.open_array(str(place), mode="r")

    def layer(self, source: Any, layer: int, out: Array | None = None) -> Array:
        x: Array = source[layer]
        return x

    def rows(self, source: Any, layer: int, rows: NDArray[np.int64]) -> Array:
        x: Array = source.oindex[layer, rows]
        return x


class TensorStore(Peer):
    """TensorStore's zarr3 driver, uncompressed, in chunks as the store's; it waits for the disk by itself."""

    name = "TensorStore"
    reads_into = True

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Any:
        import tensorstore

        metadata = {
            "shape": shape,
            "data_type": "bfloat16",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, SAMPLES, shape[2]]}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        }
        spec = self._spec(place) | {"metadata": metadata, "create": True, "context": {"file_io_sync": durable}}
        return tensorstore.open(spec).result()

    def write(self, target: Any, buffers: Sequence[Array], *, durable: bool) -> None:
        for index, buffer in enumerate(buffers):
            target[:, index * SAMPLES : (index + 1) * SAMPLES].write(buffer).result()

    def open(self, place: Path, shape: Shape) -> Any:
        import tensorstore

        return tensorstore.open(self._spec(place) | {"open": True}).result()

    def layer(self, source: Any, layer: int, out: Array | None = None) -> Array:
        import tensorstore

        if out is None:
            x: Array = source[layer].read().result()
            return x
        tensorstore.array(out).write(source[layer]).result()
        return out

    def rows(self, source: Any, layer: int, rows: NDArray[np.int64]) -> Array:
        x: Array = source[layer, rows].read().result()
        return x

    @staticmethod
    def _spec(place: Path) -> dict[str, Any]:
        return {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{place}/"}}


class Safetensors(Peer):
    """A safetensors file per range, mapped into memory to be read."""

    name = "safetensors shards"

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Path:
        return new_folder(place, durable=durable)

    def write(self, target: Path, buffers: Sequence[Array], *, durable: bool) -> None:
        from safetensors.torch import save_file

        for index, buffer in enumerate(buffers):
            shard = target / f"{index}.safetensors"
            save_file({SITE: as_torch(buffer)}, shard)
            if durable:
                fsync([shard])
                fsync([target])

    def open(self, place: Path, shape: Shape) -> tuple[list[Any], Shape]:
        return [tensor_of(place / f"{index}.safetensors") for index in range(shape[1] // SAMPLES)], shape

    def layer(self, source: tuple[list[Any], Shape], layer: int, out: Array | None = None) -> Array:
        shards, (_, n_samples, hidden) = source
        x = np.empty((n_samples, hidden), dtype=bfloat16)
        for index, shard in enumerate(shards):
            as_torch(x[index * SAMPLES : (index + 1) * SAMPLES]).copy_(shard[layer])
        return x

    def rows(self, source: tuple[list[Any], Shape], layer: int, rows: NDArray[np.int64]) -> Array:
        shards, (_, _, hidden) = source
        out = np.empty((len(rows), hidden), dtype=bfloat16)
        tensor = as_torch(out)
        for place, row in enumerate(rows.tolist()):
            at = row % SAMPLES
            tensor[place] = shards[row // SAMPLES][layer, at : at + 1][0]
        return out


class Memmap(Peer):
    """One file that `np.memmap` maps; ``flush`` after each range."""

    name = "np.memmap"
    reads_into = True

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Mapped:
        mapped: Mapped = np.memmap(place, np.uint16, "w+", shape=shape)
        if durable:
            fsync([place, place.parent])
        return mapped

    def write(self, target: Mapped, buffers: Sequence[Array], *, durable: bool) -> None:
        for index, buffer in enumerate(buffers):
            target[:, index * SAMPLES : (index + 1) * SAMPLES] = buffer.view(np.uint16)
            if durable:
                target.flush()

    def open(self, place: Path, shape: Shape) -> Array:
        return np.memmap(place, np.uint16, "r", shape=shape)

    def layer(self, source: Array, layer: int, out: Array | None = None) -> Array:
        if out is None:
            return np.array(source[layer])
        np.copyto(out.view(np.uint16), source[layer])
        return out

    def rows(self, source: Array, layer: int, rows: NDArray[np.int64]) -> Array:
        return np.asarray(source[layer][rows])


@dataclass(frozen=True)
class FilePerSample(Peer):
    """A file ``[layer, hidden]`` per sample, as the scripts of the field have them; one sample after the other."""

    name: str
    save: Callable[[Path, Array], None]
    load: Callable[[Path], Array]
    slow: ClassVar[bool] = True

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Path:
        return new_folder(place, durable=durable)

    def write(self, target: Path, buffers: Sequence[Array], *, durable: bool) -> None:
        for index, buffer in enumerate(buffers):
            paths = [target / str(index * SAMPLES + i) for i in range(buffer.shape[1])]
            for i, path in enumerate(paths):
                self.save(path, buffer[:, i])
            if durable:
                fsync(paths)
                fsync([target])

    def open(self, place: Path, shape: Shape) -> tuple[Path, Shape]:
        return place, shape

    def layer(self, source: tuple[Path, Shape], layer: int, out: Array | None = None) -> Array:
        _, (_, n_samples, _) = source
        return self.rows(source, layer, np.arange(n_samples))

    def rows(self, source: tuple[Path, Shape], layer: int, rows: NDArray[np.int64]) -> Array:
        place, (_, _, hidden) = source
        out = np.empty((len(rows), hidden), dtype=np.uint16)
        for x, row in zip(out, rows.tolist(), strict=True):
            x[:] = self.load(place / str(row))[layer]
        return out


def _save_npy(path: Path, x: Array) -> None:
    with path.open("wb") as file:
        np.save(file, x.view(np.uint16))


def _load_npy(path: Path) -> Array:
    x: Array = np.load(path)
    return x


def _save_torch(path: Path, x: Array) -> None:
    import torch

    torch.save(as_torch(np.ascontiguousarray(x)), path)


def _load_torch(path: Path) -> Array:
    import torch

    x: Array = torch.load(path, weights_only=True).view(torch.uint16).numpy()
    return x


FLOORS = (RawFiles("raw files, 1 thread", 1), RawFiles(f"raw files, {THREADS} threads", THREADS))
PEERS: tuple[Peer, ...] = (
    *FLOORS,
    Sonde(),
    ZarrPython("zarr-python", "auto"),
    ZarrPython("zarr-python, uncompressed", None),
    ZarrPython("zarrs, uncompressed", None, "zarrs.ZarrsCodecPipeline"),
    TensorStore(),
    Safetensors(),
    Memmap(),
    FilePerSample(".npy per sample", _save_npy, _load_npy),
    FilePerSample("torch.save per sample", _save_torch, _load_torch),
)
