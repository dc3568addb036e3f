"""The few array operations that the Python array API leaves to each library."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import array_api_compat
import numpy as np

from sonde.errors import InputError

Array: TypeAlias = Any
"""An array of any namespace: numpy, torch or cupy."""


def is_torch(x: Array) -> bool:
    """Whether `x` is a torch tensor; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    # Another thread may be in the middle of importing torch.
    return isinstance(x, getattr(torch, "Tensor", ()))


@dataclass(frozen=True, slots=True)
class Backend:
    """Where arrays live and are computed: an array API namespace and a device of it.

    Attributes
    ----------
    xp : module
        Namespace of `array_api_compat`.
    device : object
        Device as that namespace understands it.
    """

    xp: Any
    device: Any

    @classmethod
    def of(cls, x: Array, device: str | None = None) -> Backend:
        """Return the backend of `x`, or the torch backend of `device` (``"cpu"``, ``"cuda"``, …) if one is named."""
        if device is None:
            return cls(array_api_compat.array_namespace(x), array_api_compat.device(x))
        import torch

        return cls(array_api_compat.array_namespace(torch.empty(0)), torch.device(device))

    def asarray(self, x: Any, dtype: Any = None) -> Array:
        """Return `x`, from any namespace, as an array of this backend."""
        if type(x) is np.ndarray and self.xp.__name__.endswith("numpy"):
            return np.asarray(x, dtype=dtype)  # as the last line, at a tenth of its cost for small arrays
        if is_torch(x):
            x = x.detach()
            if self.xp.__name__.endswith("torch"):
                return x.to(device=self.device, dtype=dtype)
            x = x.cpu().numpy()
        return self.xp.asarray(x, dtype=dtype, device=self.device)

    def widen(self, x: Array) -> Array:
        """Bring a chunk here in the dtype in which its products are computed.

        Parameters
        ----------
        x : array of shape [n, D], float64, float32, float16 or bfloat16 (torch's or ml_dtypes')

        Returns
        -------
        array of shape [n, D], float64 if `x` is, else float32: exactly the same values.
            May share memory with `x`.

        Raises
        ------
        InputError
            If `x` has another dtype.
        """
        to_torch = self.xp.__name__.endswith("torch")
        if isinstance(x, np.ndarray) and x.dtype.name == "bfloat16":
            if to_torch:  # moved at half the size, widened there
                bits = self.asarray(np.ascontiguousarray(x).view(np.int16))
                return self.asarray(bits.view(sys.modules["torch"].bfloat16), self.xp.float32)
            wide = np.ascontiguousarray(x).view(np.uint16).astype(np.uint32)
            return self.asarray(np.left_shift(wide, 16, out=wide).view(np.float32))
        name = str(x.dtype).removeprefix("torch.")
        if name not in {"float16", "bfloat16", "float32", "float64"}:
            raise InputError(
                f"activations of dtype {name} cannot be probed: give float64, float32, float16 or bfloat16"
            )
        return self.asarray(self.asarray(x), self.xp.float64 if name == "float64" else self.xp.float32)

    def zeros(self, *shape: int, dtype: Any = None) -> Array:
        """Return zeros of `shape` here, float64 unless `dtype` is given."""
        return self.xp.zeros(shape, dtype=dtype or self.xp.float64, device=self.device)

    def indices(self, positions: Sequence[int] | np.ndarray[Any, Any]) -> Array:
        """Return integer positions as an index array here."""
        return self.asarray(np.asarray(positions, dtype=np.int64))


def to_numpy(x: Any) -> np.ndarray[Any, Any]:
    """Return `x`, of any namespace and device, as a numpy array in host memory."""
    if is_torch(x):
        return np.asarray(x.detach().cpu().numpy())
    return np.asarray(x.get() if array_api_compat.is_cupy_array(x) else x)


def gram(x: Array) -> Array:
    r"""Return the symmetric product :math:`X^\top X`.

    On a CPU this is BLAS `syrk`, which does half the work of a general product; elsewhere a general product. On a CUDA
    device float32 rows that are bfloat16 numbers, as most stores hold, are multiplied as such by its tensor cores:
    products of two are exact in float32, in which they are added.

    Parameters
    ----------
    x : array of shape [n, D], float32 or float64

    Returns
    -------
    array of shape [D, D], dtype of `x`
    """
    if is_torch(x) and x.device.type == "cpu":
        return sys.modules["torch"].from_numpy(gram(x.numpy()))
    if is_torch(x) and x.device.type == "cuda" and str(x.dtype) == "torch.float32" and x.shape[0] > 0:
        narrow = x.bfloat16()
        if bool((narrow == x).all()):
            torch = sys.modules["torch"]
            return torch.mm(narrow.T, narrow, out_dtype=torch.float32)
    # numpy sees that these are one array, and calls syrk; unlike scipy's own, it lets other threads run meanwhile.
    return array_api_compat.array_namespace(x).matmul(x.T, x)
