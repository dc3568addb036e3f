"""The libraries and habits of the field as ways to keep an array: what sonde's store is measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import zarr
from numpy.typing import NDArray

from sonde.store import as_torch, bfloat16

from .store_peers import (
    FLOORS,
    SAMPLES,
    SITE,
    Array,
    Mapped,
    Peer,
    Shape,
    Sonde,
    fsync,
    new_folder,
    tensor_of,
)


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
