"""What a page draws: figures that hold their data, the choices that a reader has, and the data stored once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

DATA = "data"
"""The data set of every figure that its table and its CSV show."""

_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values that the reader chooses.

    Attributes
    ----------
    param
        The parameter of the charts that it sets.
    label
        What is chosen, for people.
    options
        (value, text) pairs.
    value
        The one that is chosen first.
    follows
        By value of the choice before it, where that decides what there is to choose: (value, all values).
    """

    param: str
    label: str
    options: Sequence[tuple[Any, str]]
    value: Any
    follows: Mapping[str, tuple[Any, Sequence[Any]]] | None = None

    @classmethod
    def of(cls, param: str, label: str, values: Sequence[Any], value: Any = None) -> Choice:
        """Choose among values that need no other text; the first unless said."""
        return cls(param, label, [(one, str(one)) for one in values], values[0] if value is None else value)


@dataclass(frozen=True, slots=True, eq=False)
class Figure:
    """A chart with what it takes to draw it, to tell it and to save it.

    Attributes
    ----------
    name
        Of its files, without ending.
    description
        What it shows, with figures, for readers who do not see it.
    chart
        An altair chart of the named data sets, with the parameters of its choices.
    data
        The rows that are drawn: the data set `DATA`.
    titles
        Columns of the table and the CSV, with their heads.
    more
        Other data sets by name.
    title, caption
        What stands above and below it.
    """

    name: str
    description: str
    chart: Any
    data: pd.DataFrame
    titles: Mapping[str, str]
    more: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    title: str = ""
    caption: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """Figures that share choices.

    Attributes
    ----------
    figures
        One or more.
    choices
        What the reader may choose.
    title
        What stands above all of it.
    """

    figures: Sequence[Figure]
    choices: Sequence[Choice] = ()
    title: str = ""

    @property
    def offered(self) -> list[Choice]:
        """The choices that leave any."""
        return [choice for choice in self.choices if len(choice.options) > 1]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What the page's script needs: `specs` of the figures in the order of the page, and `tables` that they share."""

    specs: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, figure: Figure) -> int:
        """Put a figure behind the others and return its number."""
        # Checking a chart against the language's schema takes longer than drawing it; tests do so.
        spec = figure.chart.to_dict(validate=False)
        # The schema's address would be the only link of the data, and the page names the language itself.
        del spec["$schema"]
        spec["description"] = figure.description
        data = {DATA: figure.data} | dict(figure.more)
        self.specs.append(
            {
                "name": figure.name,
                "titles": dict(figure.titles),
                "data": {name: self._table(frame) for name, frame in data.items()},
                "spec": spec,
            }
        )
        return len(self.specs) - 1

    def _table(self, frame: pd.DataFrame) -> int:
        table = {"n": len(frame), "columns": {str(name): _column(frame[name]) for name in frame}}
        number = self._known.setdefault(json.dumps(table), len(self.tables))
        if number == len(self.tables):
            self.tables.append(table)
        return number


def _column(values: pd.Series[Any]) -> Any:
    """Numbers as a list, rounded to what a reader sees of them; texts by their place among the different ones."""
    if not pd.api.types.is_numeric_dtype(values):
        codes, names = pd.factorize(values)
        return {"names": names.tolist(), "codes": codes.tolist()}
    if pd.api.types.is_float_dtype(values):
        return [float(f"{one:.{_DIGITS}g}") if math.isfinite(one) else None for one in values.tolist()]
    return values.tolist()
