"""Which rows of an estimator's data count, and the folds that its penalty is chosen with."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold, check_cv
from sklearn.utils.validation import check_consistent_length

from sonde.errors import InputError

from .ridge import alpha_array
from .rows import weight_array

_FOLDS = {
    (False, False): KFold,
    (False, True): GroupKFold,
    (True, False): StratifiedKFold,
    (True, True): StratifiedGroupKFold,
}
"""By whether classes are stratified and whether there are groups."""


def checked_weight(sample_weight: Any, n_rows: int) -> NDArray[np.float64] | None:
    """Return checked weights, float64 ``[row]``; InputError if one cannot be used, or none counts."""
    weight = weight_array(sample_weight, np.ones(n_rows, dtype=bool))
    if not used_rows(n_rows, weight).any():
        raise InputError("the weight of every row is zero: leave sample_weight out, or give some row a positive one")
    return weight


def used_rows(n_rows: int, weight: NDArray[np.float64] | None) -> NDArray[np.bool_]:
    """Rows of no weight are as good as absent, also from folds and classes."""
    return np.ones(n_rows, dtype=bool) if weight is None else weight > 0


def penalties_and_folds(
    alphas: Any, cv: Any, y: NDArray[Any], groups: Any, weight: NDArray[np.float64] | None, *, stratify: bool
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return penalties to choose from and the fold of every row; one penalty and one fold if there is no choice."""
    check_consistent_length(y, groups)
    alphas = alpha_array(alphas)
    used = used_rows(len(y), weight)
    if alphas.size > 1:
        folds = _folds(cv, y, None if groups is None else np.asarray(groups), used, stratify=stratify)
        if folds.max() > 0:
            return alphas, folds
        alphas = np.sort(alphas)[[alphas.size // 2]]
        warnings.warn(
            f"{'the classes of ' if stratify else ''}{used.sum()} rows cannot be cross-validated: alpha {alphas[0]:g} "
            "is the middle of the candidates; give one alpha, or more rows or groups",
            UserWarning,
            stacklevel=3,
        )
    return alphas, np.where(used, 0, -1)


def _folds(
    cv: Any, y: NDArray[Any], groups: NDArray[Any] | None, used: NDArray[np.bool_], *, stratify: bool
) -> NDArray[np.int64]:
    """Return the fold of every row, numbered from 0 without gaps; -1 for rows that are not used."""
    folds = np.full(len(y), -1)
    if isinstance(cv, Integral):
        rows = np.flatnonzero(used)
        units, classes = rows if groups is None else groups[rows], y[rows]
        parts = [units[classes == c] for c in np.unique(classes)] if stratify else [units]
        n_folds = min(int(cv), *(np.unique(part).size for part in parts))
        if n_folds < 2:
            return np.where(used, 0, -1)
        splitter = _FOLDS[stratify, groups is not None](n_folds)
        for fold, (_, test) in enumerate(splitter.split(rows, classes, None if groups is None else units)):
            folds[rows[test]] = fold
    else:
        for fold, (train, test) in enumerate(check_cv(cv).split(y, y, groups)):
            if len(train) + len(test) < len(y) or (folds[test] >= 0).any():
                raise InputError(f"part {fold} of cv leaves rows out, or tests some again: give parts of all rows")
            folds[test] = fold
        if folds.min() < 0:
            raise InputError(f"cv never tests row {folds.argmin()}: give parts of all rows")
        folds[~used] = -1
    folds[used] = np.unique(folds[used], return_inverse=True)[1]
    return folds
