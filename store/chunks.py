"""Chunks on the disk: the array's bytes, compressed or not, followed by their crc32c, as Zarr's codecs lay them out.

Whole chunks are written and read here straight from and into the arrays' memory; every Zarr v3 reader opens the same
files.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np
from numpy.typing import DTypeLike, NDArray

from sonde.errors import CorruptStoreError, StoreError

from .codecs import Codec, decode, encode
from .location import Location

CRC_BYTES = 4
# Read or written while it is in the processor's cache, a block costs its checksum next to nothing.
_BLOCK_BYTES = 2**19


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a commit says of one chunk: its key, its length in bytes and the crc32c of its data (hex)."""

    key: str
    nbytes: int
    crc32c: str


def room(shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Make an array to be read into.

    Raises
    ------
    StoreError
        If there is not so much memory.
    """
    try:
        return np.empty(shape, dtype=dtype)
    except (MemoryError, ValueError) as error:
        raise StoreError(f"{error}: read ranges or rows, one after the other") from None


def write_chunk(
    location: Location,
    key: str,
    x: NDArray[Any],
    codec: Codec | None = None,
    *,
    look: Callable[[NDArray[Any]], object] = lambda values: None,
) -> Chunk:
    """Write one chunk, in C order, and wait until it is on the disk.

    ``look`` is shown all values, one-dimensional and in pieces that are in the processor's cache by then or after.
    """
    checksum, x = _Checksum(), np.ascontiguousarray(x)
    if codec is not None:
        look(x.reshape(-1))
    data = _bytes_of(x) if codec is None else np.frombuffer(encode(codec, x), dtype=np.uint8)

    def parts() -> Iterator[NDArray[np.uint8] | bytes]:
        for block in _blocks(data):
            if codec is None:
                look(block.view(x.dtype))
            checksum.update(block)
            yield block
        yield checksum.digest()

    location.write(key, parts())
    return Chunk(key, data.nbytes + CRC_BYTES, checksum.digest().hex())


def read_chunk(location: Location, chunk: Chunk, out: NDArray[Any], what: str, codec: Codec | None = None) -> None:
    """Read one whole chunk into the C-contiguous ``out`` and check it against its commit.

    Raises
    ------
    CorruptStoreError
        If the chunk is missing, of another length, damaged, or not the one that was committed; ``what`` names it.
    """
    assert out.flags.c_contiguous
    assert codec is not None or chunk.nbytes == out.nbytes + CRC_BYTES
    data = _bytes_of(out) if codec is None else room(chunk.nbytes - CRC_BYTES, np.uint8)
    _read_blocks(location, chunk, _blocks(data), what)
    if codec is not None:
        try:
            decode(codec, data, out)
        except CorruptStoreError as error:
            raise CorruptStoreError(f"{what} is damaged: {error} ({location}/{chunk.key}); {_REMEDY}") from error


def check_chunk(location: Location, chunk: Chunk, what: str) -> None:
    """Read one chunk, a block at a time, and check it against its commit; raises as `read_chunk`."""
    n = chunk.nbytes - CRC_BYTES
    block = np.empty(min(n, _BLOCK_BYTES), dtype=np.uint8)
    _read_blocks(location, chunk, (block[: n - start] for start in range(0, n, _BLOCK_BYTES)), what)


def copy_chunk(source: Location, chunk: Chunk, destination: Location, what: str) -> None:
    """Copy one chunk as it is and read the copy again; raises as `read_chunk`, for the source and for the copy."""
    data = np.empty(chunk.nbytes - CRC_BYTES, dtype=np.uint8)
    _read_blocks(source, chunk, _blocks(data), what)
    destination.write(chunk.key, [data, bytes.fromhex(chunk.crc32c)])
    check_chunk(destination, chunk, f"the copy of {what}")


def _read_blocks(location: Location, chunk: Chunk, blocks: Iterable[NDArray[np.uint8]], what: str) -> None:
    checksum, stored = _Checksum(), bytearray(CRC_BYTES)

    def buffers() -> Iterator[memoryview]:
        for block in blocks:
            yield block.data
            checksum.update(block)
        yield memoryview(stored)

    try:
        size = location.read_into(chunk.key, buffers())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CorruptStoreError(f"{what} is missing ({location}/{chunk.key}); {_REMEDY}") from None
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{what} is not to be trusted: {error}") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptStoreError(f"{what} cannot be read from the disk ({error}); {_REMEDY}") from error
    if size != chunk.nbytes:
        raise CorruptStoreError(
            f"{what} has {size} bytes where {chunk.nbytes} were committed ({location}/{chunk.key}); {_REMEDY}"
        )
    if checksum.digest() != stored:
        raise CorruptStoreError(f"{what} is damaged: its checksum does not match ({location}/{chunk.key}); {_REMEDY}")
    if stored.hex() != chunk.crc32c:
        raise CorruptStoreError(f"{what} is not the chunk that was committed ({location}/{chunk.key}); {_REMEDY}")


class _Checksum:
    """crc32c of blocks, one after the other."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, block: NDArray[np.uint8]) -> None:
        self._value = crc32c.crc32c(block.data, self._value)

    def digest(self) -> bytes:
        """The four bytes that Zarr's codec appends."""
        return self._value.to_bytes(CRC_BYTES, "little")


def _bytes_of(x: NDArray[Any]) -> NDArray[np.uint8]:
    return x.reshape(-1).view(np.uint8)


def _blocks(data: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (data[start : start + _BLOCK_BYTES] for start in range(0, len(data), _BLOCK_BYTES))


_REMEDY = "`sonde verify --repair` marks the range for `sonde extract --resume`"
