"""What cues and the words of prompts change."""

from __future__ import annotations

import pandas as pd

from .axes import (
    ALL_CURVES,
    GREY,
    SCORES,
    band_opacity,
    bring_out,
    curve_colour,
    gradient,
    layer_axis,
    line_opacity,
    score_tooltip,
)
from .figure import DATA, Figure, Panel
from .words import metric_name, number, records


def cue_panel(cues: pd.DataFrame) -> Panel:
    """Draw what a cue changes, by layer, with bands of the intervals: `Findings.cues` of one curve per answer."""
    import altair as alt

    cues = cues.rename(columns={"difference": "value"})
    cues = cues.assign(curve=cues["model"] + " · " + cues["task"] + ", " + cues["cue"])
    names = list(dict.fromkeys(cues["curve"]))
    colour, dash = curve_colour(names)
    base = alt.Chart(alt.NamedData(DATA)).encode(x=layer_axis(), color=colour)
    tooltip = [alt.Tooltip("curve:N"), alt.Tooltip("layer:Q"), *score_tooltip("+.3f")]
    chart = alt.layer(
        alt.Chart(alt.NamedData(DATA)).mark_rule(color=GREY, strokeDash=[2, 4]).encode(y=alt.datum(0)),
        base.mark_area().encode(y=alt.Y("low:Q", title="with cue − without"), y2="high:Q", opacity=band_opacity(names)),
        base.mark_line(strokeWidth=2).encode(y="value:Q", opacity=line_opacity(), strokeDash=dash),
        base.mark_circle(size=36).encode(y="value:Q", opacity=line_opacity()),
        base.mark_circle(size=400, opacity=0).encode(y="value:Q", tooltip=tooltip),
    ).add_params(alt.param("curve", value=ALL_CURVES))
    largest = cues.loc[cues.groupby("curve", sort=False)["value"].apply(lambda one: one.abs().idxmax())]
    told = [f"{row['curve']}: most at layer {row['layer']}, {number(row['value'])}." for row in records(largest)]
    titles = {"curve": "curve", "layer": "layer", **SCORES, "value": "difference"}
    figure = Figure(
        name="cues",
        description=f"Score with the cue less the score without it, by layer. {' '.join(told)}",
        chart=chart.properties(width="container", height=260),
        data=cues[list(titles)],
        titles=titles,
        caption="Score with the cue less the score without it, by layer, on the same test images, with 95% intervals "
        "of paired draws.",
    )
    return Panel([figure], [bring_out(names)])


def transfer_figure(matrix: pd.DataFrame, metric: str, title: str) -> Figure:
    """Draw the transfer rows of one layer's controls: trained on one prompt (row), tested on another (column)."""
    import altair as alt

    name = metric_name(metric)
    between = {"trained_on": "trained on", "tested_on": "tested on"}
    base = alt.Chart(alt.NamedData(DATA)).encode(
        x=alt.X("tested_on:N", title="tested on prompt", axis=alt.Axis(labelAngle=0, labelLimit=90)),
        y=alt.Y("trained_on:N", title="trained on prompt", axis=alt.Axis(labelLimit=90)),
        tooltip=[*(alt.Tooltip(f"{c}:N", title=head) for c, head in between.items()), *score_tooltip()],
    )
    colour = alt.Color("value:Q", title=name, scale=alt.Scale(scheme="viridis"), legend=gradient())
    middle = float((matrix["value"].min() + matrix["value"].max()) / 2)
    ink = alt.condition(f"datum.value > {middle}", alt.value("#111111"), alt.value("#ffffff"))
    text = base.mark_text().encode(text=alt.Text("value:Q", format=".2f"), color=ink)
    chart = base.mark_rect().encode(color=colour) + text
    own = matrix["trained_on"] == matrix["tested_on"]
    titles = between | SCORES
    return Figure(
        name=f"transfer-{title}",
        description=f"{name} by the prompt that probes were trained on and the prompt that they were tested on. "
        f"Mean on their own prompt {number(matrix.loc[own, 'value'].mean())}, "
        f"on others {number(matrix.loc[~own, 'value'].mean())}.",
        chart=chart.properties(width="container", height=34 * matrix["trained_on"].nunique()),
        data=matrix[list(titles)],
        titles=titles,
        caption=f"{name}; rows: the prompt that probes were trained on, columns: the prompt that they were tested on.",
    )
