"""Scores by layer and target."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sonde.probes.metrics import higher_is_better
from sonde.probes.results import Results

from .axes import SCORES, gradient, score_tooltip, with_curve
from .figure import DATA, Choice, Figure, Panel
from .words import metric_name

ORDERS = {"score": "best score", "peak": "peak layer", "prevalence": "prevalence", "name": "name"}
_TITLES = {"curve": "curve", "target": "target", "layer": "layer", **SCORES, "n_positive": "positive test rows"}
_MANY = 24


def target_panel(results: Results, lines: pd.DataFrame) -> Panel | None:
    """Draw test scores by layer and target, of the first of `lines_of` of every store; None without several."""
    lines = lines.drop_duplicates(["model", "store"])
    labels, metric = lines[["labels", "metric"]].iloc[0]
    rows = with_curve(results.rows[results.rows["target"] != "all"], lines, "metric")
    if rows["target"].nunique() < 2:
        return None
    better, names = higher_is_better(metric), lines["curve"].tolist()
    rows = _with_peaks(rows, better)
    orders = {name: _orders(rows[rows["curve"] == name], better) for name in names}
    figure = Figure(
        name=f"targets-{labels}",
        description=f"{metric_name(metric)} by layer and target on the test rows. {_told(rows, names)}",
        chart=_chart(rows, metric_name(metric), orders),
        data=rows[[*_TITLES, "peak"]],
        titles=_TITLES,
        caption="Dot: the target's best layer by cross-validation. A target without a test score is left blank.",
    )
    choices = [Choice.of("curve", "Curve", names), Choice("order", "Sort by", list(ORDERS.items()), "score")]
    return Panel([figure], choices, "Layer by target")


def _with_peaks(rows: pd.DataFrame, better: bool) -> pd.DataFrame:
    """The test rows, with ``peak`` where the target's score in cross-validation is best."""
    cv = rows[rows["split"] == "cv"].dropna(subset="value")
    by_target = cv.groupby(["curve", "target"])["value"]
    peaks = cv.loc[by_target.idxmax() if better else by_target.idxmin(), ["curve", "target", "layer"]]
    test = rows[rows["split"] == "test"].merge(peaks.assign(peak=True), on=["curve", "target", "layer"], how="left")
    return test.assign(peak=test["peak"].notna())


def _orders(rows: pd.DataFrame, better: bool) -> dict[str, list[str]]:
    """Targets of one curve from top to bottom, by each of `ORDERS`; by score where they are alike."""
    of_target = rows.groupby("target")
    table = pd.DataFrame(
        {
            "score": -of_target["value"].max() if better else of_target["value"].min(),
            "peak": rows[rows["peak"]].set_index("target")["layer"],
            "prevalence": -of_target["n_positive"].max(),
        }
    )
    table = table.assign(name=table.index).sort_values(["score", "name"])
    return {order: table.sort_values(order, kind="stable").index.tolist() for order in ORDERS}


def _chart(rows: pd.DataFrame, metric: str, orders: dict[str, dict[str, list[str]]]) -> Any:
    import altair as alt

    base = alt.Chart(alt.NamedData(DATA)).transform_filter("datum.curve == curve")
    target_axis = alt.Axis(labelLimit=110, ticks=False, domain=False)
    base = base.transform_calculate(rank="indexof(orders[curve][order], datum.target)").encode(
        x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
        y=alt.Y("target:N", title=None, sort=alt.EncodingSortField("rank", op="min"), axis=target_axis),
    )
    known = rows["value"].dropna()
    # The same colours for every curve, so that they can be compared.
    scale = alt.Scale(scheme="viridis", domain=[float(known.min()), float(known.max())] if len(known) else [0, 1])
    cells = base.mark_rect().encode(
        color=alt.Color("value:Q", title=metric, scale=scale, legend=gradient()),
        tooltip=[
            alt.Tooltip("target:N"),
            alt.Tooltip("layer:O"),
            *score_tooltip(),
            alt.Tooltip("n_positive:Q", title=_TITLES["n_positive"]),
        ],
    )
    peaks = base.transform_filter("datum.peak").mark_point(shape="circle", size=24, filled=True, strokeWidth=1)
    chart = cells + peaks.encode(color=alt.value("#ffffff"), stroke=alt.value("#000000"))
    chart = chart.add_params(
        alt.param("curve", value=next(iter(orders))),
        alt.param("order", value="score"),
        alt.param("orders", value=orders),
    )
    n_targets = rows["target"].nunique()
    return chart.properties(width="container", height=n_targets * (14 if n_targets > _MANY else 20))


def _told(rows: pd.DataFrame, names: list[str]) -> str:
    told = []
    for name in names:
        layers = rows.loc[(rows["curve"] == name) & rows["peak"], "layer"]
        if len(layers):
            low, middle, high = np.percentile(layers, [25, 50, 75])
            told.append(
                f"{name}: the {len(layers)} targets peak at layer {middle:.0f} in the median, half of them in layers "
                f"{low:.0f} to {high:.0f}."
            )
    return " ".join(told)
