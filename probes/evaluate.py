"""Scores of one layer to rows of the results, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import interval
from .metrics import METRICS, PRIMARY, macro
from .problem import ALL, Problem


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Rows of the results (without the columns that tell where they come from), and the primary metric's draws.

    Attributes
    ----------
    records
        One mapping per metric, target and split.
    draws
        float64 ``[draw]``: the primary metric over all targets under each bootstrap draw of the test rows.
    """

    records: list[dict[str, Any]]
    draws: NDArray[np.float64]


def evaluate(
    problem: Problem,
    scores: NDArray[np.float64],
    draws: NDArray[Any],
    *,
    probabilities: bool,
    cross_validated: bool = True,
    alpha: NDArray[np.float64] | None = None,
    converged: NDArray[np.bool_] | None = None,
) -> Evaluation:
    """Compute every metric of the labels' kind on the test rows, with intervals, and on the training rows' folds.

    Parameters
    ----------
    problem
        Targets, test rows and folds.
    scores
        ``[sample, target]``, as `Fit.scores`.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap, the same for all layers.
    probabilities
        Whether scores are probabilities; if not, log-loss means nothing and is left out.
    cross_validated
        Whether training rows have scores.
    alpha, converged
        Per target, for the records.
    """
    test, training = problem.split.test, problem.split.folds >= 0
    tested = problem.truth(test), scores[test]
    trained = (problem.truth(training), scores[training]) if cross_validated else None
    n_positive = {"test": _positives(problem, test), "cv": _positives(problem, training)}
    # Targets of a multi-label question have rows of their own; -1 is all of them together.
    wanted = {ALL: -1} | ({name: t for t, name in enumerate(problem.targets)} if problem.kind == "multilabel" else {})
    about = {
        target: {
            "target": target,
            "alpha": _of_target(alpha, t),
            "converged": converged is None or bool(converged.all() if t < 0 else converged[t]),
            "n_train": int(training.sum()),
            "n_test": int(test.sum()),
        }
        for target, t in wanted.items()
    }
    records: list[dict[str, Any]] = []
    primary_draws = np.empty(0)
    for metric in METRICS[problem.kind].values():
        if metric.probabilities and not probabilities:
            continue
        drawn = _with_macro(metric.compute(*tested, draws))
        low, high = interval(drawn)
        parts = {"test": (_with_macro(metric.compute(*tested)), low, high)}
        if trained is not None:
            nothing = np.full_like(low, np.nan)
            parts["cv"] = (_with_macro(metric.compute(*trained)), nothing, nothing)
        if metric.name == PRIMARY[problem.kind]:
            primary_draws = drawn[:, -1]
        records += [
            about[target]
            | {"metric": metric.name, "split": part, "n_positive": n_positive[part].get(target, -1)}
            | {"value": float(value[t]), "low": float(low[t]), "high": float(high[t])}
            for target, t in wanted.items()
            for part, (value, low, high) in parts.items()
        ]
    return Evaluation(records, primary_draws)


def _with_macro(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put the mean over the targets behind them, on the last axis."""
    return np.concatenate([values, macro(values)[..., None]], axis=-1)


def _of_target(alpha: NDArray[np.float64] | None, t: int) -> float:
    """Look up the penalty of a target; NaN for all (-1) if they differ, or if there is none."""
    if alpha is None or (t < 0 and np.unique(alpha).size > 1):
        return float("nan")
    return float(alpha[t])


def _positives(problem: Problem, rows: NDArray[np.bool_]) -> Mapping[str, int]:
    """Count the positive rows of every target; none where labels have no positives."""
    counts = problem.y[rows].sum(axis=0)
    if problem.kind == "binary":
        return {ALL: int(counts[0])}
    if problem.kind == "multilabel":
        return dict(zip(problem.targets, map(int, counts), strict=True)) | {ALL: int(counts.sum())}
    return {}
