"""Routines of scipy's LAPACK that nothing else offers without Python's lock, under which layers would wait in turn.

`scipy.linalg.lapack` holds the lock while it works. `scipy.linalg.cython_lapack` gives the addresses of the routines,
and ctypes calls them without it.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

_BLOCK = 64
"""Columns that are worked on at a time: what LAPACK asks of its workspace."""


def tridiagonalise(matrix: Floats) -> tuple[Floats, Floats, Floats]:
    r"""Reduce a symmetric matrix to tridiagonal form by Householder reflections: :math:`A = Q T Q^\top`.

    LAPACK's ``dsytrd`` and ``dorgtr`` (Golub & Van Loan, "Matrix Computations", 4th ed., section 8.3.1).

    Parameters
    ----------
    matrix : float64 array of shape [n, n], n > 0

    Returns
    -------
    vectors : float64 array of shape [n, n]
        Q, orthogonal.
    diagonal, below : float64 arrays of shape [n] and [n]
        Of T; the last of `below` is 0.

    Raises
    ------
    ValueError
        If the matrix is not square.
    """
    n = len(matrix)
    if matrix.shape != (n, n):
        raise ValueError(f"a matrix of shape {matrix.shape} is not symmetric")
    # What is symmetric is the same column by column; so Q comes back transposed.
    q = np.array(matrix, np.float64, order="C")
    diagonal, below, reflectors, work = np.empty(n), np.zeros(n), np.zeros(n), np.empty(_BLOCK * n)
    _call("dsytrd", b"L", n, q, n, diagonal, below, reflectors, work, work.size)
    _call("dorgtr", b"L", n, q, n, reflectors, work, work.size)
    return np.ascontiguousarray(q.T), diagonal, below


def factorise(diagonal: Floats, below: Floats) -> tuple[Floats, Floats] | None:
    r"""Factorise a symmetric tridiagonal matrix as :math:`L D L^\top` with LAPACK's ``dpttrf``.

    Parameters
    ----------
    diagonal, below : float64 arrays of shape [n] and [n]
        As `tridiagonalise` returns them.

    Returns
    -------
    diagonal, below : float64 arrays of shape [n] and [n]
        Of D > 0, and of L, whose diagonal is 1. None if the matrix is not positive definite.

    Raises
    ------
    ValueError
        If the two have different shapes.
    """
    diagonal, below = np.array(diagonal, np.float64), np.array(below, np.float64)
    if diagonal.ndim != 1 or diagonal.shape != below.shape:
        raise ValueError(f"diagonals of shapes {diagonal.shape} and {below.shape} are of no tridiagonal matrix")
    return (diagonal, below) if _call("dpttrf", len(diagonal), diagonal, below) == 0 else None


def substitute(factors: tuple[Floats, Floats], rows: Floats) -> None:
    """Replace rows b by the solutions x of ``L D Lᵀ x = b``, with LAPACK's ``dpttrs``.

    Parameters
    ----------
    factors
        As `factorise` returns them.
    rows : float64 array of shape [k, n], C-contiguous
        Overwritten.

    Raises
    ------
    ValueError
        If they are not such.
    """
    if rows.dtype != np.float64 or not rows.flags.c_contiguous or rows.ndim != 2 or rows.shape[1] != len(factors[0]):
        raise ValueError(f"{rows.dtype} rows of shape {rows.shape} for a matrix of {len(factors[0])} rows")
    _call("dpttrs", rows.shape[1], rows.shape[0], *factors, rows, rows.shape[1])


@functools.cache
def available() -> bool:
    """Whether scipy's routines take what is given them here: its integers may become wider."""
    try:
        return all(b"int *" in _signature(name) for name in ("dsytrd", "dorgtr", "dpttrf", "dpttrs"))
    except (ImportError, KeyError):
        return False


def _call(name: str, *arguments: Any) -> int:
    """Call a routine without Python's lock and return its INFO; arrays are given as they lie in memory."""
    info = ctypes.c_int()
    _routine(name)(*map(_pointer, arguments), ctypes.byref(info))
    return info.value


def _pointer(argument: Any) -> Any:
    if isinstance(argument, np.ndarray):
        return argument.ctypes.data
    return argument if isinstance(argument, bytes) else ctypes.byref(ctypes.c_int(argument))


@functools.cache
def _routine(name: str) -> Callable[..., None]:
    signature = _signature(name)
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )(_capsule(name), signature)
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * signature.count(b"*"))(address)


def _signature(name: str) -> bytes:
    named = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
    return bytes(named(_capsule(name)))


def _capsule(name: str) -> object:
    from scipy.linalg import cython_lapack

    capsules: Mapping[str, object] = vars(cython_lapack)["__pyx_capi__"]
    return capsules[name]
