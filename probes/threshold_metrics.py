"""Metrics of yes-or-no answers: accuracy, balanced accuracy and F1, from one set of counts."""

import numpy as np

from .sums import Array, Floats, macro, one_hot, ratio, sums, totals


def threshold_metrics(y: Array, scores: Array, weights: Array, *, threshold: float = 0.5) -> dict[str, Floats]:
    """Judge the answers score > threshold of each target.

    ``accuracy`` = (TP + TN) / n, ``balanced_accuracy`` = (TP / positives + TN / negatives) / 2 and ``f1`` =
    2 TP / (positives + predicted positives).

    Parameters
    ----------
    y : array [N, T], bool
        Truth.
    scores : array [N, T], float
        Higher means more positive.
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, T], float64
        NaN where the positives, or of balanced accuracy the negatives, have no weight.
    """
    predicted = scores > threshold
    hits, positives, answers = sums(weights, y & predicted, y, predicted)
    total = totals(weights)
    negatives, rejections = total - positives, total - positives - answers + hits
    f1 = ratio(2 * hits, positives + answers)
    return {
        "accuracy": ratio(hits + rejections, total),
        "balanced_accuracy": (ratio(hits, positives) + ratio(rejections, negatives)) / 2,
        "f1": np.where(positives > 0, f1, np.nan),
    }


def class_threshold_metrics(y: Array, scores: Array, weights: Array) -> dict[str, Floats]:
    """Judge the class with the highest score; the first of equal scores wins.

    ``accuracy``; ``balanced_accuracy``, the mean recall of the classes that have weight in y; ``macro_f1``, the mean
    F1 of the classes that have weight in y or in the answers.

    Parameters
    ----------
    y : array [N], integer
        Class codes 0..C-1.
    scores : array [N, C], float
    weights : array [B, N]
        Non-negative row weights of each draw.

    Returns
    -------
    dict of arrays [B, 1], float64
    """
    truth, predicted = one_hot(y, scores.shape[1]), one_hot(scores.argmax(axis=1), scores.shape[1])
    positives, answers, hits = sums(weights, truth, predicted, truth & predicted)
    return {
        "accuracy": ratio(hits.sum(axis=1, keepdims=True), totals(weights)),
        "balanced_accuracy": macro(ratio(hits, positives))[:, None],
        "macro_f1": macro(ratio(2 * hits, positives + answers))[:, None],
    }
