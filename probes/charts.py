"""Interactive charts of a report, as altair charts that hold their data."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from .plot import METRIC_NAMES, curve_names
from .results import Results
from .tables import CURVE


def curve_chart(results: Results, labels: str, metric: str) -> Any:
    """Draw test scores by layer with bands of their intervals, the best and the top layer, and the baselines."""
    import altair as alt

    test = results.curves(labels, metric)
    test = test[test["split"] == "test"].sort_values("layer", kind="stable")
    test = test.assign(curve=curve_names(test))
    marks = test.merge(results.summary(metric, labels), on=[*CURVE, "metric"], suffixes=("", "_paired"))
    best, top = marks[marks["layer"] == marks["best_layer"]], marks[marks["layer"] == marks["top_layer"]]
    columns = ["curve", "layer", "value", "low", "high", "n_test"]
    name = METRIC_NAMES.get(metric, metric)
    layer = alt.X(
        "layer:Q",
        title="layer",
        axis=alt.Axis(tickMinStep=1, format="d", grid=False),
        scale=alt.Scale(zero=False, nice=False, padding=12),
    )
    score = alt.Y("value:Q", title=name, scale=alt.Scale(zero=False))
    longest = max(map(len, test["curve"]))
    legend = alt.Legend(title=None, orient="bottom", columns=1 if longest > 24 else 2, labelLimit=320)
    colour = alt.Color("curve:N", sort=None, legend=legend if test["curve"].nunique() > 1 else None)
    picked = alt.selection_point(fields=["curve"], bind="legend")
    shown = alt.condition(picked, alt.value(1), alt.value(0.12))
    tooltip = [
        alt.Tooltip("curve:N", title="curve"),
        alt.Tooltip("layer:Q", title="layer"),
        alt.Tooltip("value:Q", title=name, format=".3f"),
        alt.Tooltip("low:Q", title="from", format=".3f"),
        alt.Tooltip("high:Q", title="to", format=".3f"),
        alt.Tooltip("n_test:Q", title="test rows"),
    ]
    base = alt.Chart(_values(test, columns)).encode(x=layer, color=colour)
    band = base.mark_area(opacity=0.18).encode(
        y=alt.Y("low:Q", title=name), y2="high:Q", opacity=alt.condition(picked, alt.value(0.18), alt.value(0.03))
    )
    line = base.mark_line(strokeWidth=2).encode(y=score, opacity=shown)
    points = base.mark_circle(size=36).encode(y=score, opacity=shown, tooltip=tooltip).add_params(picked)
    layers = [band, line, points]
    for rows, shape, size in ((top, "square", 90), (best, "circle", 150)):
        marked = alt.Chart(_values(rows, columns)).mark_point(shape=shape, size=size, filled=True, strokeWidth=1.5)
        layers.append(marked.encode(x=layer, y=score, color=colour, opacity=shown, tooltip=tooltip))
    majority = results.baselines()
    majority = majority[(majority["labels"] == labels) & (majority["metric"] == metric)].dropna(subset="value")
    if len(majority):
        rule = alt.Chart(_values(majority, ["store", "value"])).mark_rule(strokeDash=[2, 4], strokeWidth=1.5)
        told = [alt.Tooltip("store:N", title="majority of"), alt.Tooltip("value:Q", title=name, format=".3f")]
        layers.append(rule.encode(y=score, color=alt.value("#8a8a8a"), tooltip=told))
    return alt.layer(*layers).properties(width="container", height=320)


def heatmap(results: Results, line: Mapping[str, Any]) -> Any:
    """Draw test scores by layer and target for the curve of one line of `Results.summary`, best targets first."""
    import altair as alt

    rows = results.rows[(results.rows["split"] == "test") & (results.rows["target"] != "all")]
    wanted = [*CURVE, "metric"]
    rows = rows[(rows[wanted] == pd.Series({column: line[column] for column in wanted})).all(axis=1)]
    order = rows.groupby("target")["value"].max().sort_values(ascending=False).index.tolist()
    name = METRIC_NAMES.get(line["metric"], line["metric"])
    return (
        alt.Chart(_values(rows, ["target", "layer", "value", "low", "high", "n_positive"]))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("target:N", title=None, sort=order, axis=alt.Axis(labelLimit=140)),
            color=alt.Color(
                "value:Q",
                title=name,
                scale=alt.Scale(scheme="viridis"),
                legend=alt.Legend(orient="bottom", gradientLength=180),
            ),
            tooltip=[
                alt.Tooltip("target:N", title="target"),
                alt.Tooltip("layer:O", title="layer"),
                alt.Tooltip("value:Q", title=name, format=".3f"),
                alt.Tooltip("low:Q", title="from", format=".3f"),
                alt.Tooltip("high:Q", title="to", format=".3f"),
                alt.Tooltip("n_positive:Q", title="positive test rows"),
            ],
        )
        .properties(width="container", height=alt.Step(18))
    )


def cue_chart(cues: pd.DataFrame) -> Any:
    """Draw what a cue changes, by layer, with bands of the intervals: `Findings.cues` of one curve per answer."""
    import altair as alt

    cues = cues.assign(curve=cues["model"] + " · " + cues["task"] + ", " + cues["cue"])
    layer = alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    colour = alt.Color("curve:N", sort=None, legend=alt.Legend(title=None, orient="bottom", columns=1, labelLimit=320))
    tooltip = [
        alt.Tooltip("curve:N", title="curve"),
        alt.Tooltip("layer:Q", title="layer"),
        *(alt.Tooltip(f"{name}:Q", title=title, format="+.3f") for name, title in _DIFFERENCE.items()),
    ]
    picked = alt.selection_point(fields=["curve"], bind="legend")
    base = alt.Chart(_values(cues, ["curve", "layer", *_DIFFERENCE])).encode(x=layer, color=colour)
    band = base.mark_area().encode(
        y=alt.Y("low:Q", title="with cue − without"),
        y2="high:Q",
        opacity=alt.condition(picked, alt.value(0.18), alt.value(0.03)),
    )
    line = base.mark_line(strokeWidth=2, point=True).encode(
        y="difference:Q", opacity=alt.condition(picked, alt.value(1), alt.value(0.12)), tooltip=tooltip
    )
    zero = (
        alt.Chart(alt.InlineData(values=[{"none": 0}]))
        .mark_rule(strokeDash=[2, 4])
        .encode(y="none:Q", color=alt.value("#8a8a8a"))
    )
    return alt.layer(band, line.add_params(picked), zero).properties(width="container", height=260)


_DIFFERENCE = {"difference": "difference", "low": "from", "high": "to"}


def transfer_chart(matrix: pd.DataFrame, metric: str) -> Any:
    """Draw the transfer rows of one layer's controls: trained on one prompt (row), tested on another (column)."""
    import altair as alt

    name = METRIC_NAMES.get(metric, metric)
    base = alt.Chart(_values(matrix, ["trained_on", "tested_on", "value", "low", "high"])).encode(
        x=alt.X("tested_on:N", title="tested on prompt", axis=alt.Axis(labelAngle=0, labelLimit=90)),
        y=alt.Y("trained_on:N", title="trained on prompt", axis=alt.Axis(labelLimit=90)),
        tooltip=[
            alt.Tooltip("trained_on:N", title="trained on"),
            alt.Tooltip("tested_on:N", title="tested on"),
            alt.Tooltip("value:Q", title=name, format=".3f"),
            alt.Tooltip("low:Q", title="from", format=".3f"),
            alt.Tooltip("high:Q", title="to", format=".3f"),
        ],
    )
    legend = alt.Legend(orient="bottom", gradientLength=180)
    colour = alt.Color("value:Q", title=name, scale=alt.Scale(scheme="viridis"), legend=legend)
    middle = (matrix["value"].min() + matrix["value"].max()) / 2
    ink = alt.condition(alt.datum.value > middle, alt.value("#111111"), alt.value("#ffffff"))
    text = base.mark_text().encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    return (base.mark_rect().encode(color=colour) + text).properties(width="container", height=alt.Step(34))


def _values(frame: pd.DataFrame, columns: list[str]) -> Any:
    import altair as alt

    records = frame[columns].to_dict("records")
    return alt.InlineData(
        values=[
            {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}
            for record in records
        ]
    )
