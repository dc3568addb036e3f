r"""Bases in which Gram matrices are tridiagonal: enough for ridge probes, at half the cost of eigenvectors.

With :math:`D^{-1} S_{xx} D^{-1} = Q T Q^\top`, T tridiagonal, the solutions of every penalty α are
:math:`Q (T + \alpha)^{-1} Q^\top D^{-1} s_{xy}`, at a cost that grows like the number of columns, as in the eigenbasis
(Eldén 1977, "Algorithms for the regularization of ill-conditioned least squares problems", who reduces x itself to
bidiagonal form).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sonde.errors import InputError

from . import lapack
from .backend import Array, Backend, is_torch, to_numpy
from .eigenbasis import Basis, eigenbases
from .moments import FoldStatistics, Moments


@dataclass(frozen=True, slots=True)
class TridiagonalBasis(Basis):
    """A basis in which T is tridiagonal and positive definite, on a CPU.

    Attributes
    ----------
    diagonal, below : float64 arrays of shape [D] and [D]
        Of T; the last of `below` is 0.
    """

    diagonal: Array
    below: Array

    def shrink(self, projected: Array, alphas: np.ndarray[Any, Any]) -> Array:
        """Return (T+α)⁻¹p, as `Basis.shrink`."""
        p = np.ascontiguousarray(to_numpy(projected))
        solved = np.empty((len(alphas), *p.shape))
        for into, alpha in zip(solved, alphas, strict=True):
            if alpha.size == 1:
                into[:] = p
                lapack.substitute(self._factors(float(alpha[0])), into)
                continue
            for value in np.unique(alpha):
                mine = alpha == value
                rows = p[mine]
                lapack.substitute(self._factors(float(value)), rows)
                into[mine] = rows
        return Backend.of(projected).asarray(solved)

    def root(self) -> Array:
        """Return DQL√E of T = LELᵀ, as `Basis.root`."""
        backend = Backend.of(self.vectors)
        pivots, below = map(backend.asarray, self._factors(0.0))
        q = self.vectors
        # L is 1 on its diagonal, and has nothing but that and what is below it.
        turned = backend.xp.concat([q[:, :-1] + q[:, 1:] * below[:-1], q[:, -1:]], axis=1)
        return (self.scale * self.live)[:, None] * turned * backend.xp.sqrt(pivots)

    @property
    def greatest(self) -> float:
        """Gershgorin's bound: at most three times the greatest eigenvalue."""
        diagonal, below = to_numpy(self.diagonal), np.abs(to_numpy(self.below))
        return float((diagonal + below + np.roll(below, 1)).max())

    def _factors(self, alpha: float) -> tuple[lapack.Floats, lapack.Floats]:
        factors = lapack.factorise(to_numpy(self.diagonal) + alpha, to_numpy(self.below))
        if factors is None:
            raise InputError("these bases are not those of a Gram matrix: clear the cache with `sonde cache --clear`")
        return factors


def ridge_bases(stats: FoldStatistics, *, standardize: bool = True) -> tuple[Basis, ...]:
    """Make what ridge probes and discriminants take for `bases`, at the least cost.

    On a CPU, of Gram matrices of full rank, these are tridiagonal; else what `eigenbases` gives. They depend on the
    activations and folds alone, not on targets.

    Parameters
    ----------
    stats : FoldStatistics
    standardize : bool
        Whether columns are divided by their standard deviation in each training part.

    Returns
    -------
    tuple of F + 1 Basis
        Of every training part: without fold 0, …, without fold F-1, and of all folds. All have the same r.

    Raises
    ------
    InputError
        If there are no Gram matrices.
    """
    on_cpu = isinstance(stats.sum_x, np.ndarray) or (is_torch(stats.sum_x) and stats.sum_x.device.type == "cpu")
    found: list[Basis] = []
    if on_cpu and stats.gram is not None and lapack.available():
        for part in stats.parts():
            basis = _tridiagonal(part, standardize)
            if basis is None:
                break
            found.append(basis)
    return tuple(found) if len(found) > stats.n_folds else eigenbases(stats, standardize=standardize)


def _tridiagonal(moments: Moments, standardize: bool) -> TridiagonalBasis | None:
    """Return the basis of one training part, or None if its Gram matrix is not positive definite to rounding."""
    backend = Backend.of(moments.mean_x)
    scale = moments.scale if standardize else backend.xp.ones_like(moments.mean_x)
    inverse = 1 / to_numpy(scale)
    matrix = to_numpy(moments.sxx) * inverse
    matrix *= inverse[:, None]
    # Constant features, of which only zeros are left, stand aside.
    matrix[np.diag_indices_from(matrix)] += 1 - to_numpy(moments.live)
    vectors, diagonal, below = map(backend.asarray, lapack.tridiagonalise(matrix))
    if lapack.factorise(to_numpy(diagonal), to_numpy(below)) is None:
        return None
    return TridiagonalBasis(vectors, scale, moments.live, moments.mean_x, moments.weight, diagonal, below)
