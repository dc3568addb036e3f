"""Bases of training parts, in which their Gram matrices are simple: what probes of every penalty and target share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from .backend import Array, Backend
from .moments import FoldStatistics, Moments


@dataclass(frozen=True, slots=True)
class Basis(ABC):
    r"""Orthonormal basis of one training part, in which its Gram matrix is of few numbers.

    :math:`D^{-1} S_{xx} D^{-1} = Q T Q^\top`, T diagonal or tridiagonal.

    Attributes
    ----------
    vectors : float64 array of shape [D, r]
        Q, the basis as columns. r is D, or less for fewer rows than columns; columns of zeros may fill it up.
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
    scale: Array
    live: Array
    mean_x: Array
    weight: float

    def project(self, columns: Array) -> Array:
        """Return QᵀD⁻¹ of columns ([D, K]) without constant features, as rows: float64 of shape [K, r]."""
        xp = array_api_compat.array_namespace(columns)
        return xp.matmul((columns * (self.live / self.scale)[:, None]).T, self.vectors)

    def expand(self, coordinates: Array) -> Array:
        """Return raw-unit weights D⁻¹Q of coordinates ([…, r]), float64 of shape […, D]."""
        xp = array_api_compat.array_namespace(coordinates)
        return xp.matmul(coordinates, self.vectors.T) * (self.live / self.scale)

    @abstractmethod
    def shrink(self, projected: Array, alphas: np.ndarray[Any, Any]) -> Array:
        """Return the solutions (T+α)⁻¹p, float64 of shape [A, K, r], of projected columns ([K, r]).

        α is a numpy array of shape [A, 1], or [A, K] for penalties of every column's own.
        """

    @abstractmethod
    def root(self) -> Array:
        """Return R of shape [D, r], float64, whose RRᵀ is the Gram matrix S_xx, in raw units."""

    @property
    @abstractmethod
    def greatest(self) -> float:
        """A number that no eigenvalue of T is greater than, and the greatest of them not much less than."""


@dataclass(frozen=True, slots=True)
class Eigenbasis(Basis):
    """The basis in which T is diagonal, Λ.

    Attributes
    ----------
    values : float64 array of shape [r]
        Λ ≥ 0.
    """

    values: Array

    def shrink(self, projected: Array, alphas: np.ndarray[Any, Any]) -> Array:
        """Return (Λ+α)⁻¹p, as `Basis.shrink`."""
        backend = Backend.of(projected)
        return projected / (self.values + backend.asarray(alphas, backend.xp.float64)[:, :, None])

    def root(self) -> Array:
        """Return DQ√Λ, as `Basis.root`."""
        xp = array_api_compat.array_namespace(self.values)
        return (self.scale * self.live)[:, None] * self.vectors * xp.sqrt(self.values)

    @property
    def greatest(self) -> float:
        """The greatest eigenvalue."""
        return float(array_api_compat.array_namespace(self.values).max(self.values))


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
    return Eigenbasis(vectors, scale, moments.live, moments.mean_x, moments.weight, values)


def eigenbases(stats: FoldStatistics, *, standardize: bool = True) -> tuple[Eigenbasis, ...]:
    """Decompose every training part: without fold 0, …, without fold F-1, and all folds.

    The result depends on the activations and folds alone, not on targets, and serves `ridge_cv` and `logistic_cv`.
    All have the same r.
    """
    bases = [eigenbasis(part, standardize=standardize) for part in stats.parts()]
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
