"""The permutation null: what a probe scores when labels and activations have nothing to do with each other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .backend import Array, Backend, is_torch
from .eigenbasis import Basis
from .metrics import PRIMARY, higher_is_better, score
from .problem import Problem
from .ridge import to_dtype
from .rows import Rows, used_chunks
from .score import score_rows
from .sums import macro

_BLOCK_ELEMENTS = 2**26
"""Numbers in the permuted labels, or in their probes, that are held at a time: 512 MiB."""


def permuted(problem: Problem, n: int, seed: int = 0) -> Iterator[Problem]:
    """Give out the problem with permuted labels, n times.

    Training and test rows are permuted apart. Groups of equal size exchange the labels of all their rows, first with
    first and so on, so that labels which repeat inside a group go on doing so. Rows of groups that are alone in their
    size have no such exchange and are permuted singly, all of them together. The targets of a row stay together.
    So prevalences, correlations of targets and, but for those rows, dependence inside groups are those of the labels.

    Parameters
    ----------
    problem
        Targets, test rows and folds.
    n
        Number of permutations.
    seed
        Permutation i depends on seed and i alone.

    References
    ----------
    Winkler et al. (2014), "Permutation inference for the general linear model", NeuroImage 92, on
    exchangeability blocks that are permuted as a whole.
    """
    blocks = [
        block
        for part in (problem.split.folds >= 0, problem.split.test)
        for block in _exchangeable(problem.groups, np.flatnonzero(part))
    ]
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        order = np.arange(len(problem.y))
        for block in blocks:
            order[block] = rng.permutation(block)
        yield replace(problem, y=problem.y[order])


def permutation_null(
    rows: Rows,
    problem: Problem,
    basis: Basis,
    alpha: Any,
    *,
    n: int = 100,
    seed: int = 0,
    metric: str | None = None,
) -> NDArray[np.float64]:
    r"""Score ridge probes of permuted labels on the test rows.

    All permutations share the eigendecomposition of the real fit: their labels are further columns of
    :math:`X^\top Y`. Each target keeps the α that was chosen for its real labels; it is not chosen again.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D], read twice for as many permutations as fit in 512 MiB.
    problem : Problem
    basis : Basis
        Of all training rows: the last of `ridge_bases`. It also says where to compute.
    alpha : float, or array of shape [T]
        The real probes' penalties.
    n, seed
        As in `permuted`.
    metric : str, optional
        One that takes the values of a regression; left out, the primary metric of the labels' kind.

    Returns
    -------
    float64 array of shape [n]
        The metric over all targets together, as the results have it under ``all``.

    Raises
    ------
    InputError
        If there is no such metric, or it needs probabilities, or an activation in use gives no finite score.
    """
    metric = metric or PRIMARY[problem.kind]
    alpha = np.broadcast_to(np.asarray(alpha, dtype=np.float64), (problem.y.shape[1],))
    test, training = problem.split.test, problem.split.folds >= 0
    device = str(Backend.of(basis.vectors).device) if is_torch(basis.vectors) else None
    at_once = max(1, _BLOCK_ELEMENTS // (problem.y.shape[1] * max(len(problem.y), rows.hidden_size)))
    problems, null = permuted(problem, n, seed), []
    while some := list(itertools.islice(problems, at_once)):
        y = np.concatenate([one.y for one in some], axis=1)
        weights, bias = _ridge(rows, y, training, basis, np.tile(alpha, len(some)), device)
        scores = score_rows(rows, np.where(test, 0, -1), weights[None, ...], bias[None, ...], device)[test]
        for one, its_scores in zip(some, np.split(scores, len(some), axis=1), strict=True):
            values = score(problem.kind, one.truth(test), its_scores)
            if metric not in values:
                raise InputError(
                    f"metric {metric!r} cannot judge a ridge probe of {problem.kind} labels: use {', '.join(values)}"
                )
            null.append(float(macro(values[metric])))
    return np.asarray(null)


def p_value(value: float, null: NDArray[np.float64], metric: str) -> float:
    """Compute (1 + #{null at least as good as the value}) / (1 + n): never zero, and exact for n random permutations.

    NaN if the value is.

    References
    ----------
    Phipson & Smyth (2010), "Permutation p-values should never be zero".
    """
    if np.isnan(value):
        return float("nan")
    as_good = null >= value if higher_is_better(metric) else null <= value
    return float((1 + as_good.sum()) / (1 + null.size))


def _exchangeable(groups: NDArray[np.str_], rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Give out row numbers ``[unit, row]`` by size of the units that may change places: groups, then single rows."""
    _, code, size = np.unique(groups[rows], return_inverse=True, return_counts=True)
    by_group = rows[np.argsort(code, kind="stable")]
    start = np.cumsum(size) - size
    alone: list[NDArray[np.intp]] = []
    for n_rows in np.unique(size):
        block = by_group[start[size == n_rows][:, None] + np.arange(n_rows)]
        if len(block) > 1:
            yield block
        else:
            alone.append(block[0])
    if alone:
        yield np.concatenate(alone)[:, None]


def _ridge(
    rows: Rows,
    y: NDArray[np.float64],
    training: NDArray[np.bool_],
    basis: Basis,
    alpha: NDArray[np.float64],
    device: str | None,
) -> tuple[Array, Array]:
    """Return weights [T, D] and bias [T] of D⁻¹Q(Λ+α)⁻¹QᵀD⁻¹Xᵀy, from one pass for Xᵀy."""
    backend = Backend.of(basis.vectors)
    xp = backend.xp
    mean_y = y[training].mean(axis=0)
    cross = backend.zeros(rows.hidden_size, y.shape[1])
    dtype: Any = None
    for here, positions, x in used_chunks(rows, np.where(training, 0, -1), device):
        dtype = x.dtype
        centred = x - here.asarray(basis.mean_x, dtype)
        cross += here.xp.matmul(centred.T, here.asarray(y[positions] - mean_y, dtype))
    weights = basis.expand(basis.shrink(basis.project(cross), alpha[None, :]))[0, ...]
    bias = backend.asarray(mean_y, xp.float64) - xp.matmul(weights, basis.mean_x)
    return to_dtype(weights, bias, basis.mean_x, dtype)
