"""What a probe is asked: targets of the labelled samples, test rows and folds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError
from sonde.store import Kind, Labels, Store

from .splits import Split, split_groups

log = logging.getLogger(__name__)

ALL = "all"
"""Name of all targets together in the results."""


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """One set of labels made ready for probing; the same for every layer.

    Attributes
    ----------
    labels
        Their name.
    kind
        What they mean.
    targets
        Names of the columns of ``y``: one of binary labels and regression, the classes, or the multi-label targets.
    y
        float64 ``[sample, target]``: 0/1, one-hot classes, or values; zero where a sample is not used.
    split
        Test rows and folds.
    groups
        Group of each sample.
    left_out
        Multi-label targets that cannot be probed, and why.
    """

    labels: str
    kind: Kind
    targets: tuple[str, ...]
    y: NDArray[np.float64]
    split: Split
    groups: NDArray[np.str_]
    left_out: dict[str, str]

    @classmethod
    def of(
        cls,
        store: Store,
        name: str,
        *,
        where: Mapping[str, str] | None = None,
        title: str | None = None,
        test_size: float = 0.25,
        n_folds: int = 5,
        seed: int = 0,
    ) -> Problem:
        """Read labels from a complete store and part its samples by group.

        Samples without labels or activations are not used. A ``split`` column of the store decides what is tested.

        Parameters
        ----------
        where
            Labels or columns -> what they must say of a sample, for it to be used.
        title
            What the results call the labels, if not by their name and ``where``.

        Raises
        ------
        StoreError
            If there are no such labels.
        InputError
            If no sample can be used, there is one class only, a class is in too few groups, there are too few
            groups, or a target has the name ``all``.
        """
        labels = store.labels(name)
        groups = store.groups
        used = labels.present & store.valid
        if not used.any():
            raise InputError(
                f"labels {name!r}: no sample has both labels and activations: add labels of those not skipped"
            )
        for column, value in (where or {}).items():
            said = names_of(store, column)
            used &= said == value
            if not used.any():
                there = ", ".join(map(repr, np.unique(said[labels.present])[:9].tolist()))
                raise InputError(f"labels {name!r}: no sample where {column} is {value!r}; it is {there}")
        given: Sequence[str] | None = store.columns["split"].tolist() if "split" in store.columns else None
        split = split_groups(groups.tolist(), test_size=test_size, n_folds=n_folds, seed=seed, split=given, used=used)
        y, targets = columns_of(labels)
        y[~used] = 0
        kept, left_out = _usable(labels, y, targets, split)
        if title is None:
            title = ", ".join([name, *(f"{column}={value}" for column, value in (where or {}).items())])
        return cls(title, labels.kind, tuple(np.array(targets)[kept].tolist()), y[:, kept], split, groups, left_out)

    @property
    def per_target(self) -> bool:
        """Whether targets are separate questions; the classes of one multi-class question are not."""
        return self.kind != "multiclass"

    def truth(self, rows: NDArray[np.bool_]) -> NDArray[Any]:
        """True answers of some rows as the metrics take them: class numbers ``[n]``, else ``[n, target]``."""
        y = self.y[rows]
        return np.argmax(y, axis=1) if self.kind == "multiclass" else y

    def prior(self) -> NDArray[np.float64]:
        """Mean of every target over the training rows, float64 ``[target]``: what a constant answer says."""
        return np.asarray(self.y[self.split.folds >= 0].mean(axis=0))


def names_of(store: Store, name: str) -> NDArray[np.str_]:
    """What a column of the store, or classes of its labels, say of each sample; empty where they say nothing.

    Raises
    ------
    StoreError
        If there is neither.
    InputError
        If the labels are no classes.
    """
    if name in store.columns:
        return np.asarray(store.columns[name], dtype=np.str_)
    found = store.labels(name)
    if found.kind != "multiclass":
        raise InputError(f"labels {name!r} are {found.kind}: types and variants are classes, one for each sample")
    return np.asarray([found.names[value] if value >= 0 else "" for value in found.values.tolist()])


def columns_of(labels: Labels) -> tuple[NDArray[np.float64], list[str]]:
    """Targets of labels, float64 ``[sample, target]``, and their names; InputError if one has the name ``all``."""
    if labels.kind == "multiclass":
        return np.eye(len(labels.names))[np.maximum(labels.values, 0)], list(labels.names)
    if ALL in labels.names:
        raise InputError(
            f"labels {labels.name!r}: {ALL!r} stands for all targets together, no target can have its name"
        )
    values = labels.values.astype(np.float64)
    return (values, list(labels.names)) if values.ndim == 2 else (values[:, None], [labels.name])


def _usable(
    labels: Labels, y: NDArray[np.float64], targets: list[str], split: Split
) -> tuple[NDArray[np.bool_], dict[str, str]]:
    """Find the columns that vary in every training part; classes of one question are kept or refused as a whole."""
    used = (split.folds >= 0) | split.test
    training = [y[(split.folds >= 0) & (split.folds != fold)] for fold in range(split.n_folds)]
    varies: NDArray[np.bool_] = np.all([np.ptp(part, axis=0) > 0 for part in training], axis=0)
    if labels.kind == "multiclass":
        present: NDArray[np.bool_] = np.any(y[used], axis=0)
        _ensure_classes(labels.name, [name for name, there in zip(targets, present, strict=True) if there])
        _ensure_common(labels.name, [name for name, fine in zip(targets, varies | ~present, strict=True) if not fine])
        return present, {name: "no sample has it" for name, there in zip(targets, present, strict=True) if not there}
    if labels.kind == "binary":
        _ensure_classes(labels.name, [str(int(value)) for value in np.unique(y[used])])
        constant = [part[0, 0] for part in training if np.ptp(part) == 0]
        _ensure_common(labels.name, [str(int(1 - value)) for value in constant])
    elif not varies.any():
        what = "one value only" if labels.kind == "regression" else "no target with both positives and negatives"
        raise InputError(
            f"labels {labels.name!r} have {what} in a training part: add samples, use fewer folds, or other labels"
        )
    why = "positives or negatives are missing from a training part"
    left_out = {name: why for name, fine in zip(targets, varies, strict=True) if not fine}
    if left_out:
        first = next(iter(left_out))
        log.warning(
            "labels %r: %d of %d targets are left out, such as %r: %s",
            labels.name,
            len(left_out),
            len(targets),
            first,
            why,
        )
    return varies, left_out


def _ensure_classes(name: str, present: Sequence[str]) -> None:
    if len(present) < 2:
        raise InputError(f"labels {name!r} have one class only, {present[0]!r}: a probe needs two or more")


def _ensure_common(name: str, rare: Sequence[str]) -> None:
    if rare:
        raise InputError(
            f"labels {name!r}: the class {rare[0]!r} is missing from a training part: it is in too few groups; "
            "merge it with another, leave its samples out, or use fewer folds"
        )
