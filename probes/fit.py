"""One (site, tokens, layer): statistics, solution, scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from . import libraries
from .backend import Array, to_numpy
from .cache import LabelFree, LayerCache
from .class_weights import ClassWeight
from .discriminant import LdaFit, LinearFit, lda, mean_difference
from .dual import statistics_for
from .logistic import LogisticFit, logistic_bases, logistic_cv
from .objective import Kind as LogisticKind
from .problem import Problem
from .ridge import RidgeFit, ridge_cv
from .rows import HeldRows, Rows, used_chunks
from .score import score_rows
from .statistics import accumulate, with_targets
from .tridiagonal import ridge_bases

Solver = Literal["ridge", "logistic", "mass-mean", "lda"]
Library = Literal["sonde", "sklearn", "cuml"]

PROBABILISTIC = ("logistic", "lda")
"""Solvers whose scores are logits, and so give probabilities."""

_RIDGE_ALPHAS = np.logspace(-1, 7, 17)
ALPHAS: dict[Solver, NDArray[np.float64]] = {
    "ridge": _RIDGE_ALPHAS,
    "logistic": np.logspace(0, 5, 11),
    "mass-mean": np.zeros(1),
    "lda": _RIDGE_ALPHAS,
}
"""Penalties that are tried on standardised activations unless the user gives others; mass-mean probes have none."""

_CV_TOL = 2e-4
"""Of the logistic fits among which the penalty is chosen: their objectives are within about 1e-6 of the minimum."""


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
    cv_error
        float64 ``[alpha, choice]``: what each penalty costs on held-out folds, squared error of ridge and LDA, log-loss
        in nats of logistic probes; a choice for each target, or one for all. ``[0, 0]`` where there is no penalty.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    alpha: NDArray[np.float64]
    converged: NDArray[np.bool_]
    scores: NDArray[np.float64]
    cv_error: NDArray[np.float64]


def ensure_solvable(
    problem: Problem, solver: str, backend: str = "sonde", class_weight: ClassWeight | None = None
) -> None:
    """Raise InputError if there is no such solver, it cannot answer such labels, or an option is not for it."""
    if solver not in get_args(Solver):
        raise InputError(f"unknown solver {solver!r}: there are {', '.join(get_args(Solver))}")
    if solver != "ridge" and problem.kind == "regression":
        raise InputError(f"labels {problem.labels!r} are numbers: {solver} probes need classes; use the solver ridge")
    if backend not in get_args(Library):
        raise InputError(f"unknown backend {backend!r}: there are {', '.join(get_args(Library))}")
    if backend != "sonde":
        if solver not in ("ridge", "logistic"):
            raise InputError(f"{solver} probes are sonde's own: {backend} is for ridge and logistic")
        libraries.load_library(backend)
    if class_weight is not None and (solver != "logistic" or backend != "sonde"):
        raise InputError(f"class weights are for logistic probes of sonde, not for {solver} probes of {backend}")


def label_free(
    rows: Rows, problem: Problem, solver: Solver, device: str | None = None, cache: LayerCache | None = None
) -> LabelFree:
    """Compute, or take from the cache of these rows, what no label changes: sums of the folds and bases."""
    make = logistic_bases if solver == "logistic" else ridge_bases
    ensure_device(device)
    folds, n_folds = problem.split.folds, problem.split.n_folds

    def compute() -> LabelFree:
        stats = statistics_for(rows, None, folds, n_folds=n_folds, device=device)
        return LabelFree(stats.light(), make(stats))

    return compute() if cache is None else cache.get(make.__name__, folds, n_folds, device, compute)


def fit_layer(
    rows: Rows,
    problem: Problem,
    solver: Solver = "ridge",
    alphas: Any = None,
    device: str | None = None,
    *,
    backend: Library = "sonde",
    class_weight: ClassWeight | None = None,
    known: LabelFree | None = None,
) -> Fit:
    """Fit the probes of one layer to every target and score every sample that is used.

    Parameters
    ----------
    rows
        The layer's activations.
    problem
        Targets, test rows and folds.
    solver
        ``ridge``, ``logistic``, ``mass-mean`` (nearest mean, of classes) or ``lda``.
    alphas
        Candidates; `ALPHAS` if left out.
    device
        Torch device to compute on; left out, numpy.
    backend
        Whose solvers: ``sklearn`` and ``cuml`` fit their own ``Ridge`` and ``LogisticRegression``, on all rows in
        memory.
    class_weight
        Of logistic probes, as of `sonde.probes.logistic_cv`.
    known
        What `label_free` gives for these rows and folds, if it is known.

    Raises
    ------
    InputError
        If the solver, the device or the penalties cannot be used, a value that a probe is fitted to is not finite, or
        a score is not.
    """
    ensure_device(device)
    ensure_solvable(problem, solver, backend, class_weight)
    alphas = ALPHAS[solver] if alphas is None else alphas
    # A logistic fit passes over the rows a few dozen times, the others two or three.
    rows = HeldRows(rows, device=device)
    if backend == "sonde":
        found = _solve(rows, problem, solver, alphas, device, class_weight, known)
    else:
        found = _solve_by(backend, rows, problem, solver, alphas, device)
    weights, bias = to_numpy(found.weights), to_numpy(found.bias)
    scores = score_rows(
        rows,
        np.where(problem.split.test, problem.split.n_folds, problem.split.folds),
        np.concatenate([to_numpy(found.fold_weights), weights[None]]),
        np.concatenate([to_numpy(found.fold_bias), bias[None]]),
        device,
    )
    if solver in PROBABILISTIC:
        scores = _probabilities(scores, problem)
    # Mass-mean probes have no penalty, and closed forms always converge; the classes of one question share both.
    alpha = np.broadcast_to(getattr(found, "alpha", np.nan), bias.shape).copy()
    converged = np.broadcast_to(getattr(found, "converged", True), bias.shape).copy()
    return Fit(weights.astype(np.float32), bias.astype(np.float32), alpha, converged, scores, _cv_error(found))


def _solve(
    rows: Rows,
    problem: Problem,
    solver: Solver,
    alphas: Any,
    device: str | None,
    class_weight: ClassWeight | None,
    known: LabelFree | None,
) -> RidgeFit | LogisticFit | LinearFit:
    y, folds, n_folds, per_target = problem.y, problem.split.folds, problem.split.n_folds, problem.per_target
    if solver == "mass-mean":
        return mean_difference(accumulate(rows, y, folds, n_folds=n_folds, device=device), per_target=per_target)
    known = known or label_free(rows, problem, solver, device)
    if solver == "logistic":
        kind: LogisticKind = "multilabel" if per_target else "multinomial"
        return logistic_cv(
            rows,
            y,
            folds,
            known.stats,
            alphas,
            kind=kind,
            class_weight=class_weight,
            bases=known.bases,
            cv_tol=_CV_TOL,
        )
    stats = with_targets(known.stats, rows, y, folds, device=device)
    solve = ridge_cv if solver == "ridge" else lda
    return solve(stats, alphas, per_target=per_target, bases=known.bases)


def _cv_error(found: RidgeFit | LogisticFit | LinearFit) -> NDArray[np.float64]:
    if isinstance(found, LogisticFit):
        return found.cv_loss
    return found.cv_error if isinstance(found, RidgeFit | LdaFit) else np.empty((0, 0))


def _solve_by(
    library: str, rows: Rows, problem: Problem, solver: Solver, alphas: Any, device: str | None
) -> RidgeFit | LogisticFit:
    folds = problem.split.folds
    x = _whole(rows, folds, device)
    if solver == "ridge":
        return libraries.ridge_cv(x, problem.y, folds, alphas, per_target=problem.per_target, library=library)
    kind: LogisticKind = "multilabel" if problem.per_target else "multinomial"
    return libraries.logistic_cv(x, problem.y, folds, alphas, kind=kind, library=library)


def _whole(rows: Rows, folds: NDArray[Any], device: str | None) -> Array:
    """Return all rows as one array ``[N, D]``; rows that are not used are zero."""
    whole: Array = None
    for backend, positions, x in used_chunks(rows, folds, device):
        if whole is None:
            whole = backend.zeros(len(folds), rows.hidden_size, dtype=x.dtype)
        whole[backend.indices(positions), :] = x
    return whole


def ensure_device(device: str | None) -> None:
    """Raise InputError if torch cannot compute there in float64; None is numpy."""
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
