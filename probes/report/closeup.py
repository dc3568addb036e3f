"""One layer close up: what each penalty costs, and how reliable its probabilities are."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sonde.probes.probability_metrics import N_BINS
from sonde.probes.results import Results
from sonde.probes.tables import CURVE

from .axes import GREY, with_curve
from .figure import DATA, Choice, Figure, Panel
from .words import number, records

_ERRORS = {"ridge": "squared error", "lda": "squared error of ridge", "logistic": "log-loss (nats)"}
_PENALTY_TITLES = {
    "curve": "curve",
    "layer": "layer",
    "alpha": "penalty λ",
    "error": "held-out error",
    "n_chosen": "targets that chose it",
}
_RELIABILITY_TITLES = {
    "curve": "curve",
    "layer": "layer",
    "kind": "probabilities",
    "from": "bin from",
    "to": "bin to",
    "predicted": "mean prediction",
    "observed": "observed share",
    "n": "predictions",
}
# Errors that differ by more than this are told apart on a logarithmic axis only.
_WIDE = 4


def closeup_panel(results: Results, lines: pd.DataFrame) -> Panel | None:
    """Draw penalties and reliability of a curve of `lines_of` and a layer to choose; None if neither is known."""
    penalties = with_curve(results.penalties[results.penalties["alpha"] > 0], lines)
    bins = with_curve(results.reliability, lines)
    shown = [name for name in lines["curve"] if name in {*penalties["curve"], *bins["curve"]}]
    if not shown:
        return None
    labels, best = str(lines["labels"].iloc[0]), dict(zip(lines["curve"], lines["best_layer"].tolist(), strict=True))
    layers = with_curve(results.rows, lines).groupby("curve")["layer"].unique().map(sorted).to_dict()
    choices = [
        Choice.of("curve", "Curve", shown),
        Choice(
            "layer",
            "Layer",
            [(layer, str(layer)) for layer in sorted({int(layer) for name in shown for layer in layers[name]})],
            best[shown[0]],
            follows={name: (best[name], [int(layer) for layer in layers[name]]) for name in shown},
        ),
    ]
    figures = []
    if len(penalties):
        figures.append(_penalty_figure(penalties, labels, shown[0], best[shown[0]]))
    if len(bins):
        figures.append(_reliability_figure(bins, labels, shown[0], best[shown[0]]))
    return Panel(figures, choices, "One layer close up")


def _params(chart: Any, curve: str, layer: int) -> Any:
    import altair as alt

    chart = chart.add_params(alt.param("curve", value=curve), alt.param("layer", value=layer))
    return chart.properties(width="container", height=260)


def _penalty_figure(penalties: pd.DataFrame, labels: str, curve: str, layer: int) -> Figure:
    import altair as alt

    errors = {_ERRORS[str(solver)] for solver in penalties["solver"].unique()}
    title = f"{errors.pop() if len(errors) == 1 else 'error'} on held-out folds"
    wide = penalties["error"].max() > _WIDE * penalties["error"].min() > 0
    ticks = alt.Axis(format="~g", grid=False, tickCount=6, labelOverlap="greedy", labelSeparation=6)
    x = alt.X("alpha:Q", title="penalty λ", scale=alt.Scale(type="log"), axis=ticks)
    y = alt.Y("error:Q", title=title, scale=alt.Scale(type="log") if wide else alt.Scale(zero=False))
    base = alt.Chart(alt.NamedData(DATA)).transform_filter("datum.curve == curve").encode(x=x, y=y)
    mine = base.transform_filter("datum.layer == layer")
    tooltip = [alt.Tooltip(f"{name}:Q", title=_PENALTY_TITLES[name]) for name in ("layer", "alpha", "n_chosen")]
    tooltip.append(alt.Tooltip("error:Q", title=title, format=".4f"))
    size = alt.condition("datum.n_chosen > 0", alt.value(150), alt.value(30))
    chart = alt.layer(
        base.mark_line(color=GREY, opacity=0.25, strokeWidth=1).encode(detail="layer:N"),
        mine.mark_line(strokeWidth=2),
        mine.mark_point(filled=True, opacity=1).encode(size=size),
        mine.mark_circle(size=400, opacity=0).encode(tooltip=tooltip),
    )
    here = penalties[(penalties["curve"] == curve) & (penalties["layer"] == layer)]
    told = ""
    if len(here):
        least = records(here.nsmallest(1, "error"))[0]
        told = f" At layer {layer} of {curve} it is least at λ = {least['alpha']:g}, {number(least['error'])}."
    return Figure(
        name=f"penalties-{labels}",
        description=f"{title} by penalty.{told}",
        chart=_params(chart, curve, layer),
        data=penalties[list(_PENALTY_TITLES)],
        titles=_PENALTY_TITLES,
        title="Penalties",
        caption="Mean over targets; large dots: chosen by at least one target; grey: the other layers.",
    )


def _reliability_figure(bins: pd.DataFrame, labels: str, curve: str, layer: int) -> Figure:
    import altair as alt

    total = bins.groupby([*CURVE, "layer", "calibrated"])["n"].transform("sum")
    bins = bins.assign(
        kind=bins["calibrated"].map({False: "as fitted", True: "calibrated"}),
        share=bins["n"] / total,
    )
    bins = bins.assign(**{"from": bins["bin"] / N_BINS, "to": (bins["bin"] + 1) / N_BINS})
    sizes = alt.Scale(domain=[0, 1], range=[15, 400])
    whole, said, so = alt.Scale(domain=[0, 1]), "predicted probability", "observed share"
    x = alt.X("predicted:Q", title=said, scale=whole, axis=alt.Axis(format=".1f", tickCount=5))
    y = alt.Y("observed:Q", title=so, scale=whole, axis=alt.Axis(format=".1f", tickCount=5))
    mine = alt.Chart(alt.NamedData(DATA)).transform_filter("datum.curve == curve && datum.layer == layer")
    kinds = sorted(bins["kind"].unique())
    colour = alt.Color("kind:N", scale=alt.Scale(domain=kinds), legend=alt.Legend(title=None, orient="bottom"))
    mine = mine.encode(color=colour)
    tooltip = [alt.Tooltip("kind:N", title=_RELIABILITY_TITLES["kind"])]
    tooltip += [
        alt.Tooltip(f"{name}:Q", title=_RELIABILITY_TITLES[name], format=".3f") for name in ("predicted", "observed")
    ]
    tooltip.append(alt.Tooltip("n:Q", title=_RELIABILITY_TITLES["n"], format=","))
    ideal = alt.Chart(alt.NamedData("ideal")).mark_line(color=GREY, strokeDash=[2, 4], strokeWidth=1.5)
    chart = alt.layer(
        ideal.encode(x=alt.X("at:Q", title=said), y=alt.Y("at:Q", title=so)),
        mine.mark_rect(opacity=0.25).encode(
            x=alt.X("from:Q", title=said), x2="to:Q", y=alt.Y("share:Q", title=so), y2=alt.datum(0)
        ),
        mine.mark_line(strokeWidth=2).encode(x=x, y=y),
        mine.mark_circle(opacity=1).encode(x=x, y=y, size=alt.Size("share:Q", scale=sizes, legend=None)),
        mine.mark_circle(size=400, opacity=0).encode(x=x, y=y, tooltip=tooltip),
    )
    here = bins[(bins["curve"] == curve) & (bins["layer"] == layer)]
    told = [
        f" {kind}: expected calibration error {number(_gap(of))} over {of['n'].sum():,} predictions."
        for kind, of in here.groupby("kind")
    ]
    return Figure(
        name=f"reliability-{labels}",
        description=f"Observed share by predicted probability, layer {layer} of {curve}.{''.join(told)}",
        chart=_params(chart, curve, layer),
        data=bins[[*_RELIABILITY_TITLES, "share"]],
        titles=_RELIABILITY_TITLES,
        more={"ideal": pd.DataFrame({"at": [0.0, 1.0]})},
        title="Calibration",
        caption=f"Test predictions of the chosen layer in {N_BINS} bins; on the dotted line they are as likely as they "
        "say. Bars, and the size of dots: the bin's share of all predictions.",
    )


def _gap(bins: pd.DataFrame) -> float:
    return float((bins["n"] * (bins["observed"] - bins["predicted"]).abs()).sum() / bins["n"].sum())
