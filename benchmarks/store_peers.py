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
from numpy.typing import NDArray

from sonde.store import ArraySpec, Schema, Store, bfloat16

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


FLOORS = (RawFiles("raw files, 1 thread", 1), RawFiles(f"raw files, {THREADS} threads", THREADS))
