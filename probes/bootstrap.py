"""Cluster bootstrap: whole groups are drawn, because rows of one group are not independent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sonde.errors import InputError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference, the ends of its bootstrap interval, and its p-value: float64 of the shape of the scores."""

    value: Floats
    low: Floats
    high: Floats
    p: Floats


def cluster_weights(groups: Sequence[str], n_draws: int, seed: int) -> npt.NDArray[np.unsignedinteger[Any]]:
    """Draw as many groups as there are, with replacement, and weight each row by the draws of its group.

    Equal groups and seed give equal draws, so scores of different layers on the same rows are paired. The
    draws of a group do not depend on the order of the rows.

    Parameters
    ----------
    groups : sequence of str, length N
        Group of each row.
    n_draws : int
        Number of draws B.
    seed : int
        Seed of a `numpy.random.Generator`.

    Returns
    -------
    array [B, N], smallest unsigned integer dtype that holds the counts

    Raises
    ------
    InputError
        If there are fewer than two groups, which have no spread to measure, or no draw is asked for.

    References
    ----------
    Field and Welsh (2007), Bootstrapping clustered data, the "randomized cluster bootstrap".
    """
    if n_draws < 1:
        raise InputError(f"{n_draws} bootstrap draws give no interval: ask for 1000 or more")
    names = sorted(set(groups))
    if len(names) < 2:
        raise InputError(
            f"{len(groups)} test rows form {len(names)} group(s), an interval needs at least 2: "
            "use a finer group column or a larger test part"
        )
    code = {name: i for i, name in enumerate(names)}
    rows = np.fromiter((code[group] for group in groups), np.intp, len(groups))
    rng = np.random.default_rng(seed)
    counts = np.empty((n_draws, len(names)), np.uint16)
    for draw in range(n_draws):
        counts[draw] = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
    return counts.astype(np.min_scalar_type(int(counts.max())))[:, rows]


def interval(draws: Floats, level: float = 0.95) -> tuple[Floats, Floats]:
    """Compute the percentile interval [q_{(1−level)/2}, q_{(1+level)/2}] of the draws.

    Parameters
    ----------
    draws : array [B, ...], float
        A score per draw; draws without a score (NaN) are left out.
    level : float
        Coverage, in (0, 1).

    Returns
    -------
    low, high : arrays [...], float64
        Linearly interpolated quantiles; NaN where every draw is NaN.

    Raises
    ------
    InputError
        If the level is not in (0, 1).

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 13.3.
    """
    if not 0 < level < 1:
        raise InputError(f"interval level {level} is not between 0 and 1: 0.95 is usual")
    # NaN sorts to the end, so one sort serves every column whatever its number of valid draws.
    ordered = np.sort(np.asarray(draws, dtype=np.float64), axis=0)
    n_valid = np.count_nonzero(~np.isnan(ordered), axis=0)
    return _quantile(ordered, n_valid, (1 - level) / 2), _quantile(ordered, n_valid, (1 + level) / 2)


def paired_difference(
    value: Floats | float,
    other: Floats | float,
    draws: npt.NDArray[np.floating[Any]],
    other_draws: npt.NDArray[np.floating[Any]],
    level: float = 0.95,
) -> Difference:
    """Compute value − other, the percentile interval of the draws' differences d, and the p-value of no difference.

    p = 2 min(1 + #{d ≤ 0}, 1 + #{d ≥ 0}) / (B + 1), at most 1: up to the ones, which keep it from being 0, the level at
    which an end of the percentile interval comes to lie on 0. It is two-sided, and of this one comparison.

    Parameters
    ----------
    value, other : arrays [...] or float
        Scores on the test rows.
    draws, other_draws : arrays [B, ...]
        Their scores under the same weights of `cluster_weights`.
    level : float
        Coverage, in (0, 1).

    Raises
    ------
    InputError
        If the draws have different shapes and so cannot be paired.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, sections 13.3 and 15.4.
    Phipson and Smyth (2010), Permutation p-values should never be zero, for the ones.
    """
    draws, other_draws = np.asarray(draws, dtype=np.float64), np.asarray(other_draws, dtype=np.float64)
    if draws.shape != other_draws.shape:
        raise InputError(
            f"draws of shapes {draws.shape} and {other_draws.shape} cannot be paired: score both with the same weights"
        )
    found = draws - other_draws
    low, high = interval(found, level)
    n_valid = np.count_nonzero(~np.isnan(found), axis=0)
    rarer = np.minimum(np.count_nonzero(found <= 0, axis=0), np.count_nonzero(found >= 0, axis=0))
    p = np.where(n_valid > 0, np.minimum(2 * (1 + rarer) / (n_valid + 1), 1), np.nan)
    return Difference(np.asarray(value, dtype=np.float64) - np.asarray(other, dtype=np.float64), low, high, p)


def _quantile(ordered: Floats, n_valid: npt.NDArray[np.intp], q: float) -> Floats:
    place = q * np.maximum(n_valid - 1, 0)
    below = np.floor(place).astype(np.intp)
    above = np.minimum(below + 1, np.maximum(n_valid - 1, 0))
    low = np.take_along_axis(ordered, below[None], axis=0)[0]
    high = np.take_along_axis(ordered, above[None], axis=0)[0]
    return np.asarray(low + (place - below) * (high - low), dtype=np.float64)
