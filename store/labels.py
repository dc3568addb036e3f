"""Labels: what probes predict, one value or one row of targets per sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

Kind = Literal["binary", "multiclass", "multilabel", "regression"]
MISSING = -1


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """One label column of a store.

    Attributes
    ----------
    name
        Its name in the store.
    kind
        What the values mean.
    values
        ``binary``: int8 ``[sample]`` of 0, 1; ``multiclass``: int32 ``[sample]``, an index into ``names``;
        ``multilabel``: int8 ``[sample, target]`` of 0, 1; ``regression``: float64 ``[sample]``.
        Missing values are -1, in ``regression`` NaN.
    names
        Class names of ``multiclass``, target names of ``multilabel``, else empty.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Of numpy's own text type a name would not compare equal to what is read back.
        object.__setattr__(self, "names", tuple(map(str, self.names)))
        if (
            not self.name.isprintable()
            or self.name[:1] in ("", ".", "_")
            or "/" in self.name
            or self.name == "zarr.json"
        ):
            raise InputError(f"{self.name!r} cannot be the name of labels: begin with a letter or digit, and no '/'")
        if self.kind not in get_args(Kind):
            raise InputError(
                f"labels {self.name!r}: kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {self.kind!r}"
            )

    def __len__(self) -> int:
        return len(self.values)

    @property
    def present(self) -> NDArray[np.bool_]:
        """Which samples have labels, bool ``[sample]``; a multi-label row counts when no target is missing."""
        known: NDArray[np.bool_] = np.isfinite(self.values) if self.kind == "regression" else self.values != MISSING
        return known if known.ndim == 1 else np.all(known, axis=1)

    @classmethod
    def from_column(
        cls,
        name: str,
        column: Sequence[Any],
        *,
        kind: Kind | None = None,
        classes: Sequence[str] | None = None,
    ) -> Labels:
        """Make labels of a column of plain values; None, NaN and "" are missing.

        Parameters
        ----------
        name
            Name in the store.
        column
            Booleans or 0/1 are ``binary``, text and other integers ``multiclass``, lists of text ``multilabel``,
            other numbers ``regression``.
        kind
            Overrides the guess.
        classes
            Fixed class or target names in their order; found in the column where left out.

        Raises
        ------
        InputError
            If the column has no value, mixes kinds, or has a value outside ``classes``.
        """
        column = [None if _is_missing(value) else value for value in column]
        classes = tuple(map(str, classes)) if classes is not None else None
        known = [value for value in column if value is not None]
        if not known:
            raise InputError(f"labels {name!r}: every value is missing: leave the column out")
        kind = kind or _guess_kind(name, known)
        if kind not in _BUILDERS:
            raise InputError(
                f"labels {name!r}: kind must be one of {', '.join(map(repr, get_args(Kind)))}, got {kind!r}"
            )
        try:
            return _BUILDERS[kind](name, column, known, classes)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"labels {name!r}: not all values are {kind}: {error}; correct them, or give another kind"
            ) from error

    def spread(self, rows: NDArray[np.int64], n_rows: int) -> Labels:
        """Put the value of sample i into row ``rows[i]`` of ``n_rows``; the others are missing."""
        values = np.full((n_rows, *self.values.shape[1:]), self._missing, dtype=self.values.dtype)
        values[rows] = self.values
        return replace(self, values=values)

    def gather(self, rows: NDArray[np.int64], n_samples: int) -> Labels:
        """Take the value of sample i from row ``rows[i]``; samples beyond have none."""
        values = np.full((n_samples, *self.values.shape[1:]), self._missing, dtype=self.values.dtype)
        values[: len(rows)] = self.values[rows]
        return replace(self, values=values)

    def column(self) -> list[Any]:
        """The values as `from_column` takes them: class names, lists of targets, numbers; None where missing."""
        if self.kind == "multiclass":
            return [None if value == MISSING else self.names[value] for value in self.values.tolist()]
        if self.kind == "multilabel":
            return [
                [name for name, value in zip(self.names, row, strict=True) if value == 1] if known else None
                for row, known in zip(self.values.tolist(), self.present, strict=True)
            ]
        return [value if known else None for value, known in zip(self.values.tolist(), self.present, strict=True)]

    @property
    def _missing(self) -> float:
        return np.nan if self.kind == "regression" else MISSING

    def counts(self) -> dict[str, int]:
        """Samples per class, or positives per target."""
        values = self.values[self.present]
        if self.kind == "multilabel":
            return dict(zip(self.names, map(int, values.sum(axis=0)), strict=True))
        if self.kind == "multiclass":
            return dict(zip(self.names, map(int, np.bincount(values, minlength=len(self.names))), strict=True))
        if self.kind == "binary":
            return {str(value): int((values == value).sum()) for value in (0, 1)}
        return {}


def align(
    name: str, ids: Sequence[str], values: Sequence[Any], samples: Sequence[str], ignore_unknown: bool
) -> list[Any]:
    """Bring values, given by sample id, into the order of the samples; None where there is none.

    Raises
    ------
    InputError
        If there are more or fewer ids than values, an id is given twice, or is none of the samples and
        ``ignore_unknown`` is not set.
    """
    if len(ids) != len(values):
        raise InputError(f"labels {name!r}: {len(ids)} sample ids, but {len(values)} values: give one for each")
    table = dict(zip(map(str, ids), values, strict=True))
    if len(table) != len(ids):
        twice = Counter(map(str, ids)).most_common(1)[0][0]
        raise InputError(f"labels {name!r}: sample id {twice!r} is given more than once: leave one of them out")
    known = set(samples)
    unknown = [] if ignore_unknown else [i for i in table if i not in known]
    if unknown:
        raise InputError(
            f"labels {name!r}: {len(unknown)} ids are not in the store, the first is {unknown[0]!r}; "
            "correct them or pass --ignore-unknown"
        )
    return [table.get(i) for i in samples]


def _is_missing(value: Any) -> bool:
    if isinstance(value, float | np.floating):
        return bool(np.isnan(value))
    return value is None or (isinstance(value, str) and value == "")


def _guess_kind(name: str, known: Sequence[Any]) -> Kind:
    types = {
        "list"
        if isinstance(v, list | tuple | set | np.ndarray)
        else "text"
        if isinstance(v, str)
        else "bool"
        if isinstance(v, bool | np.bool_)
        else "int"
        if isinstance(v, int | np.integer) or float(v).is_integer()
        else "float"
        for v in known
    }
    if types == {"list"}:
        return "multilabel"
    if types == {"text"}:
        return "multiclass"
    if types <= {"bool", "int"} and all(v in (0, 1) for v in known):
        return "binary"
    if types <= {"bool", "int"}:
        return "multiclass"
    if types <= {"bool", "int", "float"}:
        return "regression"
    raise InputError(f"labels {name!r} mix {' and '.join(sorted(types))} values; give the column one type")


def _binary(name: str, column: Sequence[Any], known: Sequence[Any], classes: Sequence[str] | None) -> Labels:
    if any(value not in (0, 1) for value in known):
        raise ValueError(f"{next(v for v in known if v not in (0, 1))!r} is neither 0 nor 1")
    values = np.array([MISSING if value is None else int(value) for value in column], dtype=np.int8)
    return Labels(name, "binary", values)


def _multiclass(name: str, column: Sequence[Any], known: Sequence[Any], classes: Sequence[str] | None) -> Labels:
    texts = [None if value is None else _text(value) for value in column]
    names = tuple(classes) if classes else tuple(str(value) for value in _ordered({_plain(v) for v in known}))
    index: dict[str | None, int] = {value: i for i, value in enumerate(names)} | {None: MISSING}
    unknown = [text for text in texts if text not in index]
    if unknown:
        raise InputError(
            f"labels {name!r}: {unknown[0]!r} is not among the classes {list(names)}: correct one of the two"
        )
    return Labels(name, "multiclass", np.array([index[text] for text in texts], dtype=np.int32), names)


def _multilabel(name: str, column: Sequence[Any], known: Sequence[Any], classes: Sequence[str] | None) -> Labels:
    text = next((value for value in known if isinstance(value, str)), None)
    if text is not None:
        raise TypeError(f"{text!r} is text, not a list of names")
    names = tuple(classes) if classes else tuple(sorted({str(value) for values in known for value in values}))
    if not names:
        raise InputError(f"labels {name!r}: no sample has any name, so there are no targets; leave the column out")
    index = {value: i for i, value in enumerate(names)}
    table = np.zeros((len(column), len(names)), dtype=np.int8)
    for row, values in enumerate(column):
        if values is None:
            table[row] = MISSING
            continue
        for value in values:
            if str(value) not in index:
                raise InputError(
                    f"labels {name!r}: {str(value)!r} is not among the classes {list(names)}: correct one of the two"
                )
            table[row, index[str(value)]] = 1
    return Labels(name, "multilabel", table, names)


def _regression(name: str, column: Sequence[Any], known: Sequence[Any], classes: Sequence[str] | None) -> Labels:
    values = np.array([np.nan if value is None else float(value) for value in column], dtype=np.float64)
    if np.isinf(values).any():
        raise ValueError("infinity is no target; leave it out or put a number in its place")
    return Labels(name, "regression", values)


_BUILDERS = {
    "binary": _binary,
    "multiclass": _multiclass,
    "multilabel": _multilabel,
    "regression": _regression,
}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | np.bool_):
        return int(value)
    return int(value) if isinstance(value, float | np.number) and float(value).is_integer() else value


def _text(value: Any) -> str:
    return str(_plain(value))


def _ordered(values: set[Any]) -> list[Any]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))
