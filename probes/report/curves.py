"""Scores by layer, with what would be scored anyway."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sonde.probes.results import BASELINES, MAJORITY, TEXT, Results
from sonde.probes.tables import CURVE

from .axes import (
    ALL_CURVES,
    ALONE,
    GREY,
    SCORES,
    band_opacity,
    bring_out,
    curve_colour,
    layer_axis,
    line_opacity,
    score_tooltip,
    with_curve,
)
from .figure import DATA, Choice, Figure, Panel
from .words import estimate, metric_name, records

_TITLES = {"curve": "curve", "metric": "metric", "layer": "layer", **SCORES, "n_test": "test rows"}
_NULL_TITLES = {"null": "permuted labels", "null_low": "permuted from", "null_high": "permuted to"}
_BASELINE_NAMES = {MAJORITY: "majority", TEXT: "words alone"}


def curve_panel(results: Results, lines: pd.DataFrame) -> Panel:
    """Draw the test scores of the curves of `lines_of` by layer, in the metric that the reader chooses."""
    import altair as alt

    labels, names = str(lines["labels"].iloc[0]), lines["curve"].tolist()
    rows, baselines = _rows(results, lines), _baselines(results, labels)
    metrics = list(dict.fromkeys(rows["metric"]))
    permuted = bool(rows["null_low"].notna().any())
    title = alt.TitleParams(alt.ExprRef("metric"), anchor="start", frame="group", fontWeight="normal", fontSize=13)
    curves = _curves(names, permuted=permuted, single=bool(rows["single"].any()))
    chart = alt.layer(*(_null(names) if permuted else []), *(_rules(baselines) if len(baselines) else []), *curves)
    chart = chart.add_params(alt.param("metric", value=metrics[0]), alt.param("curve", value=ALL_CURVES))
    figure = Figure(
        name=f"curves-{labels}",
        description=f"{metrics[0]} by layer on the test rows. {_told(lines)}",
        chart=chart.properties(width="container", height=320, title=title),
        data=rows,
        titles=_TITLES | (_NULL_TITLES if permuted else {}),
        more={"baselines": baselines},
        caption=_caption(permuted, bool(len(baselines))),
    )
    return Panel([figure], [Choice.of("metric", "Metric", metrics), bring_out(names)])


def _rows(results: Results, lines: pd.DataFrame) -> pd.DataFrame:
    """Test rows of every metric, the primary one first, with the null of permuted labels and the marked layers."""
    rows = results.rows[(results.rows["split"] == "test") & (results.rows["target"] == "all")]
    labels, primary = lines[["labels", "metric"]].iloc[0]
    rows = with_curve(rows, lines)
    rows = rows.assign(other=rows["metric"] != primary).sort_values(["other", "layer"], kind="stable")
    null = results.controls[results.controls["control"] == "permutation"]
    null = null.rename(columns={"value": "null", "low": "null_low", "high": "null_high"})
    key = [*CURVE, "layer", "metric"]
    rows = rows.merge(null[[*key, *_NULL_TITLES]], on=key, how="left")
    marks = pd.concat([results.summary(metric, labels) for metric in rows["metric"].unique()])
    rows = rows.merge(marks[[*CURVE, "metric", "best_layer", "top_layer"]], on=[*CURVE, "metric"], how="left")
    rows = rows.assign(
        best=rows["layer"] == rows["best_layer"],
        top=rows["layer"] == rows["top_layer"],
        single=rows.groupby(["curve", "metric"])["layer"].transform("nunique") == 1,
        metric=rows["metric"].map(metric_name),
    )
    return rows[[*_TITLES, *_NULL_TITLES, "best", "top", "single"]]


def _baselines(results: Results, labels: str) -> pd.DataFrame:
    """What is scored without a layer, each score once."""
    rows = pd.concat([results.baselines(kind) for kind in BASELINES])
    rows = rows[rows["labels"] == labels].dropna(subset="value")
    what, metric = rows["solver"].map(_BASELINE_NAMES), rows["metric"].map(metric_name)
    rows = rows.assign(metric=metric, what=what, rounded=rows["value"].round(4))
    return rows.drop_duplicates(["metric", "what", "rounded"])[["metric", "what", "store", *SCORES]]


def _base(data: str = DATA) -> Any:
    import altair as alt

    return alt.Chart(alt.NamedData(data)).transform_filter("datum.metric == metric")


def _null(names: list[str]) -> list[Any]:
    """The band and the mean of permuted labels' scores."""
    import altair as alt

    null = _base().transform_filter(ALONE).transform_filter("isValid(datum.null)")
    null = null.encode(x=layer_axis(), detail="curve:N")
    low = alt.Y("null_low:Q", title=None)
    return [
        null.mark_area(color=GREY).encode(y=low, y2="null_high:Q", opacity=band_opacity(names)),
        null.mark_line(color=GREY, strokeDash=[4, 3], strokeWidth=1).encode(y="null:Q"),
    ]


def _rules(baselines: pd.DataFrame) -> list[Any]:
    """A line for each baseline with its name, and the band of its interval if it has one."""
    import altair as alt

    base = _base("baselines")
    tooltip = [alt.Tooltip("what:N", title="baseline"), alt.Tooltip("store:N"), *score_tooltip()]
    rules = [base.mark_rule(color=GREY, strokeDash=[2, 4], strokeWidth=1.5).encode(y="value:Q", tooltip=tooltip)]
    # At either end, as they may lie on each other.
    ends: tuple[tuple[str, Any, Any], ...] = ((MAJORITY, "right", "width"), (TEXT, "left", 0))
    for kind, align, x in ends:
        named = base.transform_filter(alt.datum.what == _BASELINE_NAMES[kind])
        text = named.mark_text(align=align, dx=4 if align == "left" else -4, dy=-7, fontSize=11)
        rules.append(text.encode(x=alt.value(x), y="value:Q", text="what:N"))
    band = base.mark_rect(color=GREY, opacity=0.08).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    return [band, *rules] if (baselines["high"] > baselines["low"]).any() else rules


def _curves(names: list[str], *, permuted: bool, single: bool) -> list[Any]:
    """Bands, lines and points of the curves, the top and the best layer, and what is pointed at."""
    import altair as alt

    colour, dash = curve_colour(names)
    base = _base().encode(x=layer_axis())
    curves, score = base.encode(color=colour), alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    layers = [
        curves.mark_area().encode(y=alt.Y("low:Q", title=None), y2="high:Q", opacity=band_opacity(names)),
        curves.mark_line(strokeWidth=2).encode(y=score, opacity=line_opacity(), strokeDash=dash),
        curves.mark_circle(size=36).encode(y=score, opacity=line_opacity()),
    ]
    if single:
        # A band over one layer has no width.
        ends = curves.transform_filter("datum.single").mark_rule(strokeWidth=2)
        layers.append(ends.encode(y=alt.Y("low:Q", title=None), y2="high:Q", opacity=line_opacity()))
    for mark, shape, size in (("top", "square", 90), ("best", "circle", 150)):
        marked = curves.transform_filter(f"datum.{mark}").mark_point(shape=shape, size=size, filled=True)
        layers.append(marked.encode(y=score, opacity=line_opacity()))
    tooltip = [alt.Tooltip("curve:N"), alt.Tooltip("layer:Q"), *score_tooltip()]
    tooltip.append(alt.Tooltip("n_test:Q", title="test rows"))
    if permuted:
        tooltip += [alt.Tooltip(f"{name}:Q", title=title, format=".3f") for name, title in _NULL_TITLES.items()]
    # What is pointed at is larger than what is seen.
    layers.append(base.mark_circle(size=400, opacity=0).encode(y=score, tooltip=tooltip))
    return layers


def _told(lines: pd.DataFrame) -> str:
    """Say of every curve where it is best."""
    told = [
        f"{line['curve']}: best at layer {line['best_layer']}, {estimate(line, 'best')}; "
        f"top layer {line['top_layer']}, {estimate(line, 'top')}."
        for line in records(lines)
    ]
    return " ".join(told)


def _caption(permuted: bool, baselines: bool) -> str:
    parts = ["Bands: 95% intervals", "disc: the layer chosen by cross-validation", "square: the top layer"]
    if baselines:
        parts.append("dotted: what is scored without any layer")
    if permuted:
        parts.append("grey band and dashes: probes of permuted labels, their central 95% and mean")
    return "; ".join(parts) + "."
