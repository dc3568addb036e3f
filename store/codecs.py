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
    """

    zarr: Callable[[int], Any]
    numcodecs: Any


CODECS: Mapping[str, Codec | None] = {
    "none": None,
    "zstd": Codec(lambda itemsize: ZstdCodec(level=_ZSTD_LEVEL), Zstd(level=_ZSTD_LEVEL)),
    "lz4+bitshuffle": Codec(
        lambda itemsize: BloscCodec(
            cname="lz4", clevel=_LZ4_LEVEL, shuffle="bitshuffle", typesize=itemsize, blocksize=0
        ),
        Blosc(cname="lz4", clevel=_LZ4_LEVEL, shuffle=Blosc.BITSHUFFLE),
    ),
}


def max_encoded_bytes(nbytes: int) -> int:
    """Most bytes that ``nbytes`` take when they do not compress."""
    return nbytes + nbytes // 128 + 4096


def encode(codec: Codec, x: NDArray[Any]) -> memoryview:
    """Compress a C-contiguous array."""
    # numcodecs knows no bfloat16; of a dtype it takes the size alone, for the shuffle.
    encoded = codec.numcodecs.encode(x.view(f"u{x.itemsize}"))
    return memoryview(encoded).cast("B")


def decode(codec: Codec, data: NDArray[np.uint8], out: NDArray[Any]) -> None:
    """Decompress into the C-contiguous ``out``.

    Raises
    ------
    CorruptStoreError
        If the data is not what `encode` makes of an array of this size.
    """
    target = out.reshape(-1).view(np.uint8)
    try:
        decoded = np.frombuffer(codec.numcodecs.decode(data, out=target), dtype=np.uint8)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CorruptStoreError(f"it does not decompress ({error})") from error
    if decoded.nbytes != target.nbytes:
        raise CorruptStoreError(f"it decompresses to {decoded.nbytes} bytes, not {target.nbytes}")
