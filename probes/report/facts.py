"""Sentences and tables around the charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sonde.probes.results import BASELINES, TEXT, Results
from sonde.probes.tables import CURVE

from .words import claim, estimate, metric_name, number, records, span


@dataclass(frozen=True, slots=True)
class Table:
    """A table of texts: its heads, and its rows, whose first `n_heads` cells are heads."""

    columns: list[str]
    rows: list[list[str]]
    n_heads: int


def headline(results: Results, line: Mapping[str, Any], leading: pd.DataFrame) -> dict[str, str]:
    """Join the labels' name, and the store's or model's where it takes them to tell claims apart, with the sentence."""
    name = [line["labels"]]
    alike = leading[leading["labels"] == line["labels"]]
    name += [line[column] for column in ("model", "store") if alike[column].nunique() > 1]
    run = next((run for run in results.runs if run.get("model") == line["model"]), {})
    where = f"{metric_name(line['metric'])}{_over_targets(results, line)} of {line['solver']} on {line['site']}, "
    return {"name": " · ".join(name), "text": claim(line, run.get("n_layers")), "where": where + line["tokens"]}


def _over_targets(results: Results, line: Mapping[str, Any]) -> str:
    rows = results.rows
    targets = rows.loc[(rows["labels"] == line["labels"]) & (rows["target"] != "all"), "target"].nunique()
    return f" (mean over {targets} targets)" if targets > 1 else ""


def facts(results: Results) -> list[tuple[str, str]]:
    """List what a reader wants to know before believing a curve."""
    probes = results.rows[~results.rows["solver"].isin(BASELINES) & (results.rows["split"] == "test")]
    told = [
        ("weights", ", ".join(sorted({str(run.get("weights", "unknown")) for run in results.runs}))),
        ("stores", ", ".join(probes["store"].unique())),
        ("sites", ", ".join(probes["site"].unique())),
        ("tokens", ", ".join(probes["tokens"].unique())),
        ("solver", ", ".join(probes["solver"].unique())),
    ]
    for labels, rows in probes.groupby("labels", sort=False):
        sizes = {f"{n_train:,} / {n_test:,}" for n_train, n_test in zip(rows["n_train"], rows["n_test"], strict=True)}
        told.append((f"{labels}: rows to train / test", ", ".join(sorted(sizes))))
    not_converged = int((~probes.drop_duplicates([*CURVE, "layer"])["converged"]).sum())
    if not_converged:
        told.append(("probes that did not converge", f"{not_converged:,}"))
    return told


def peak_table(summary: pd.DataFrame) -> Table:
    """Tabulate best against top layer; what all curves share stands in the facts and needs no column."""
    shown = ["labels", *(column for column in CURVE if column != "labels" and summary[column].nunique() > 1)]
    cells = []
    for line in records(summary):
        peaked = line["best_layer"] != line["top_layer"]
        difference = f"{number(line['difference'])} {span(line['low'], line['high'])}" if peaked else "–"
        cells.append(
            [str(line[column]) for column in shown]
            + [metric_name(line["metric"])]
            + [f"{line['best_layer']}: {estimate(line, 'best')}", f"{line['top_layer']}: {estimate(line, 'top')}"]
            + [difference]
        )
    return Table([*shown, "metric", "best layer", "top layer", "best − top"], cells, len(shown))


def baseline_table(results: Results) -> Table:
    """Tabulate what is scored without any layer, in the metric by which the labels are judged."""
    rows = pd.concat([results.baselines(kind) for kind in BASELINES])
    rows = rows[rows["metric"] == rows["labels"].map({name: results.primary(name) for name in rows["labels"].unique()})]
    shown = ["labels", *(column for column in ("model", "store") if rows[column].nunique() > 1)]
    kinds = [kind for kind in BASELINES if kind in set(rows["solver"])]
    cells = []
    for _, alike in rows.groupby(["labels", "model", "store"], sort=False):
        by_kind = {row["solver"]: f"{number(row['value'])} {span(row['low'], row['high'])}" for row in records(alike)}
        first = records(alike)[0]
        scores = [by_kind.get(kind, "–") for kind in kinds]
        cells.append([*(str(first[column]) for column in shown), metric_name(first["metric"]), *scores])
    heads = {TEXT: "words alone"}
    return Table([*shown, "metric", *(heads.get(kind, kind) for kind in kinds)], cells, len(shown))


def throughput(results: Results) -> list[tuple[str, str]]:
    """Rates of the extraction of every run that knows them, each with what bounds it where that was measured."""
    units = {"samples_per_s": (1.0, "samples/s"), "tokens_per_s": (1.0, "tokens/s"), "bytes_per_s": (1e6, "MB/s")}
    limits = {
        "tokens_per_s": ("forward_tokens_per_s", "the forward passes alone"),
        "bytes_per_s": ("write_bytes_per_s", "the disk while it was written to"),
    }
    lines = []
    for run in results.runs:
        speed = run.get("throughput") or {}
        told = []
        for key, (unit, name) in units.items():
            limit, what = limits.get(key, ("", ""))
            bound = f" ({what}: {_rate(speed[limit] / unit)})" if limit in speed else ""
            told += [f"{_rate(speed[key] / unit)} {name}{bound}"] if key in speed else []
        text = ", ".join(told)
        if text:
            lines.append((str(run.get("store", run.get("model", ""))), text))
    return list(dict.fromkeys(lines))


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def weights(results: Results, model: str) -> str:
    """Whether a model was trained: ``pretrained``, ``random``, or ``unknown``."""
    return next((str(run.get("weights")) for run in results.runs if run.get("model") == model), "unknown")
