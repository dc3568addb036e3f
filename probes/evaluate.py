"""Scores of one layer to rows of the results, with intervals."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import interval
from .calibration import calibrate
from .metrics import CALIBRATED, score, score_probabilities
from .problem import ALL, Problem
from .reliability import reliability
from .sums import Floats, macro

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Rows of the results (without the columns that tell where they come from), and the draws of every metric.

    Attributes
    ----------
    records
        One mapping per metric, target and split.
    draws
        By metric, float32 ``[draw]``: its value over all targets under each bootstrap draw of the test rows.
    reliability
        What `sonde.probes.reliability` gives of the test rows, with ``calibrated``: whether of the probabilities as
        they are or of the calibrated ones.
    """

    records: list[dict[str, Any]]
    draws: Mapping[str, NDArray[np.float32]]
    reliability: list[dict[str, Any]]


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

    What judges probabilities judges those of `calibrate` too, under names that begin with ``calibrated_``.

    Parameters
    ----------
    problem
        Targets, test rows and folds.
    scores
        ``[sample, target]``, as `Fit.scores`.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap, the same for all layers.
    probabilities
        Whether scores are probabilities; if not, what judges probabilities judges the calibrated ones alone.
    cross_validated
        Whether training rows have scores; if not, nothing can be calibrated.
    alpha, converged
        Per target, for the records.
    """
    test, training = problem.split.test, problem.split.folds >= 0
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
    categorical = problem.kind != "regression"
    calibrated = calibrate(problem, scores, probabilities=probabilities) if categorical and cross_validated else None

    def judge(rows: NDArray[np.bool_], weights: NDArray[Any]) -> dict[str, Floats]:
        y = problem.truth(rows)
        values = score(problem.kind, y, scores[rows], weights)
        if categorical and probabilities:
            values |= score_probabilities(problem.kind, y, scores[rows], weights)
        if calibrated is not None:
            judged = score_probabilities(problem.kind, y, calibrated[rows], weights)
            values |= {CALIBRATED + name: value for name, value in judged.items()}
        return {name: _with_macro(value) for name, value in values.items()}

    drawn = judge(test, draws)
    records: list[dict[str, Any]] = []
    for part, rows in {"test": test, "cv": training}.items():
        if part == "cv" and not cross_validated:
            continue
        n_positive = _positives(problem, rows)
        for metric, (values,) in judge(rows, np.ones((1, int(rows.sum())), draws.dtype)).items():
            low, high = interval(drawn[metric]) if part == "test" else np.full((2, *values.shape), np.nan)
            records += [
                about[target]
                | {"metric": metric, "split": part, "n_positive": n_positive.get(target, -1)}
                | {"value": float(values[t]), "low": float(low[t]), "high": float(high[t])}
                for target, t in wanted.items()
            ]
    truth = problem.truth(test)
    bins = [
        {"calibrated": after} | line
        for after, chance in ((False, scores if categorical and probabilities else None), (True, calibrated))
        if chance is not None
        for line in reliability(problem.kind, truth, chance[test])
    ]
    return Evaluation(records, {name: values[:, -1].astype(np.float32) for name, values in drawn.items()}, bins)


def warn_of_missing_positives(problem: Problem) -> None:
    """Say which targets or classes have no positive test row, and so no value of some metrics on any layer."""
    if problem.kind == "regression":
        return
    missing = np.flatnonzero(~problem.y[problem.split.test].any(axis=0))
    if missing.size:
        log.warning(
            "labels %r: %d of %d targets have no positive test row, and metrics that need one leave them out: %s",
            problem.labels,
            missing.size,
            len(problem.targets),
            ", ".join(problem.targets[t] for t in missing),
        )


def _with_macro(values: Floats) -> Floats:
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
