"""Scores of one layer to rows of the results, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import interval
from .metrics import METRICS, PRIMARY, macro
from .problem import Problem

ALL = "all"


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
    truth = problem.truth(test)
    counts = {"n_train": int(training.sum()), "n_test": int(test.sum())}
    positives = _positives(problem, test)
    single_alpha = float("nan") if alpha is None or np.unique(alpha).size > 1 else float(alpha[0])
    all_converged = True if converged is None else bool(converged.all())
    records: list[dict[str, Any]] = []
    primary_draws = np.empty(0)
    for metric in METRICS[problem.kind].values():
        if metric.probabilities and not probabilities:
            continue
        values = metric.compute(truth, scores[test])
        drawn = metric.compute(truth, scores[test], draws)
        low, high = interval(drawn)
        over_all, over_all_drawn = macro(values), macro(drawn)
        if metric.name == PRIMARY[problem.kind]:
            primary_draws = over_all_drawn
        common = counts | {"metric": metric.name}
        whole = {"target": ALL, "alpha": single_alpha, "converged": all_converged, "n_positive": positives.get(ALL, -1)}
        low_all, high_all = interval(over_all_drawn[:, None])
        test_row = {"split": "test", "value": float(over_all), "low": float(low_all[0]), "high": float(high_all[0])}
        records.append(common | whole | test_row)
        cv_values = metric.compute(problem.truth(training), scores[training]) if cross_validated else None
        no_interval = {"split": "cv", "low": float("nan"), "high": float("nan")}
        if cv_values is not None:
            records.append(common | whole | no_interval | {"value": float(macro(cv_values))})
        if problem.kind != "multilabel":
            continue
        for t, target in enumerate(problem.targets):
            own = {
                "target": target,
                "alpha": float("nan") if alpha is None else float(alpha[t]),
                "converged": True if converged is None else bool(converged[t]),
                "n_positive": positives[target],
            }
            own_test = {"split": "test", "value": float(values[t]), "low": float(low[t]), "high": float(high[t])}
            records.append(common | own | own_test)
            if cv_values is not None:
                records.append(common | own | no_interval | {"value": float(cv_values[t])})
    return Evaluation(records, primary_draws)


def _positives(problem: Problem, rows: NDArray[np.bool_]) -> Mapping[str, int]:
    counts = problem.y[rows].sum(axis=0)
    if problem.kind == "binary":
        return {ALL: int(counts[0])}
    if problem.kind == "multilabel":
        return dict(zip(problem.targets, map(int, counts), strict=True)) | {ALL: int(counts.sum())}
    return {}
