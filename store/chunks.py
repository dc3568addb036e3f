"""Chunks on the disk: the array's bytes followed by their crc32c, as Zarr's codecs ``bytes, crc32c`` lay them out.

Whole chunks are written and read here straight from and into the arrays' memory; every Zarr v3 reader opens the same
files.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from sonde.errors import CorruptStoreError

from .location import Directory

CRC_BYTES = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """What a commit says of one chunk: its key, its length in bytes and the crc32c of its data (hex)."""

    key: str
    nbytes: int
    crc32c: str


def _crc(data: NDArray[np.uint8]) -> bytes:
    checksum: int = google_crc32c.value(data)
    return checksum.to_bytes(CRC_BYTES, "little")


def _bytes_of(x: NDArray[Any]) -> NDArray[np.uint8]:
    return x.reshape(-1).view(np.uint8)


def write_chunk(location: Directory, key: str, x: NDArray[Any]) -> Chunk:
    """Write one C-contiguous chunk and wait until it is on the disk."""
    data = _bytes_of(x)
    crc = _crc(data)
    location.write(key, data, crc)
    return Chunk(key, data.nbytes + CRC_BYTES, crc.hex())


def read_chunk(location: Directory, chunk: Chunk, out: NDArray[Any], what: str) -> None:
    """Read one whole chunk into the C-contiguous ``out`` and check it against its commit.

    Raises
    ------
    CorruptStoreError
        If the chunk is missing, of another length, damaged, or not the one that was committed; ``what`` names it.
    """
    data, crc = _bytes_of(out), bytearray(CRC_BYTES)
    try:
        size = location.read_into(chunk.key, [data.data, memoryview(crc)])
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise CorruptStoreError(f"{what} is missing ({location}/{chunk.key}); {_REMEDY}") from None
    except CorruptStoreError as error:
        raise CorruptStoreError(f"{what} is not to be trusted: {error}") from None
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise CorruptStoreError(f"{what} cannot be read from the disk ({error}); {_REMEDY}") from error
    if size != chunk.nbytes or size != data.nbytes + CRC_BYTES:
        raise CorruptStoreError(
            f"{what} has {size} bytes where {chunk.nbytes} were committed ({location}/{chunk.key}); {_REMEDY}"
        )
    if _crc(data) != crc:
        raise CorruptStoreError(f"{what} is damaged: its checksum does not match ({location}/{chunk.key}); {_REMEDY}")
    if crc.hex() != chunk.crc32c:
        raise CorruptStoreError(f"{what} is not the chunk that was committed ({location}/{chunk.key}); {_REMEDY}")


_REMEDY = "`sonde verify --repair` marks the range for `sonde extract --resume`"
