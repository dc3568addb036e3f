"""The Zarr data type ``bfloat16``, and free views of such arrays as float32 and torch.

zarr-python has no bfloat16 of its own; other Zarr v3 readers (TensorStore, zarrs) know the type by this name from the
registry of Zarr extensions. In memory it is ``ml_dtypes.bfloat16``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard

import ml_dtypes
import numpy as np
from zarr.dtype import Float16, data_type_registry

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class BFloat16(Float16):
    """Zarr v3 data type ``bfloat16``: the upper two bytes of an IEEE 754 float32.

    The `bytes` codec of an array must name its byte order (``little``): TensorStore refuses it otherwise.
    """

    dtype_cls: ClassVar[Any] = type(bfloat16)
    _zarr_v3_name: ClassVar[Any] = "bfloat16"
    _zarr_v2_names: ClassVar[tuple[Any, ...]] = ()

    @classmethod
    def _check_native_dtype(cls, dtype: Any) -> TypeGuard[Any]:
        return bool(dtype == bfloat16)

    @classmethod
    def from_native_dtype(cls, dtype: Any) -> BFloat16:
        """Wrap ``ml_dtypes.bfloat16``; the base class reads the byte order, which ml_dtypes has in one form only."""
        if not cls._check_native_dtype(dtype):
            return super().from_native_dtype(dtype)
        return cls(endianness="little")

    def to_native_dtype(self) -> Any:
        """Return ``numpy.dtype(ml_dtypes.bfloat16)``, little-endian on every platform that torch runs on."""
        return bfloat16

    def _check_scalar(self, data: object) -> TypeGuard[Any]:
        return isinstance(data, ml_dtypes.bfloat16) or super()._check_scalar(data)


if "bfloat16" not in data_type_registry.contents:
    data_type_registry.register("bfloat16", BFloat16)


def as_float32(x: NDArray[Any]) -> NDArray[np.float32]:
    """Widen an array of any float dtype to float32, exactly.

    bfloat16 goes through a 16-bit shift, some times faster than ml_dtypes' element-wise cast.
    """
    if x.dtype != bfloat16:
        return np.asarray(x, dtype=np.float32)
    wide = x.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def as_torch(x: NDArray[Any]) -> torch.Tensor:
    """View a numpy array as a torch tensor of the same dtype and memory, bfloat16 included."""
    import torch

    if x.dtype != bfloat16:
        return torch.from_numpy(x)
    return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)


def as_numpy(x: torch.Tensor) -> NDArray[Any]:
    """View a CPU tensor as a numpy array of the same dtype and memory, bfloat16 included."""
    import torch

    if x.dtype != torch.bfloat16:
        return x.numpy()
    return x.view(torch.uint16).numpy().view(bfloat16)


def count_nonfinite(x: NDArray[Any]) -> int:
    """Count NaN and infinite values."""
    if x.dtype != bfloat16:
        return int(x.size - np.count_nonzero(np.isfinite(x)))
    bits = x.reshape(-1).view(np.uint16)
    # In blocks that stay in the processor's cache.
    return sum(_count_nonfinite(bits[start : start + 2**17]) for start in range(0, len(bits), 2**17))


def _count_nonfinite(bits: NDArray[np.uint16]) -> int:
    # An exponent of ones: from 0x7F80 up as int16 or, with the sign, from 0xFF80 up as uint16. Two maxima are found
    # faster than a mask is written, and nearly always they suffice.
    if bits.max() < 0xFF80 and bits.view(np.int16).max() < 0x7F80:
        return 0
    return int(np.count_nonzero((bits & np.uint16(0x7F80)) == 0x7F80))
