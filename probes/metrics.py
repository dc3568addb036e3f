"""Scores of probes: every metric for all targets and all bootstrap draws at once.

A bootstrap draw is a vector of row weights, so a metric takes ``weights`` [B, N] beside ``y`` and ``scores``
and gives one value per draw and target. Shape suffixes: B draws, N rows, T targets, C classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sonde.errors import InputError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Kind = Literal["binary", "multilabel", "multiclass", "regression"]

# A block of weights that stays in a core's second-level cache: larger ones were measured four times slower.
_BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True, slots=True)
class Metric:
    """A score with what a caller has to know before using it.

    Attributes
    ----------
    name : str
        Its name in the results.
    compute : callable
        ``compute(y, scores, weights=None)`` gives [T] without weights and [B, T] with weights [B, N]; a
        metric of a whole multiclass probe has T = 1.
    higher_is_better : bool
        False for losses.
    probabilities : bool
        Whether ``scores`` must lie in [0, 1].
    """

    name: str
    compute: Callable[..., Floats]
    higher_is_better: bool = True
    probabilities: bool = False


def average_precision(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute AP = Σ_k (R_k − R_{k−1}) P_k over the distinct thresholds of each target.

    Parameters
    ----------
    y : array [N, T], 0 or 1
        Truth.
    scores : array [N, T], float
        Higher means more positive; equal scores share a threshold.
    weights : array [B, N], optional
        Non-negative row weights of each draw.

    Returns
    -------
    array [T] or [B, T], float64
        NaN where the weighted truth has no positive.

    Raises
    ------
    InputError
        If shapes or values do not fit.
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    out = np.full((len(weights_BN), y.shape[1]), np.nan)
    for t in range(y.shape[1]):
        order = np.argsort(-scores[:, t], kind="stable")
        positive = np.flatnonzero(y[order, t])
        if not len(positive):
            continue
        ordered = scores[order, t]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(order) - 1)
        end_of_tie = ends[np.searchsorted(ends, positive)]
        last_in_tie = np.searchsorted(positive, end_of_tie, side="right") - 1
        for rows, block in _blocks(weights_BN):
            sorted_weights = np.take(block, order, axis=1)
            gained = sorted_weights[:, positive]
            seen = np.cumsum(sorted_weights, axis=1)[:, end_of_tie]
            found = np.cumsum(gained, axis=1)
            precision = np.divide(found[:, last_in_tie], seen, out=np.zeros_like(seen), where=seen > 0)
            out[rows, t] = _ratio(np.einsum("bp,bp->b", gained, precision), found[:, -1])
    return _like(weights, out)


def auroc(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute P(score of a positive > score of a negative) + ½ P(equal) for each target.

    Shapes, errors and NaN as in `average_precision`; NaN also where the weighted truth has no negative.
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    out = np.full((len(weights_BN), y.shape[1]), np.nan)
    for t in range(y.shape[1]):
        positive, negative = np.flatnonzero(y[:, t]), np.flatnonzero(~y[:, t])
        if not len(positive) or not len(negative):
            continue
        negative = negative[np.argsort(scores[negative, t], kind="stable")]
        below = np.searchsorted(scores[negative, t], scores[positive, t], side="left")
        not_above = np.searchsorted(scores[negative, t], scores[positive, t], side="right")
        for rows, block in _blocks(weights_BN):
            gained = np.take(block, positive, axis=1)
            beaten = np.zeros((len(block), len(negative) + 1))
            np.cumsum(np.take(block, negative, axis=1), axis=1, out=beaten[:, 1:])
            wins = np.einsum("bp,bp->b", gained, beaten[:, below] + beaten[:, not_above]) / 2
            out[rows, t] = _ratio(wins, gained.sum(axis=1) * beaten[:, -1])
    return _like(weights, out)


def accuracy(y: Array, scores: Array, weights: Array | None = None, *, threshold: float = 0.5) -> Floats:
    """Compute the weighted share of rows with (score > threshold) = y, for each target.

    Shapes and errors as in `average_precision`.
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    return _like(weights, _average(weights_BN, (scores > threshold) == y))


def balanced_accuracy(y: Array, scores: Array, weights: Array | None = None, *, threshold: float = 0.5) -> Floats:
    """Compute (TP / positives + TN / negatives) / 2 for each target; NaN where either has no weight.

    Shapes and errors as in `average_precision`.
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    predicted = scores > threshold
    sensitivity = _ratio(_sums(weights_BN, y & predicted), _sums(weights_BN, y))
    specificity = _ratio(_sums(weights_BN, ~y & ~predicted), _sums(weights_BN, ~y))
    return _like(weights, (sensitivity + specificity) / 2)


def f1(y: Array, scores: Array, weights: Array | None = None, *, threshold: float = 0.5) -> Floats:
    """Compute 2 TP / (positives + predicted positives) for each target; NaN where positives have no weight.

    Shapes and errors as in `average_precision`.
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    predicted = scores > threshold
    positives = _sums(weights_BN, y)
    value = _ratio(2 * _sums(weights_BN, y & predicted), positives + _sums(weights_BN, predicted))
    return _like(weights, np.where(positives > 0, value, np.nan))


def log_loss(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute the weighted mean of −y ln p − (1 − y) ln(1 − p) per target, in nats.

    ``scores`` are probabilities, clipped to [ε, 1 − ε] with the ε of their dtype; shapes as in
    `average_precision`.

    Raises
    ------
    InputError
        If a score lies outside [0, 1].
    """
    y, scores, weights_BN = _binary_inputs(y, scores, weights)
    chance = _probabilities(scores)
    return _like(weights, _average(weights_BN, -np.log(np.where(y, chance, 1 - chance))))


def multiclass_accuracy(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute the weighted share of rows whose highest score is that of their class.

    Parameters
    ----------
    y : array [N], integer
        Class codes 0..C-1.
    scores : array [N, C], float
        The first of equal scores wins.
    weights : array [B, N], optional
        Non-negative row weights of each draw.

    Returns
    -------
    array [1] or [B, 1], float64

    Raises
    ------
    InputError
        If shapes or values do not fit.
    """
    y, scores, weights_BN = _multiclass_inputs(y, scores, weights)
    return _like(weights, _average(weights_BN, (scores.argmax(axis=1) == y)[:, None]))


def multiclass_balanced_accuracy(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute the mean recall of the classes that have weight in y.

    Shapes and errors as in `multiclass_accuracy`.
    """
    y, scores, weights_BN = _multiclass_inputs(y, scores, weights)
    truth, predicted = _one_hot(y, scores.shape[1]), _one_hot(scores.argmax(axis=1), scores.shape[1])
    recall = _ratio(_sums(weights_BN, truth & predicted), _sums(weights_BN, truth))
    return _like(weights, macro(recall)[:, None])


def macro_f1(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute the mean F1 of the classes that have weight in y or in the predictions.

    Shapes and errors as in `multiclass_accuracy`.
    """
    y, scores, weights_BN = _multiclass_inputs(y, scores, weights)
    truth, predicted = _one_hot(y, scores.shape[1]), _one_hot(scores.argmax(axis=1), scores.shape[1])
    either = _sums(weights_BN, truth) + _sums(weights_BN, predicted)
    return _like(weights, macro(_ratio(2 * _sums(weights_BN, truth & predicted), either))[:, None])


def multiclass_log_loss(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute the weighted mean of −ln p(class of the row), in nats; shapes as in `multiclass_accuracy`.

    Raises
    ------
    InputError
        If a score lies outside [0, 1].
    """
    y, scores, weights_BN = _multiclass_inputs(y, scores, weights)
    chance = _probabilities(scores)
    return _like(weights, _average(weights_BN, -np.log(chance[np.arange(len(y)), y])[:, None]))


def r2(y: Array, scores: Array, weights: Array | None = None) -> Floats:
    """Compute R² = 1 − Σ w (y − s)² / Σ w (y − ȳ_w)² for each target; NaN where y does not vary.

    Shapes and errors as in `average_precision`, y any number.
    """
    y, scores, weights_BN = _inputs(y, scores, weights)
    y, scores = y.astype(np.float64), scores.astype(np.float64)
    # The total is a difference of sums: centring first keeps its digits.
    centred = y - y.mean(axis=0)
    squares = _sums(weights_BN, centred**2)
    total = squares - _ratio(_sums(weights_BN, centred) ** 2, weights_BN.sum(axis=1, dtype=np.float64)[:, None])
    varies = total > 1e-12 * squares
    return _like(weights, 1 - _ratio(_sums(weights_BN, (y - scores) ** 2), np.where(varies, total, 0.0)))


def macro(values: Array) -> Floats:
    """Average over the last axis without targets that have no value (NaN); NaN only where nothing is left."""
    valid = ~np.isnan(values)
    return _ratio(np.where(valid, values, 0.0).sum(axis=-1), valid.sum(axis=-1))


def _registry(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


_BINARY = (
    Metric("accuracy", accuracy),
    Metric("balanced_accuracy", balanced_accuracy),
    Metric("average_precision", average_precision),
    Metric("auroc", auroc),
    Metric("f1", f1),
    Metric("log_loss", log_loss, higher_is_better=False, probabilities=True),
)

METRICS: dict[Kind, dict[str, Metric]] = {
    "binary": _registry(*_BINARY),
    "multilabel": _registry(*_BINARY),
    "multiclass": _registry(
        Metric("accuracy", multiclass_accuracy),
        Metric("balanced_accuracy", multiclass_balanced_accuracy),
        Metric("macro_f1", macro_f1),
        Metric("log_loss", multiclass_log_loss, higher_is_better=False, probabilities=True),
    ),
    "regression": _registry(Metric("r2", r2)),
}
"""The metrics of each kind of labels."""

PRIMARY: dict[Kind, str] = {
    "binary": "accuracy",
    "multilabel": "average_precision",
    "multiclass": "accuracy",
    "regression": "r2",
}
"""The metric by which each kind of labels is judged unless the user says otherwise."""


def higher_is_better(metric: str) -> bool:
    """Whether a higher value of the metric of that name is better; unknown names count as scores."""
    return all(known[metric].higher_is_better for known in METRICS.values() if metric in known)


def _inputs(y: Array, scores: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    y, scores = np.asarray(y), _floats(scores)
    if y.ndim != 2 or y.shape != scores.shape:
        raise InputError(
            f"y of shape {y.shape} and scores of shape {scores.shape} do not match: give both as [rows, targets]"
        )
    return y, scores, _weights(scores, weights)


def _binary_inputs(y: Array, scores: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    y, scores, weights = _inputs(y, scores, weights)
    if not np.isin(y, (0, 1)).all():
        raise InputError("y holds values other than 0 and 1: code each target as 0 or 1")
    return y.astype(bool), scores, weights


def _multiclass_inputs(y: Array, scores: Array, weights: Array | None) -> tuple[Array, Array, Array]:
    y, scores = np.asarray(y), _floats(scores)
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
    return y, scores, _weights(scores, weights)


def _floats(scores: Array) -> Array:
    scores = np.asarray(scores)
    return scores if scores.dtype.kind == "f" else scores.astype(np.float64)


def _weights(scores: Array, weights: Array | None) -> Array:
    if not len(scores):
        raise InputError("no rows to score: check the split and the labels")
    if np.isnan(scores).any():
        raise InputError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN: look at the probe's inputs")
    if weights is None:
        return np.ones((1, len(scores)))
    weights = np.asarray(weights)
    if weights.ndim != 2 or weights.shape[1] != len(scores):
        raise InputError(f"weights of shape {weights.shape} do not match {len(scores)} rows: give [draws, rows]")
    if weights.dtype.kind not in "bu" and not (weights >= 0).all():
        raise InputError("weights must not be negative or NaN: give counts or non-negative numbers")
    return weights


def _probabilities(scores: Array) -> Floats:
    if not ((scores >= 0) & (scores <= 1)).all():
        raise InputError("log_loss needs probabilities, but some scores lie outside [0, 1]: pick another metric")
    eps = float(np.finfo(scores.dtype).eps)
    return np.clip(scores.astype(np.float64), eps, 1 - eps)


def _blocks(weights: Array) -> Iterator[tuple[slice, Floats]]:
    size = max(1, _BLOCK_ELEMENTS // weights.shape[1])
    for start in range(0, len(weights), size):
        rows = slice(start, start + size)
        yield rows, weights[rows].astype(np.float64)


def _sums(weights: Array, values: Array) -> Floats:
    """Compute W V with weights [B, N] and values [N, T], converting only a block of draws at a time."""
    values = values.astype(np.float64)
    out = np.empty((len(weights), values.shape[1]))
    for rows, block in _blocks(weights):
        np.matmul(block, values, out=out[rows])
    return out


def _average(weights: Array, values: Array) -> Floats:
    return _ratio(_sums(weights, values), weights.sum(axis=1, dtype=np.float64)[:, None])


def _ratio(numerator: Array, denominator: Array) -> Floats:
    """Divide, with NaN instead of a division by zero."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    out: Floats = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def _one_hot(codes: Array, n_classes: int) -> npt.NDArray[np.bool_]:
    return np.asarray(codes[:, None] == np.arange(n_classes))


def _like(weights: Array | None, values: Floats) -> Floats:
    return np.asarray(values[0]) if weights is None else values
