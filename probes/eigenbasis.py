"""Eigendecompositions of training parts: what probes of every penalty and target share, and no label changes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from .backend import Array, Backend
from .moments import FoldStatistics, Moments


@dataclass(frozen=True, slots=True)
class Eigenbasis:
    r"""Eigendecomposition of the (standardised) Gram matrix of one training part.

    Attributes
    ----------
    vectors : float64 array of shape [D, r]
        Q, eigenvectors as columns, of :math:`D^{-1} S_{xx} D^{-1} = Q \Lambda Q^\top`. r is D, or less for fewer rows
        than columns; columns of zeros may fill it up.
    values : float64 array of shape [r]
        Λ ≥ 0.
    scale : float64 array of shape [D]
        Diagonal of D: standard deviations, or ones.
    live : float64 array of shape [D]
        1, or 0 for features that are constant in this training part.
    mean_x : float64 array of shape [D]
        What is subtracted from x.
    weight : float
        Sum of the sample weights.
    """

    vectors: Array
    values: Array
    scale: Array
    live: Array
    mean_x: Array
    weight: float

    def project(self, columns: Array) -> Array:
        """Return QᵀD⁻¹ of columns ([D, K]) without constant features, float64 of shape [r, K]."""
        xp = array_api_compat.array_namespace(columns)
        return xp.matmul(self.vectors.T, columns * (self.live / self.scale)[:, None])

    def expand(self, coordinates: Array) -> Array:
        """Return raw-unit weights D⁻¹Q of coordinates ([r, K]), float64 of shape [D, K]."""
        xp = array_api_compat.array_namespace(coordinates)
        return xp.matmul(self.vectors, coordinates) * (self.live / self.scale)[:, None]

    def shrink(self, projected: Array, alphas: np.ndarray[Any, Any]) -> Array:
        """Return the solutions (Λ+α)⁻¹p, float64 of shape [r, A·T], of projected sxy ([r, T]).

        α is a numpy array of shape [A, 1], or [A, T] for penalties of every target's own.
        """
        backend = Backend.of(projected)
        penalty = self.values[:, None, None] + backend.asarray(alphas, backend.xp.float64)
        return backend.xp.reshape(projected[:, None, :] / penalty, (projected.shape[0], -1))


def eigenbasis(moments: Moments, *, standardize: bool = True) -> Eigenbasis:
    """Decompose the Gram matrix of one training part.

    Parameters
    ----------
    moments : Moments
    standardize : bool
        Whether columns are divided by their standard deviation in these rows.

    Raises
    ------
    InputError
        If the moments have no Gram matrix.
    """
    xp = array_api_compat.array_namespace(moments.mean_x)
    scale = moments.scale if standardize else xp.ones_like(moments.mean_x)
    values, vectors = moments.decompose(scale)
    # Row-major, as they come back from a file: products of another layout may differ in their last bits.
    vectors = xp.reshape(xp.reshape(vectors, (-1,)), vectors.shape)
    return Eigenbasis(vectors, values, scale, moments.live, moments.mean_x, moments.weight)


def eigenbases(stats: FoldStatistics, *, standardize: bool = True) -> tuple[Eigenbasis, ...]:
    """Decompose every training part: without fold 0, …, without fold F-1, and all folds.

    The result depends on the activations and folds alone, not on targets, and serves `ridge_cv` and `logistic_cv`.
    All have the same r.
    """
    parts = [stats.without(fold) for fold in range(stats.n_folds)] + [stats.total()]
    bases = [eigenbasis(part, standardize=standardize) for part in parts]
    rank = max(int(basis.values.shape[0]) for basis in bases)
    return tuple(_filled(basis, rank) for basis in bases)


def _filled(basis: Eigenbasis, rank: int) -> Eigenbasis:
    """Return the basis with zero vectors up to `rank`: coordinates that neither fit nor are fitted."""
    backend = Backend.of(basis.values)
    hidden, lacking = basis.vectors.shape[0], rank - int(basis.values.shape[0])
    if lacking == 0:
        return basis
    return replace(
        basis,
        vectors=backend.xp.concat([backend.zeros(hidden, lacking), basis.vectors], axis=1),
        values=backend.xp.concat([backend.zeros(lacking), basis.values]),
    )
