"""What the charts of a report have in common: axes, colours, and how one curve is brought out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sonde.probes.plot import PALETTE, curve_names
from sonde.probes.results import Results
from sonde.probes.tables import CURVE

from .figure import Choice

GREY = "#808080"
"""Of what is no curve: on white and on black it is seen alike."""

SCORES = {"value": "score", "low": "from", "high": "to"}
"""Columns of a score with its interval, and their heads."""

ALL_CURVES = "all"
ALONE = f"curve == '{ALL_CURVES}' || datum.curve == curve"
"""Whether a curve is brought out: an expression over the parameter ``curve``."""

_DASHES = ([1, 0], [6, 3], [2, 2], [8, 3, 2, 3])
FEW = 2
"""Bands of more curves lie one upon another until nothing is seen."""


def lines_of(results: Results, labels: str) -> pd.DataFrame:
    """The rows of `Results.summary` of one labels, with the name ``curve`` of each."""
    lines = results.summary(labels=labels)
    return lines.assign(curve=curve_names(lines))


def with_curve(rows: pd.DataFrame, lines: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows of the curves of `lines_of`, alike in these columns too, with the name ``curve`` of each."""
    key = [*CURVE, *columns]
    return rows.merge(lines[[*key, "curve"]], on=key)


def bring_out(names: Sequence[str]) -> Choice:
    """Choose which of several curves is brought out."""
    options = [(ALL_CURVES, "all curves"), *((name, name) for name in names)] if len(names) > 1 else []
    return Choice("curve", "Bring out", options, ALL_CURVES)


def layer_axis() -> Any:
    """The layers from left to right, as numbers."""
    import altair as alt

    axis = alt.Axis(tickMinStep=1, format="d", grid=False)
    return alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(zero=False, nice=False, padding=12))


def curve_colour(names: Sequence[str]) -> tuple[Any, Any]:
    """Colours of the curves, and dashes that tell those of one colour apart; no legend for one curve."""
    import altair as alt

    legend = alt.Legend(title=None, orient="bottom") if len(names) > 1 else None
    dashes = [_DASHES[i // len(PALETTE) % len(_DASHES)] for i in range(len(names))]
    return (
        alt.Color("curve:N", scale=alt.Scale(domain=list(names)), legend=legend),
        alt.StrokeDash("curve:N", scale=alt.Scale(domain=list(names), range=dashes), legend=legend),
    )


def line_opacity() -> Any:
    """Lines and points of the curves that are not brought out are faint."""
    import altair as alt

    return alt.condition(ALONE, alt.value(1), alt.value(0.12))


def band_opacity(names: Sequence[str]) -> Any:
    """Bands are fainter where there are many, and there are none of curves that are not brought out."""
    import altair as alt

    return alt.condition(ALONE, alt.value(0.18 if len(names) <= FEW else 0.07), alt.value(0))


def gradient() -> Any:
    """The legend of a colour that stands for a number."""
    import altair as alt

    return alt.Legend(orient="bottom", gradientLength=180, format=".2f")


def score_tooltip(form: str = ".3f") -> list[Any]:
    """A score with its interval."""
    import altair as alt

    return [alt.Tooltip(f"{name}:Q", title=title, format=form) for name, title in SCORES.items()]
