"""Weights of classes, for each training part and target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from sonde.errors import InputError

OneClassWeight: TypeAlias = Literal["balanced"] | Mapping[int, float] | None
ClassWeight: TypeAlias = OneClassWeight | Sequence[OneClassWeight]
"""``"balanced"``, weights by class number (1 for classes left out), or one of these for each multi-label target."""


def class_weight_array(given: ClassWeight, sums: np.ndarray[Any, Any], *, multinomial: bool) -> np.ndarray[Any, Any]:
    r"""Return the factors on the weights of rows by their label, for every training part.

    ``"balanced"``: :math:`\sum_i s_i \,/\, (K \sum_{i: y_i = k} s_i)` for class k of K over the rows of the training
    part, as scikit-learn's ``compute_class_weight`` (King & Zeng 2001, "Logistic regression in rare events data").

    Parameters
    ----------
    given : ClassWeight
        A sequence has T entries.
    sums : float64 array of shape [S, T, 2], numpy
        Sums of the sample weights of each training part, of rows with the labels 0 and 1.
    multinomial : bool
        Whether the T columns are the classes of one target; else each is a target of the classes 0 and 1.

    Returns
    -------
    float64 array of shape [S, T, 2]
        Added over the columns of a target they give a row's factor: for ``multinomial``, label 0 has none.

    Raises
    ------
    InputError
        If a class is not one of the target's, a weight is not positive and finite, or there are more or fewer entries
        than targets.
    """
    if multinomial:
        if not (given is None or isinstance(given, (str, Mapping))):
            raise InputError(f"class_weight has {len(given)} entries: give one mapping for the classes of one target")
        return np.stack([np.zeros_like(sums[:, :, 1]), _factors(given, sums[:, :, 1])], axis=2)
    each = [given] * sums.shape[1] if given is None or isinstance(given, (str, Mapping)) else list(given)
    if len(each) != sums.shape[1]:
        raise InputError(f"class_weight has {len(each)} entries for {sums.shape[1]} targets: give one, or one for each")
    return np.stack([_factors(one, sums[:, t, :]) for t, one in enumerate(each)], axis=1)


def _factors(given: OneClassWeight, sums: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the factors [S, K] of K classes whose rows weigh `sums` ([S, K])."""
    if isinstance(given, str):
        if given != "balanced":
            raise InputError(f"class_weight {given!r}: give 'balanced', a mapping of classes to weights, or None")
        # A class that a training part lacks is told of when its intercept is asked for.
        return np.asarray(sums.sum(axis=1, keepdims=True) / (sums.shape[1] * np.where(sums > 0, sums, 1.0)))
    factors = np.ones_like(sums)
    for label, weight in (given or {}).items():
        if label not in range(sums.shape[1]):
            raise InputError(f"class_weight names the class {label!r}: the classes are 0 to {sums.shape[1] - 1}")
        if not (weight > 0 and np.isfinite(weight)):
            raise InputError(f"class_weight of class {label} is {weight}: give a positive and finite number")
        factors[:, int(label)] = weight
    return factors
