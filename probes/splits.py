"""Test rows and cross-validation folds that never split a group."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sonde.errors import InputError

_PARTS: Mapping[str, str] = {
    "train": "train",
    "val": "train",
    "validation": "train",
    "dev": "train",
    "test": "test",
    "": "",
}


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are tested, and in which fold the others are.

    Attributes
    ----------
    test : array [N], bool
        Rows that are scored once, at the end.
    folds : array [N], int16
        0..n_folds-1 for training rows, -1 for test rows and rows that are not used.
    hash : str
        Hexadecimal digest of the assignment: equal hashes mean the same rows in the same parts.
    n_folds : int
        Number of folds.
    """

    test: npt.NDArray[np.bool_]
    folds: npt.NDArray[np.int16]
    hash: str
    n_folds: int


def split_groups(
    groups: Sequence[str],
    *,
    test_size: float = 0.25,
    n_folds: int = 5,
    seed: int = 0,
    split: Sequence[str | None] | None = None,
    used: npt.NDArray[np.bool_] | None = None,
) -> Split:
    """Part the rows into a test set and folds, group by group.

    Groups are ranked by a hash of seed and name, so the parts depend on the set of groups and their sizes but
    not on the order of the rows, the process or the platform. The first groups of the ranking whose rows come
    closest to ``test_size`` are the test set; the others, largest first, each go to the fold with the fewest
    rows.

    Parameters
    ----------
    groups : sequence of str, length N
        Group of each row.
    test_size : float
        Share of the used rows to test, in (0, 1); without effect if ``split`` is given.
    n_folds : int
        Number of cross-validation folds, at least 2.
    seed : int
        Changes the ranking.
    split : sequence of str, length N, optional
        A given part of each row: ``train``, ``val``, ``validation`` or ``dev`` (all training) or ``test``; an
        empty string or None leaves the row out.
    used : array [N], bool, optional
        False leaves the row out, e.g. because it has no label.

    Raises
    ------
    InputError
        If lengths differ, an option is out of range, a given part is unknown or cuts a group, or there are
        too few groups.
    """
    n_rows = len(groups)
    if n_folds < 2 or n_folds > np.iinfo(np.int16).max:
        raise InputError(f"{n_folds} folds cannot cross-validate: ask for 2 or more, 5 is usual")
    if split is None and not 0 < test_size < 1:
        raise InputError(f"test_size {test_size} is not a share between 0 and 1: 0.25 is usual")
    for name, column in (("split", split), ("used", used)):
        if column is not None and len(column) != n_rows:
            raise InputError(f"{len(column)} values of {name!r} for {n_rows} rows: give one per row")
    keep = np.ones(n_rows, bool) if used is None else np.asarray(used, bool)
    parts = None if split is None else np.array([_part(value, row) for row, value in enumerate(split)])
    if parts is not None:
        keep = keep & (parts != "")
    kept = np.flatnonzero(keep)
    sizes: dict[str, int] = {}
    for row in kept:
        sizes[groups[row]] = sizes.get(groups[row], 0) + 1
    ranked = sorted(sizes, key=lambda group: _rank(seed, group))
    if parts is None:
        n_test = _n_test_groups([sizes[group] for group in ranked], test_size, n_folds)
        test_groups = set(ranked[:n_test])
    else:
        test_groups = _given_test_groups(groups, parts, kept)
    fold_of = _fill_folds([group for group in ranked if group not in test_groups], sizes, n_folds)
    test, folds = np.zeros(n_rows, bool), np.full(n_rows, -1, np.int16)
    for row in kept:
        test[row] = groups[row] in test_groups
        folds[row] = fold_of.get(groups[row], -1)
    digest = hashlib.blake2b(test.tobytes() + folds.astype("<i2").tobytes(), digest_size=16).hexdigest()
    return Split(test, folds, digest, n_folds)


def _rank(seed: int, group: str) -> tuple[bytes, str]:
    digest = hashlib.blake2b(f"{seed}\0{group}".encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return digest, group


def _part(value: str | None, row: int) -> str:
    # A missing value of a pandas column arrives as a float NaN.
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    part = _PARTS.get(str(value).strip().lower())
    if part is None:
        raise InputError(
            f"row {row} has the unknown split {value!r}: use train, val, validation, dev or test, or leave it empty"
        )
    return part


def _given_test_groups(groups: Sequence[str], parts: npt.NDArray[np.str_], kept: npt.NDArray[np.intp]) -> set[str]:
    part_of: dict[str, str] = {}
    for row in kept:
        part = str(parts[row])
        if part_of.setdefault(groups[row], part) != part:
            raise InputError(
                f"group {groups[row]!r} has rows in train and in test: move it to one side, "
                "or drop the split column for a split by group"
            )
    test_groups = {group for group, part in part_of.items() if part == "test"}
    if not test_groups:
        raise InputError(
            "the split column leaves no usable row to test: mark rows as 'test', "
            "or drop the column for a split by group"
        )
    return test_groups


def _n_test_groups(sizes: Sequence[int], test_size: float, n_folds: int) -> int:
    # Two test groups are the fewest with a bootstrap interval.
    most = len(sizes) - n_folds
    if most < 2:
        raise InputError(
            f"{len(sizes)} group(s) are too few for 2 test groups and {n_folds} folds: ask for fewer folds, "
            "use a finer group column, or add samples"
        )
    distance = np.abs(np.cumsum(sizes)[1:most] - test_size * sum(sizes))
    return 2 + int(np.argmin(distance))


def _fill_folds(ranked: Sequence[str], sizes: Mapping[str, int], n_folds: int) -> dict[str, int]:
    if len(ranked) < n_folds:
        raise InputError(
            f"{len(ranked)} training group(s) cannot fill {n_folds} folds: "
            f"ask for at most {max(len(ranked), 2)} folds, use a finer group column, or add samples"
        )
    filled = [0] * n_folds
    fold_of: dict[str, int] = {}
    for group in sorted(ranked, key=lambda group: -sizes[group]):
        fold = filled.index(min(filled))
        fold_of[group] = fold
        filled[fold] += sizes[group]
    return fold_of
