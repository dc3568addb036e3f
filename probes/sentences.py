"""A study's findings in words, each with its figures; scores in points of 100."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from .findings import NO_CUE, Findings
from .plot import METRIC_NAMES

Row = Mapping[str, Any]


def sentences(findings: Findings) -> dict[str, list[str]]:
    """Say what was found: the ``peaks``, what ``cues`` change, how far ``prompts`` and ``models`` agree."""
    cues = () if findings.cues.empty else findings.cues.groupby(["model", "task", "cue"], sort=False)
    return {
        "peaks": [_peak(row) for row in _records(findings.peaks)],
        "cues": [_cue(rows, findings.peaks) for _, rows in cues],
        "prompts": [_prompts(row) for row in _records(findings.prompts)],
        "models": [_models(row) for row in _records(findings.models)],
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in record.items()} for record in frame.to_dict("records")]


def _peak(row: Row) -> str:
    metric = METRIC_NAMES.get(row["metric"], row["metric"])
    text = (
        f"{row['model']}: {_question(row)} peaks at layer {row['best_layer']} of {row['n_layers']} "
        f"({metric} {_points(row['best'])}; {row['site']}, {row['tokens']})"
    )
    if row["best_layer"] == row["top_layer"]:
        return f"{text}, which is the top layer."
    if row["difference"] == 0:
        return f"{text}; the top layer scores the same."
    direction = "lower" if row["difference"] >= 0 else "higher"
    unclear = ", no clear difference" if row["low"] <= 0 <= row["high"] else ""
    return f"{text}; the top layer is {_amount(row['difference'], row)} {direction}{unclear}."


def _cue(rows: pd.DataFrame, peaks: pd.DataFrame) -> str:
    first = rows.iloc[0]
    without = {"model": first["model"], "task": first["task"], "cue": NO_CUE}
    peak = next(row for row in _records(peaks) if without.items() <= row.items())
    curve = rows[(rows["site"] == peak["site"]) & (rows["tokens"] == peak["tokens"])].set_index("layer")
    here, largest = peak["best_layer"], int(curve["difference"].abs().idxmax())
    if not curve[["difference", "low", "high"]].any(axis=None):
        where = f"{peak['site']}, {peak['tokens']}"
        return f"{first['model']}: {first['cue']} changes nothing about {first['task']} ({where})."
    return (
        f"{first['model']}: {first['cue']} changes {first['task']} by {_signed(curve.loc[here])} at layer {here}, the "
        f"best without it, and most at layer {largest}, by {_signed(curve.loc[largest])}."
    )


def _prompts(row: Row) -> str:
    others = "the other" if row["n_prompts"] == 2 else f"the {row['n_prompts'] - 1} others"
    direction = "less" if row["value"] >= 0 else "more"
    return (
        f"{row['model']}: probes of {_question(row)} score {_points(row['same'])} on the prompt that they were trained "
        f"on and {_points(row['other'])} on {others}, {_amount(row['value'], row)} {direction} (layer {row['layer']})."
    )


def _models(row: Row) -> str:
    apart = "" if np.isnan(row["difference"]) else f", {_amount(row['difference'], row)} apart"
    return (
        f"{row['model']} and {row['other']}: over {_question(row)} their best layers score {_points(row['best'])} and "
        f"{_points(row['other_best'])}{apart}; their layer curves correlate by {_number(row['correlation'])} "
        f"(Spearman, relative depth), and what the best layers say agrees by {_number(row['kappa'])} (Cohen's kappa)."
    )


def _question(row: Row) -> str:
    return str(row["task"]) if row["cue"] == NO_CUE else f"{row['task']} with {row['cue']}"


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}".replace("-", "−")


def _points(value: float) -> str:
    # Adding zero takes the sign off a negative zero.
    return f"{round(100 * value, 1) + 0:.1f}".replace("-", "−")


def _amount(value: float, row: Row) -> str:
    """A difference without its sign, with its interval turned round where the sign was taken off."""
    sign = 1 if value >= 0 else -1
    ends = sorted(sign * row[name] for name in ("low", "high"))
    interval = "" if np.isnan(ends).any() else f" [{_points(ends[0])}, {_points(ends[1])}]"
    return f"{_points(abs(value))} points{interval}"


def _signed(row: Row) -> str:
    if row["difference"] == row["low"] == row["high"] == 0:
        return "nothing"
    plus = "+" if row["difference"] >= 0 else "−"
    ends = "" if np.isnan([row["low"], row["high"]]).any() else f" [{_points(row['low'])}, {_points(row['high'])}]"
    return f"{plus}{_points(abs(row['difference']))} points{ends}"
