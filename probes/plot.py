"""Layer curves as figures for a paper: test scores with their intervals, the best and the top layer, the baseline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from .tables import CURVE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRIC_NAMES: Mapping[str, str] = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "average_precision": "average precision",
    "auroc": "AUROC",
    "f1": "F1",
    "macro_f1": "macro F1",
    "macro_auroc": "macro AUROC",
    "log_loss": "log-loss (nats)",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "calibrated_log_loss": "log-loss, calibrated (nats)",
    "calibrated_brier": "Brier score, calibrated",
    "calibrated_ece": "expected calibration error, calibrated",
    "r2": "R²",
    "mean_squared_error": "mean squared error",
    "pearson_r": "Pearson's r",
}
"""Metrics as a reader knows them."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Colours that stay apart for colour-blind readers (Okabe and Ito, 2008), less the yellow that fades on white."""

# Inches that a curve adds to a legend of two columns, where there are more than few.
_LEGEND_ROW, _FEW_CURVES = 0.12, 6
_STYLES = ("-", "--", "-.", ":")
_DETAIL = ("model", "store", "site", "tokens", "solver")


class Scores(Protocol):
    """What is drawn: the part of `sonde.probes.results.Results` that a figure needs."""

    @property
    def rows(self) -> pd.DataFrame:
        """The tidy table."""
        ...

    @property
    def runs(self) -> list[dict[str, Any]]:
        """Provenance of each run."""
        ...

    def curves(self, labels: str | None = None, metric: str | None = None, **filters: str | None) -> pd.DataFrame:
        """Rows of the whole of one labels and metric."""
        ...

    def summary(self, metric: str | None = None, labels: str | None = None) -> pd.DataFrame:
        """Best against top layer, one row per curve."""
        ...

    def baseline(self, labels: str, metric: str, model: str, store: str) -> float:
        """The majority baseline's test score."""
        ...


def curve_names(curves: pd.DataFrame) -> "pd.Series[str]":
    """Name the curve of each row by what differs between the curves, or by site and tokens if there is only one.

    Stores that tell the models apart stand for them: the folder of a model is a long name.
    """
    differing = [column for column in _DETAIL if curves[column].nunique() > 1] or ["site", "tokens"]
    if {"model", "store"} <= set(differing) and curves.groupby("store")["model"].nunique().max() == 1:
        differing.remove("model")
    return curves[differing].agg(" · ".join, axis=1)


def plot_curves(
    results: Scores,
    labels: str | None = None,
    metric: str | None = None,
    *,
    ax: "Axes | None" = None,
    **filters: str | None,
) -> "Axes":
    """Draw the layer curves of one labels and metric.

    Parameters
    ----------
    results : Results, or what looks like it
    labels, metric : str, optional
        As in `Results.best`.
    ax : matplotlib.axes.Axes, optional
        Left out: those of a new figure, which needs no display and no pyplot; in a notebook one of pyplot, which the
        notebook shows.
    **filters : str, optional
        ``model``, ``store``, ``site``, ``tokens`` and ``solver`` of the curves to draw; left out: all.

    Returns
    -------
    matplotlib.axes.Axes
        One line per curve with its interval as a band, a disc at the layer that cross-validation chose, a square at the
        last layer, and a dotted line per majority baseline.

    Raises
    ------
    InputError
        As `Results.curves`.
    """
    from matplotlib.ticker import MaxNLocator

    rows = results.curves(labels, metric, **filters)
    name, metric = str(rows["labels"].iloc[0]), str(rows["metric"].iloc[0])
    if ax is None:
        ax = _new_axes()
    test = rows[rows["split"] == "test"].sort_values("layer", kind="stable")
    test = test.assign(curve=curve_names(test))
    summary = results.summary(metric, name)
    for i, (curve, points) in enumerate(test.groupby("curve", sort=False)):
        _draw_curve(ax, points, str(curve), PALETTE[i % len(PALETTE)], _STYLES[i // len(PALETTE) % len(_STYLES)])
        _mark_layers(ax, points, summary, PALETTE[i % len(PALETTE)])
    _draw_baselines(ax, results, test, metric)
    ax.set_title(
        name + (" (random weights)" if _random(results, test) else ""), loc="left", weight="bold", parse_math=False
    )
    ax.set_xlabel("layer")
    ax.set_ylabel(METRIC_NAMES.get(metric, metric))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.03, y=0.08)
    ax.grid(axis="y", alpha=0.25, linewidth=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    _draw_legend(ax)
    return ax


def curves_figure(results: Scores) -> "Figure":
    """Draw the primary metric of every labels, one below the other."""
    from matplotlib.figure import Figure

    names = list(results.rows["labels"].unique())
    # Of many curves the legend takes as much room as what they are drawn in.
    n_curves = int(results.summary().groupby("labels").size().max())
    height = 4.0 + _LEGEND_ROW * max(0, n_curves - _FEW_CURVES)
    figure = Figure(figsize=(7.2, height * len(names)), layout="constrained", dpi=150)
    for i, name in enumerate(names):
        plot_curves(results, name, ax=figure.add_subplot(len(names), 1, i + 1))
    return figure


def _new_axes() -> "Axes":
    from rich.console import Console

    options: dict[str, Any] = {"figsize": (6.4, 4.0), "layout": "constrained"}
    if Console().is_jupyter:
        from matplotlib import pyplot

        return pyplot.figure(**options).add_subplot()
    from matplotlib.figure import Figure

    return Figure(**options).add_subplot()


def _draw_curve(ax: "Axes", points: pd.DataFrame, name: str, colour: str, style: str) -> None:
    layer, value = points["layer"].to_numpy(), points["value"].to_numpy()
    low, high = points["low"].to_numpy(), points["high"].to_numpy()
    if len(points) == 1:
        ends = np.nan_to_num(np.abs([value - low, high - value]))
        ax.errorbar(layer, value, yerr=ends, color=colour, fmt="D", markersize=5, capsize=3, label=name)
        return
    ax.fill_between(layer, low, high, color=colour, alpha=0.15, linewidth=0)
    ax.plot(layer, value, color=colour, linestyle=style, linewidth=1.8, marker=".", markersize=4, label=name)


def _mark_layers(ax: "Axes", points: pd.DataFrame, summary: pd.DataFrame, colour: str) -> None:
    if len(points) == 1 or summary.empty:
        return
    mine = (summary[list(CURVE)] == points[list(CURVE)].iloc[0]).all(axis=1)
    for _, line in summary[mine].iterrows():
        marks: dict[str, Any] = {"color": colour, "markeredgecolor": "white", "linestyle": "none", "zorder": 5}
        ax.plot([line["top_layer"]], [line["top"]], marker="s", markersize=7, **marks)
        ax.plot([line["best_layer"]], [line["best"]], marker="o", markersize=10, **marks)


def _draw_baselines(ax: "Axes", results: Scores, test: pd.DataFrame, metric: str) -> None:
    name = str(test["labels"].iloc[0])
    pairs = test[["model", "store"]].drop_duplicates().itertuples(index=False)
    values = {results.baseline(name, metric, model, store) for model, store in pairs}
    for i, value in enumerate(sorted(value for value in values if value == value)):
        ax.axhline(value, color="0.45", linestyle=":", linewidth=1.2, label=None if i else "majority")


def _draw_legend(ax: "Axes") -> None:
    """Put the legend below the axis, where it hides no curve, with a line on what the marks mean."""
    from matplotlib.lines import Line2D

    handles, names = ax.get_legend_handles_labels()
    grey: dict[str, Any] = {"color": "0.45", "markeredgecolor": "white", "linestyle": "none"}
    handles += [Line2D([], [], marker="o", markersize=9, **grey), Line2D([], [], marker="s", markersize=7, **grey)]
    names += ["chosen by cross-validation", "top layer"]
    columns = 3 if max(map(len, names)) < 32 else 2
    legend = ax.legend(
        handles, names, ncols=columns, frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(-0.02, -0.14)
    )
    # A dollar sign in a name is no formula.
    for text in legend.get_texts():
        text.set_parse_math(False)


def _random(results: Scores, test: pd.DataFrame) -> bool:
    """Whether no model of the rows was trained: of one among others, its curve's name tells."""
    weights = {run.get("model"): run.get("weights") for run in results.runs}
    return {weights.get(model) for model in test["model"]} == {"random"}
