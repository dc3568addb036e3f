"""Scores of probes: every metric for all targets and all bootstrap draws at once.

A bootstrap draw is a vector of row weights, so metrics take ``weights`` [B, N] beside ``y`` and ``scores`` and give one
value per draw and target. Shape suffixes: B draws, N rows, T targets, C classes.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from sonde.errors import InputError

from .probability_metrics import class_probability_metrics, probability_metrics
from .ranking_metrics import class_ranking_metrics, ranking_metrics
from .regression_metrics import regression_metrics
from .sums import Array, Floats
from .threshold_metrics import class_threshold_metrics, threshold_metrics

Kind = Literal["binary", "multilabel", "multiclass", "regression"]
Family = Callable[[Array, Array, Array], dict[str, Floats]]

# The metrics of a family share its sums.
_FAMILIES: dict[Kind, tuple[Family, ...]] = {
    "binary": (threshold_metrics, ranking_metrics),
    "multilabel": (threshold_metrics, ranking_metrics),
    "multiclass": (class_threshold_metrics, class_ranking_metrics),
    "regression": (regression_metrics,),
}
_PROBABILITY_FAMILIES: dict[Kind, Family] = {
    "binary": probability_metrics,
    "multilabel": probability_metrics,
    "multiclass": class_probability_metrics,
}

PRIMARY: dict[Kind, str] = {
    "binary": "accuracy",
    "multilabel": "average_precision",
    "multiclass": "accuracy",
    "regression": "r2",
}
"""The metric by which each kind of labels is judged unless the user says otherwise."""

CALIBRATED = "calibrated_"
"""What stands before the name of a metric of calibrated probabilities."""

_LOSSES = {"log_loss", "brier", "ece", "mean_squared_error"}


def score(kind: Kind, y: Array, scores: Array, weights: Array | None = None) -> dict[str, Floats]:
    """Compute every metric of a kind of labels that takes any scores.

    Parameters
    ----------
    kind
        What the labels mean.
    y : array [N, T], or [N] of multiclass
        0 or 1; class codes 0..C-1; or numbers.
    scores : array [N, T], or [N, C] of multiclass
        Higher means more positive; a score above 0.5 says yes, the highest of a row its class.
    weights : array [B, N], optional
        Non-negative row weights of each draw; left out, every row counts once.

    Returns
    -------
    dict of arrays [B, T], float64, [T] without weights
        NaN where a metric is not defined; T = 1 for the whole of a multiclass probe.

    Raises
    ------
    InputError
        If shapes or values do not fit.
    """
    return _compute(_FAMILIES[kind], kind, y, scores, weights)


def score_probabilities(kind: Kind, y: Array, chance: Array, weights: Array | None = None) -> dict[str, Floats]:
    """Compute every metric of probabilities; arguments, result and errors as of `score`.

    Raises
    ------
    InputError
        Also if ``chance`` leaves [0, 1].
    """
    chance = np.asarray(chance)
    if not ((chance >= 0) & (chance <= 1) | np.isnan(chance)).all():
        raise InputError("probabilities are wanted, but some scores lie outside [0, 1]: calibrate them first")
    return _compute((_PROBABILITY_FAMILIES[kind],), kind, y, chance, weights)


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of the metric of that name is better; unknown names count as scores."""
    return metric.removeprefix(CALIBRATED) not in _LOSSES


def _compute(
    families: tuple[Family, ...], kind: Kind, y: Array, scores: Array, weights: Array | None
) -> dict[str, Floats]:
    y, scores = np.asarray(y), np.asarray(scores)
    scores = scores if scores.dtype.kind == "f" else scores.astype(np.float64)
    y = _class_codes(y, scores) if kind == "multiclass" else _columns(y, scores, kind)
    draws = _draws(scores, weights)
    values = {name: value for family in families for name, value in family(y, scores, draws).items()}
    return {name: value[0] for name, value in values.items()} if weights is None else values


def _columns(y: Array, scores: Array, kind: Kind) -> Array:
    if y.ndim != 2 or y.shape != scores.shape:
        raise InputError(
            f"y of shape {y.shape} and scores of shape {scores.shape} do not match: give both as [rows, targets]"
        )
    if kind == "regression":
        return y
    if not np.isin(y, (0, 1)).all():
        raise InputError("y holds values other than 0 and 1: code each target as 0 or 1")
    return y.astype(bool)


def _class_codes(y: Array, scores: Array) -> Array:
    if y.ndim != 1 or scores.ndim != 2 or len(y) != len(scores) or y.dtype.kind not in "iu":
        raise InputError(
            f"y of shape {y.shape} ({y.dtype}) and scores of shape {scores.shape} do not match: "
            "give integer codes [rows] and scores [rows, classes]"
        )
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < scores.shape[1]:
        raise InputError(
            f"class codes from {y.min()} to {y.max()} do not fit {scores.shape[1]} columns of scores: "
            "code the classes as 0..n_classes-1"
        )
    return y


def _draws(scores: Array, weights: Array | None) -> Array:
    if not len(scores):
        raise InputError("no rows to score: check the split and the labels")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN: look at the probe's inputs")
    if weights is None:
        return np.ones((1, len(scores)), np.uint8)
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(scores):
        raise InputError(f"weights of shape {weights.shape} do not match {len(scores)} rows: give [draws, rows]")
    if weights.dtype.kind not in "bu" and not (weights >= 0).all():
        raise InputError("weights must not be negative or NaN: give counts or non-negative numbers")
    return weights
