"""One (site, tokens, layer): statistics, solution, scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .backend import Array, to_numpy
from .logistic import logistic_cv
from .objective import Kind as LogisticKind
from .problem import Problem
from .ridge import ridge_cv
from .rows import Rows, used_chunks
from .statistics import accumulate

Solver = Literal["ridge", "logistic"]

ALPHAS: dict[Solver, NDArray[np.float64]] = {"ridge": np.logspace(-1, 7, 17), "logistic": np.logspace(0, 5, 11)}
"""Penalties that are tried on standardised activations unless the user gives others."""

HELD_BYTES = 2**30
"""Layers up to this size stay in memory between passes."""


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A fitted layer.

    Attributes
    ----------
    weights, bias
        float32 ``[target, hidden]`` and ``[target]``, in raw units of the activations: the scaler is folded in.
    alpha
        float64 ``[target]``: the penalties that cross-validation chose.
    converged
        bool ``[target]``.
    scores
        float64 ``[sample, target]``: test rows by the probe of all training rows, training rows by the probe that did
        not see their fold; NaN elsewhere. Probabilities of logistic probes, else the regression's values.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    alpha: NDArray[np.float64]
    converged: NDArray[np.bool_]
    scores: NDArray[np.float64]


class HeldRows:
    """Rows that stay in memory as they were read in their first whole pass, unless they are too many.

    Parameters
    ----------
    rows
        Where they are read.
    limit
        Bytes; more are read again for every pass, one chunk at a time.
    """

    def __init__(self, rows: Rows, limit: int = HELD_BYTES) -> None:
        self._rows = rows
        self._limit = limit
        self._held: list[tuple[slice, Array]] | None = None

    @property
    def hidden_size(self) -> int:
        """Number of columns, D."""
        return self._rows.hidden_size

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        if self._held is not None:
            yield from self._held
            return
        held: list[tuple[slice, Array]] = []
        n_bytes = 0
        for span, chunk in self._rows:
            n_bytes += int(chunk.nbytes)
            if n_bytes <= self._limit:
                held.append((span, chunk))
            else:
                held.clear()
            yield span, chunk
        if n_bytes <= self._limit:
            self._held = held


def ensure_solvable(problem: Problem, solver: str) -> None:
    """Raise InputError if there is no such solver, or it cannot answer such labels."""
    if solver not in get_args(Solver):
        raise InputError(f"unknown solver {solver!r}: there are {', '.join(get_args(Solver))}")
    if solver == "logistic" and problem.kind == "regression":
        raise InputError(f"labels {problem.labels!r} are numbers: logistic probes need classes; use the solver ridge")


def fit_layer(
    rows: Rows, problem: Problem, solver: Solver = "ridge", alphas: Any = None, device: str | None = None
) -> Fit:
    """Fit the probes of one layer to every target and score every sample that is used.

    Parameters
    ----------
    rows
        The layer's activations.
    problem
        Targets, test rows and folds.
    solver
        ``ridge`` or ``logistic``.
    alphas
        Candidates; `ALPHAS` if left out.
    device
        Torch device to compute on; left out, numpy.

    Raises
    ------
    InputError
        If an activation in use is not finite, or the solver, a penalty or the device cannot be used.
    """
    ensure_solvable(problem, solver)
    _ensure_device(device)
    alphas = ALPHAS[solver] if alphas is None else alphas
    folds, n_folds = problem.split.folds, problem.split.n_folds
    # A logistic fit passes over the rows a few dozen times, ridge twice.
    rows = HeldRows(rows)
    if solver == "ridge":
        stats = accumulate(rows, problem.y, folds, n_folds=n_folds, device=device)
        ridge = ridge_cv(stats, alphas, per_target=problem.per_target)
        alpha, converged = ridge.alpha, np.ones(len(problem.targets), dtype=bool)
        weights, bias, fold_weights, fold_bias = ridge.weights, ridge.bias, ridge.fold_weights, ridge.fold_bias
    else:
        stats = accumulate(rows, None, folds, n_folds=n_folds, device=device)
        kind: LogisticKind = "multilabel" if problem.per_target else "multinomial"
        logistic = logistic_cv(rows, problem.y, folds, stats, alphas, kind=kind)
        alpha = np.broadcast_to(logistic.alpha, (len(problem.targets),)).copy()
        converged = np.broadcast_to(logistic.converged, alpha.shape).copy()
        weights, bias = logistic.weights, logistic.bias
        fold_weights, fold_bias = logistic.fold_weights, logistic.fold_bias
    parts = np.where(problem.split.test, n_folds, folds)
    all_weights = np.concatenate([to_numpy(fold_weights), to_numpy(weights)[None]])
    all_bias = np.concatenate([to_numpy(fold_bias), to_numpy(bias)[None]])
    scores = _score(rows, parts, all_weights, all_bias, device)
    if solver == "logistic":
        scores = _probabilities(scores, problem)
    return Fit(all_weights[-1].astype(np.float32), all_bias[-1].astype(np.float32), alpha, converged, scores)


def _score(
    rows: Rows, parts: NDArray[Any], weights: NDArray[Any], bias: NDArray[Any], device: str | None
) -> NDArray[np.float64]:
    """Score every row by the weights ``[part, target, hidden]`` of its part, in one pass; -1 is left out."""
    scores = np.full((len(parts), weights.shape[1]), np.nan)
    for backend, positions, x in used_chunks(rows, parts, device):
        part_of = parts[positions]
        for part in np.unique(part_of):
            here = np.flatnonzero(part_of == part)
            chosen = backend.xp.take(x, backend.indices(here), axis=0)
            with np.errstate(over="ignore", invalid="ignore"):  # told below, with the row
                linear = chosen @ backend.asarray(weights[part].T, x.dtype)
            scores[positions[here]] = to_numpy(linear).astype(np.float64) + bias[part]
    # What was fitted to has been checked before; test rows are seen here for the first time.
    bad = np.flatnonzero((parts >= 0) & ~np.isfinite(scores).all(axis=1))
    if bad.size:
        raise InputError(
            f"the activations of row {bad[0]} give no finite score: extract it again in a wider dtype, or leave it out"
        )
    return scores


def _ensure_device(device: str | None) -> None:
    if device is None:
        return
    import torch

    try:
        torch.empty(0, dtype=torch.float64, device=device)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"the device {device!r} cannot be used ({reason}): name another, or none for numpy") from error


def _probabilities(scores: NDArray[np.float64], problem: Problem) -> NDArray[np.float64]:
    from scipy.special import expit, softmax

    return np.asarray(expit(scores) if problem.per_target else softmax(scores, axis=1))
