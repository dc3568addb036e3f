"""Eight bits a value: every vector is kept as integers times one float32 scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .dtype import as_float32

_LARGEST = 127


def quantize(x: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round vectors to integers of -127 to 127, symmetric absmax quantisation.

    ``scale = max|x| / 127`` and ``q = round(x / scale)`` for each vector; the error of a value is at most half a scale.

    Parameters
    ----------
    x
        Floats ``[..., hidden]``. A vector with a value that is not finite is lost whole: its scale is NaN.

    Returns
    -------
    q
        int8 ``[..., hidden]``.
    scale
        float32 ``[...]``.
    """
    wide = as_float32(x)
    scale = np.abs(wide).max(axis=-1) / np.float32(_LARGEST)
    scale[~np.isfinite(scale)] = np.nan
    # A vector of zeros, or of numbers whose scale underflows, is kept as zeros.
    divisor = np.where(scale > 0, scale, np.float32(np.inf))
    with np.errstate(invalid="ignore"):
        q = np.rint(wide / divisor[..., None])
    q[np.isnan(scale)] = 0
    return np.clip(q, -_LARGEST, _LARGEST).astype(np.int8), scale


def dequantize(q: NDArray[np.int8], scale: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Compute ``out = q * scale``: int8 ``[..., hidden]`` and float32 ``[...]`` to float32 ``[..., hidden]``."""
    # The largest float32 rounds to infinity; a scale of infinity is a forger's.
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(q, scale[..., None], out=out)
