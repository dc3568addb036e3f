"""How the bytes of a chunk are compressed, in Zarr's words and in numcodecs'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Blosc, Zstd
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from sonde.errors import CorruptStoreError

_ZSTD_LEVEL = 1
_LZ4_LEVEL = 5


@dataclass(frozen=True, slots=True)
class Codec:
    """A compressor.

    Attributes
    ----------
    zarr
        Itemsize in bytes -> the codec that goes into ``zarr.json``.
    numcodecs
        What encodes and decodes the same bytes in memory.
    content_bytes
        Encoded data -> bytes that it says it decompresses to; looked at before it is believed.
    """

    zarr: Callable[[int], Any]
    numcodecs: Any
    content_bytes: Callable[[NDArray[np.uint8]], int]


def _zstd_content_bytes(data: NDArray[np.uint8]) -> int:
    """Read the size of the content from the header of a Zstandard frame, RFC 8878, section 3.1.1.1."""
    header = data[:18].tobytes()
    if header[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("it is no Zstandard frame")
    single_segment = header[4] >> 5 & 1
    start = 6 - single_segment + (0, 1, 2, 4)[header[4] & 3]
    width = (single_segment, 2, 4, 8)[header[4] >> 6]
    return int.from_bytes(header[start : start + width], "little") + (256 if width == 2 else 0)


def _blosc_content_bytes(data: NDArray[np.uint8]) -> int:
    """Read the size of the content from the header of a Blosc buffer: bytes 4 to 8.

    Bytes 12 to 16 are the size of the buffer. The library believes them, and reads beyond one that is shorter.
    """
    if len(data) < 16 or int.from_bytes(data[12:16].tobytes(), "little") != len(data):
        raise ValueError("it is no Blosc buffer")
    return int.from_bytes(data[4:8].tobytes(), "little")


CODECS: Mapping[str, Codec | None] = {
    "none": None,
    "zstd": Codec(lambda itemsize: ZstdCodec(level=_ZSTD_LEVEL), Zstd(level=_ZSTD_LEVEL), _zstd_content_bytes),
    "lz4+bitshuffle": Codec(
        lambda itemsize: BloscCodec(
            cname="lz4", clevel=_LZ4_LEVEL, shuffle="bitshuffle", typesize=itemsize, blocksize=0
        ),
        Blosc(cname="lz4", clevel=_LZ4_LEVEL, shuffle=Blosc.BITSHUFFLE),
        _blosc_content_bytes,
    ),
}


def min_encoded_bytes(nbytes: int) -> int:
    """Least bytes that ``nbytes`` take: Zstandard keeps 128 KiB in four of them, the others more."""
    return max(1, nbytes // 2**15)


def max_encoded_bytes(nbytes: int) -> int:
    """Most bytes that ``nbytes`` take when they do not compress."""
    return nbytes + nbytes // 128 + 4096


def encode(codec: Codec, x: NDArray[Any]) -> memoryview:
    """Compress a C-contiguous array; numcodecs would take one of Fortran order as it lies."""
    # numcodecs knows no bfloat16; of a dtype it takes the size alone, for the shuffle.
    assert x.flags.c_contiguous
    encoded = codec.numcodecs.encode(x.view(f"u{x.itemsize}"))
    return memoryview(encoded).cast("B")


def decode(codec: Codec, data: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decompress into the C-contiguous ``out``.

    Raises
    ------
    CorruptStoreError
        If the data is not what `encode` makes of an array of this size.
    """
    try:
        claimed = codec.content_bytes(data)
        if claimed != out.nbytes:
            raise CorruptStoreError(f"it decompresses to {claimed} bytes, not {out.nbytes}")
        codec.numcodecs.decode(data, out=out.reshape(-1).view(np.uint8))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise CorruptStoreError(f"it does not decompress ({error})") from error


def decode_bounded(data: bytes, limit: int) -> bytes:
    """Decompress a Zstandard frame that states its size.

    Raises
    ------
    ValueError, RuntimeError
        If it is none, or of more than ``limit`` bytes.
    """
    nbytes = _zstd_content_bytes(np.frombuffer(data, dtype=np.uint8))
    if nbytes > limit:
        raise ValueError(f"it decompresses to {nbytes} bytes, more than {limit}")
    out = np.empty(nbytes, dtype=np.uint8)
    Zstd().decode(data, out=out)
    return out.tobytes()
