"""Reliability: how often what was given a probability is so."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .probability_metrics import bin_of


def reliability(kind: str, y: NDArray[Any], chance: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Count and average the probabilities of each bin, and what came true of them.

    Parameters
    ----------
    kind
        Of the labels. Of ``multiclass`` the highest probability of each row is judged, as its expected calibration
        error does; of others every target's.
    y
        Truth, as `Problem.truth`: class codes ``[row]`` of ``multiclass``, else 0 or 1 ``[row, target]``.
    chance
        Probabilities ``[row, target]``.

    Returns
    -------
    list of dict
        For every bin that holds any: ``bin`` from 0, ``n`` probabilities, their mean ``predicted`` and the share that
        is so, ``observed``.

    References
    ----------
    DeGroot and Fienberg (1983), The comparison and evaluation of forecasters.
    """
    if kind == "multiclass":
        y, chance = chance.argmax(axis=1) == y, chance.max(axis=1)
    said, so = chance.ravel(), np.asarray(y, dtype=np.float64).ravel()
    bins = bin_of(said)
    n, predicted, observed = (np.bincount(bins, weights) for weights in (None, said, so))
    return [
        {"bin": m, "n": int(n[m]), "predicted": float(predicted[m] / n[m]), "observed": float(observed[m] / n[m])}
        for m in np.flatnonzero(n).tolist()
    ]
