"""Scores, intervals and places in words."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sonde.probes.plot import METRIC_NAMES


def claim(line: Mapping[str, Any], n_layers: int | None = None) -> str:
    """Say one line of `Results.summary` as a sentence with its figures.

    ``n_layers`` is the number of layers of the model, where it is known.
    """
    of = "" if n_layers is None else f" of {n_layers}"
    best = f"best layer {line['best_layer']}{of} (chosen by cross-validation) {estimate(line, 'best')}"
    if line["best_layer"] == line["top_layer"]:
        return f"{best}; it is the top layer."
    drop, low, high = line["difference"], line["low"], line["high"]
    word = "lower"
    if drop < 0:
        drop, low, high, word = -drop, -high, -low, "higher"
    text = f"{best}; the top layer ({line['top_layer']}) is {number(drop)} {word}"
    if math.isnan(low):
        return f"{text}."
    unclear = ", no clear difference" if low <= 0 <= high else ""
    return f"{text} {span(low, high)}{unclear}."


def number(value: float) -> str:
    """Write a score with three decimals and a true minus sign; a dash if there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def span(low: float, high: float) -> str:
    """Write an interval, or nothing if there is none."""
    return "" if math.isnan(low) else f"[{number(low)},\u00a0{number(high)}]"


def estimate(line: Mapping[str, Any], name: str) -> str:
    """Write a score with the interval that stands beside it."""
    return f"{number(line[name])} {span(line[f'{name}_low'], line[f'{name}_high'])}".strip()


def metric_name(metric: str) -> str:
    """Name a metric as a reader knows it."""
    return METRIC_NAMES.get(metric, metric)


def shown(model: str) -> str:
    """A hub id as it is, a folder by its last two parts: the rest is of no use to a reader elsewhere."""
    return "/".join(Path(model).parts[-2:])


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows by column name."""
    return [{str(column): value for column, value in record.items()} for record in frame.to_dict("records")]
