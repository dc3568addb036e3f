"""What results show of themselves in a notebook."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Hashable, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import Any

from sonde.errors import InputError
from sonde.store.notebook import STYLE, facts_table, table

from .plot import METRIC_NAMES, Scores, plot_curves

_FIGURES = 4
"""Sets of labels whose curves are drawn; those of the others are a line each in the table."""
_ALWAYS = ("site", "tokens", "solver")
_IF_SEVERAL = ("labels", "model", "store")


def card(results: Scores) -> str:
    """A self-contained HTML fragment: what was probed, best layer against top layer of every curve, and the curves.

    No script and nothing from a network; all text of the results is escaped.
    """
    rows = results.rows
    named = {
        name: ", ".join(dict.fromkeys(rows[name].astype(str))) for name in _IF_SEVERAL if rows[name].nunique() == 1
    }
    facts = {"scores": f"{len(rows):,}", "layers": str(rows.loc[rows["layer"] >= 0, "layer"].nunique())} | named
    try:
        lines = results.summary().to_dict("records")
    except InputError:
        # Nothing was tested: the tidy table is all there is.
        lines = []
    return (
        f'{STYLE}<div class="sonde-card"><div><strong>Results</strong></div>{facts_table(facts)}'
        + (_best(results, lines) if lines else "")
        + "".join(_figure(results, name) for name in list(dict.fromkeys(line["labels"] for line in lines))[:_FIGURES])
        + "</div>"
    )


def _best(results: Scores, lines: Sequence[Mapping[Hashable, Any]]) -> str:
    several = [name for name in _IF_SEVERAL if results.rows[name].nunique() > 1]
    head = [*several, *_ALWAYS, "metric", "best layer", "score", "top layer", "score", "difference", "majority"]
    cells = (
        [
            *(str(line[name]) for name in (*several, *_ALWAYS)),
            METRIC_NAMES.get(line["metric"], line["metric"]),
            str(line["best_layer"]),
            _interval(line["best"], line["best_low"], line["best_high"]),
            str(line["top_layer"]),
            _interval(line["top"], line["top_low"], line["top_high"]),
            _interval(line["difference"], line["low"], line["high"]),
            _number(line["baseline"]),
        ]
        for line in lines
    )
    return table(head, cells)


def _figure(results: Scores, labels: str) -> str:
    from matplotlib.figure import Figure

    figure, image = Figure(figsize=(6.4, 4.0), layout="constrained"), BytesIO()
    plot_curves(results, labels, ax=figure.add_subplot())
    figure.savefig(image, format="svg", facecolor="white")
    source = f"data:image/svg+xml;base64,{b64encode(image.getvalue()).decode()}"
    return f'<img alt="Layer curves of {escape(labels)}" src="{source}">'


def _interval(value: float, low: float, high: float) -> str:
    return _number(value) if low != low else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _number(value: float) -> str:
    return "" if value != value else f"{value:.3f}"
