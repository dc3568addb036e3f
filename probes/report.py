"""The report of one or several runs: a single HTML file that needs no network, and the curves as PNG and SVG."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sonde.errors import InputError

from .charts import cue_chart, curve_chart, heatmap, transfer_chart
from .findings import NO_CUE, Findings
from .plot import METRIC_NAMES, PALETTE, curves_figure
from .results import BASELINES, Results
from .sentences import sentences
from .tables import CURVE, write_atomically

if TYPE_CHECKING:
    from markupsafe import Markup

# The palette's darker half would sink into a dark page.
_DARK_PALETTE = ("#56B4E9", "#E69F00", "#2FC79A", "#E29BC4", "#F0E442", "#FF8A4C", "#FFFFFF")

Source = Results | str | os.PathLike[str]


def write_report(
    sources: Source | Sequence[Source], out: str | os.PathLike[str], findings: Findings | None = None
) -> Path:
    """Write the report of one or several results.

    Parameters
    ----------
    sources : Results or folder, or a sequence of them
        What the report is about; several stand side by side.
    out : path
        An ``.html`` file, or a folder that gets ``report.html``. ``layer_curves.png`` and ``layer_curves.svg`` are
        written beside it.
    findings : Findings, optional
        What comes of the results together, where they are a study's.

    Returns
    -------
    pathlib.Path
        The HTML file. It holds its styles, scripts and data and loads nothing.

    Raises
    ------
    InputError
        If there are no results, none was cross-validated, or two are about the same probe.
    StoreError
        If a folder holds no results or the report cannot be written.
    """
    given = [sources] if isinstance(sources, Results | str | os.PathLike) else list(sources)
    results = Results.concat([one if isinstance(one, Results) else Results.load(one) for one in given])
    summary = results.summary()
    if summary.empty:
        raise InputError("the results hold no cross-validated layer to report: probe with folds")
    path = Path(out)
    path = path if path.suffix == ".html" else path / "report.html"
    page = _page(results, summary, findings)
    _write_figures(results, path.parent)
    return write_atomically(path, page.encode())


def claim(line: Mapping[str, Any], n_layers: int | None = None) -> str:
    """Say one line of `Results.summary` as a sentence with its figures.

    ``n_layers`` is the number of layers of the model, where it is known.
    """
    of = "" if n_layers is None else f" of {n_layers}"
    best = f"best layer {line['best_layer']}{of} (chosen by cross-validation) {_estimate(line, 'best')}"
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
    return f"{text} {_range(low, high)}{unclear}."


def number(value: float) -> str:
    """Write a score with three decimals and a true minus sign; a dash if there is none."""
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def _range(low: float, high: float) -> str:
    return "" if math.isnan(low) else f"[{number(low)},\u00a0{number(high)}]"


def _estimate(line: Mapping[str, Any], name: str) -> str:
    return f"{number(line[name])} {_range(line[f'{name}_low'], line[f'{name}_high'])}".strip()


def _page(results: Results, summary: pd.DataFrame, findings: Findings | None) -> str:
    from jinja2 import Environment, StrictUndefined

    charts: list[dict[str, Any]] = []
    sections = [_section(results, str(name), charts) for name in summary["labels"].unique()]
    models = list(dict.fromkeys(summary["model"]))
    random = [model for model in models if _weights(results, model) == "random"]
    leading = summary.drop_duplicates(["model", "store", "labels"])
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files(__package__).joinpath("report.html").read_text("utf-8"))
    return template.render(
        models=[_shown(model) for model in models],
        random=[_shown(model) for model in random],
        claims=[_headline(results, line, leading) for line in _records(leading)] if findings is None else [],
        said=None if findings is None else sentences(findings),
        facts=_facts(results),
        sections=sections,
        cues=None if findings is None or findings.cues.empty else _add(charts, cue_chart(_of_peaks(findings))),
        transfers=_transfers(results, leading, charts),
        peaks=_peaks(summary),
        baselines=_baselines(results),
        throughput=_throughput(results),
        provenance=results.provenance_json(indent=2),
        charts=_script_json(charts),
        palettes=_script_json({"light": PALETTE, "dark": _DARK_PALETTE}),
        javascript=_javascript(),
    )


def _shown(model: str) -> str:
    """A hub id as it is, a folder by its last two parts: the rest is of no use to a reader elsewhere."""
    return "/".join(Path(model).parts[-2:])


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(column): value for column, value in record.items()} for record in frame.to_dict("records")]


def _section(results: Results, labels: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    """Draw the charts of one labels into ``charts`` and say where the page shall place them."""
    primary = results.primary(labels)
    rows = results.rows[(results.rows["labels"] == labels) & ~results.rows["solver"].isin(BASELINES)]
    others = [metric for metric in rows["metric"].unique() if metric != primary]
    section: dict[str, Any] = {
        "labels": labels,
        "metric": METRIC_NAMES.get(primary, primary),
        "curves": _add(charts, curve_chart(results, labels, primary)),
        "heatmaps": [],
        "others": [
            (METRIC_NAMES.get(metric, metric), _add(charts, curve_chart(results, labels, metric))) for metric in others
        ],
    }
    if rows.loc[rows["target"] != "all", "target"].nunique() > 1:
        for line in _records(results.summary(labels=labels).drop_duplicates(["model", "store"])):
            of = " · ".join(str(line[column]) for column in ("store", "site", "tokens", "solver"))
            section["heatmaps"].append((of, _add(charts, heatmap(results, line))))
    return section


def _of_peaks(findings: Findings) -> pd.DataFrame:
    """The changes by cues along the curve that has each question's peak without one."""
    peaks = findings.peaks[findings.peaks["cue"] == NO_CUE]
    return findings.cues.merge(peaks[["model", "task", "site", "tokens"]], on=["model", "task", "site", "tokens"])


def _transfers(results: Results, leading: pd.DataFrame, charts: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Draw the transfer matrix of every leading curve's best layer, where one was measured."""
    found = []
    measured = results.controls[results.controls["control"] == "transfer"]
    for line in _records(leading):
        wanted = pd.Series({name: line[name] for name in CURVE} | {"layer": line["best_layer"]})
        matrix = measured[(measured[list(wanted.index)] == wanted).all(axis=1)]
        if matrix["trained_on"].nunique() > 1:
            of = " · ".join(str(line[name]) for name in ("store", "labels", "site", "tokens"))
            found.append((f"{of}, layer {line['best_layer']}", _add(charts, transfer_chart(matrix, line["metric"]))))
    return found


def _add(charts: list[dict[str, Any]], chart: Any) -> int:
    # Checking a chart against the language's schema takes longer than drawing it; tests do so.
    spec = chart.to_dict(validate=False)
    # The schema's address would be the only link of the data, and the page names the language itself.
    del spec["$schema"]
    charts.append(spec)
    return len(charts) - 1


def _headline(results: Results, line: Mapping[str, Any], leading: pd.DataFrame) -> dict[str, str]:
    """Join the labels' name, and the store's or model's where it takes them to tell claims apart, with the sentence."""
    name = [line["labels"]]
    alike = leading[leading["labels"] == line["labels"]]
    name += [line[column] for column in ("model", "store") if alike[column].nunique() > 1]
    run = next((run for run in results.runs if run.get("model") == line["model"]), {})
    metric = METRIC_NAMES.get(line["metric"], line["metric"])
    where = f"{metric}{_over_targets(results, line)} of {line['solver']} on {line['site']}, {line['tokens']}"
    return {"name": " · ".join(name), "text": claim(line, run.get("n_layers")), "where": where}


def _over_targets(results: Results, line: Mapping[str, Any]) -> str:
    rows = results.rows
    targets = rows.loc[(rows["labels"] == line["labels"]) & (rows["target"] != "all"), "target"].nunique()
    return f" (mean over {targets} targets)" if targets > 1 else ""


def _facts(results: Results) -> list[tuple[str, str]]:
    """List what a reader wants to know before believing a curve."""
    probes = results.rows[~results.rows["solver"].isin(BASELINES) & (results.rows["split"] == "test")]
    facts = [
        ("weights", ", ".join(sorted({str(run.get("weights", "unknown")) for run in results.runs}))),
        ("stores", ", ".join(probes["store"].unique())),
        ("sites", ", ".join(probes["site"].unique())),
        ("tokens", ", ".join(probes["tokens"].unique())),
        ("solver", ", ".join(probes["solver"].unique())),
    ]
    for labels, rows in probes.groupby("labels", sort=False):
        sizes = {f"{n_train:,} / {n_test:,}" for n_train, n_test in zip(rows["n_train"], rows["n_test"], strict=True)}
        facts.append((f"{labels}: rows to train / test", ", ".join(sorted(sizes))))
    not_converged = int((~probes.drop_duplicates([*CURVE, "layer"])["converged"]).sum())
    if not_converged:
        facts.append(("probes that did not converge", f"{not_converged:,}"))
    return facts


def _peaks(summary: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Tabulate best against top layer; what all curves share stands in the facts and needs no column."""
    shown = ["labels", *(column for column in CURVE if column != "labels" and summary[column].nunique() > 1)]
    cells = []
    for line in _records(summary):
        peaked = line["best_layer"] != line["top_layer"]
        difference = f"{number(line['difference'])} {_range(line['low'], line['high'])}" if peaked else "–"
        cells.append(
            [str(line[column]) for column in shown]
            + [METRIC_NAMES.get(line["metric"], line["metric"])]
            + [f"{line['best_layer']}: {_estimate(line, 'best')}", f"{line['top_layer']}: {_estimate(line, 'top')}"]
            + [difference, number(line["baseline"])]
        )
    return [*shown, "metric", "best layer", "top layer", "best − top", "majority"], cells


def _baselines(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = results.baselines()
    shown = ["labels", *(column for column in ("model", "store") if rows[column].nunique() > 1)]
    cells = [
        [str(row[column]) for column in shown]
        + [METRIC_NAMES.get(row["metric"], row["metric"]), f"{number(row['value'])} {_range(row['low'], row['high'])}"]
        for row in _records(rows)
    ]
    return [*shown, "metric", "majority"], cells


def _throughput(results: Results) -> list[tuple[str, str]]:
    units = {"samples_per_s": (1.0, "samples/s"), "tokens_per_s": (1.0, "tokens/s"), "bytes_per_s": (1e6, "MB/s")}
    lines = []
    for run in results.runs:
        speed = run.get("throughput") or {}
        rates = [(speed[key] / unit, name) for key, (unit, name) in units.items() if key in speed]
        text = ", ".join(f"{rate:,.0f} {name}" if rate >= 10 else f"{rate:.2f} {name}" for rate, name in rates)
        if text:
            lines.append((str(run.get("store", run.get("model", ""))), text))
    return list(dict.fromkeys(lines))


def _weights(results: Results, model: str) -> str:
    return next((str(run.get("weights")) for run in results.runs if run.get("model") == model), "unknown")


def _write_figures(results: Results, folder: Path) -> None:
    import matplotlib as mpl

    figure = curves_figure(results)
    # Without these two, equal results would give files that differ.
    with mpl.rc_context({"svg.hashsalt": "sonde"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_atomically(folder / f"layer_curves.{kind}", buffer.getvalue())


def _script_json(value: Any) -> "Markup":
    """Write JSON that no text in it can break out of a script element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=True, allow_nan=False, default=_python_number)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _python_number(value: Any) -> Any:
    return value.item()


@cache
def _javascript() -> "Markup":
    """Bundle vega, vega-lite and vega-embed for the version of Vega-Lite that altair writes."""
    import altair
    import vl_convert
    from markupsafe import Markup

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return Markup(
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version).replace("</script", "<\\/script")
    )
