"""The page: what it holds, in the order in which it is read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import pandas as pd

from sonde.probes.findings import NO_CUE, Findings
from sonde.probes.plot import PALETTE
from sonde.probes.results import Results
from sonde.probes.sentences import sentences
from sonde.probes.tables import CURVE

from .axes import lines_of
from .closeup import closeup_panel
from .curves import curve_panel
from .facts import baseline_table, facts, headline, peak_table, throughput, weights
from .figure import Drawn, Panel
from .prompts import cue_panel, transfer_figure
from .targets import target_panel
from .words import records, shown
from .worst import Sheet

if TYPE_CHECKING:
    from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: its heading, what it says, and its charts."""

    title: str
    panels: list[Panel]
    said: list[str]
    note: str = ""


def render(results: Results, summary: pd.DataFrame, findings: Findings | None, sheets: Sequence[Sheet]) -> str:
    """Write the page of results, whose `Results.summary` is not empty, as HTML."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    drawn = Drawn()
    models = list(dict.fromkeys(summary["model"]))
    leading = summary.drop_duplicates(["model", "store", "labels"])
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["place"] = drawn.add
    return environment.get_template("page.html").render(
        models=[shown(model) for model in models],
        random=[shown(model) for model in models if weights(results, model) == "random"],
        claims=[headline(results, line, leading) for line in records(leading)] if findings is None else [],
        said=[] if findings is None else sentences(findings)["peaks"],
        facts=facts(results),
        sections=_sections(results, leading, findings),
        sheets=sheets,
        peaks=peak_table(summary),
        baselines=baseline_table(results),
        throughput=throughput(results),
        provenance=results.provenance_json(indent=2),
        drawn=drawn,
        palette=PALETTE,
        script_json=_script_json,
        javascript=_javascript(),
        style=_markup("page.css"),
        behaviour=_markup("page.js"),
    )


def _sections(results: Results, leading: pd.DataFrame, findings: Findings | None) -> list[Section]:
    found = []
    for labels in leading["labels"].unique():
        lines = lines_of(results, labels)
        panels = [curve_panel(results, lines), target_panel(results, lines), closeup_panel(results, lines)]
        found.append(Section(labels, [panel for panel in panels if panel is not None], []))
    said = {} if findings is None else sentences(findings)
    if findings is not None and not findings.cues.empty:
        found.append(Section("What cues change", [cue_panel(_of_peaks(findings))], said["cues"]))
    transfers = _transfers(results, leading)
    if transfers:
        note = (
            "Trained on the samples of one prompt, tested on those of another, at the best layer. Test images were in "
            "no prompt's training part."
        )
        found.append(Section("From prompt to prompt", transfers, said.get("prompts", []), note))
    if said.get("models"):
        found.append(Section("From model to model", [], said["models"]))
    return found


def _of_peaks(findings: Findings) -> pd.DataFrame:
    """The changes by cues along the curve that has each question's peak without one."""
    peaks = findings.peaks[findings.peaks["cue"] == NO_CUE]
    return findings.cues.merge(peaks[["model", "task", "site", "tokens"]], on=["model", "task", "site", "tokens"])


def _transfers(results: Results, leading: pd.DataFrame) -> list[Panel]:
    """Draw the transfer matrix of every leading curve's best layer, where one was measured."""
    found = []
    measured = results.controls[results.controls["control"] == "transfer"]
    for line in records(leading):
        wanted = pd.Series({name: line[name] for name in CURVE} | {"layer": line["best_layer"]})
        matrix = measured[(measured[list(wanted.index)] == wanted).all(axis=1)]
        if matrix["trained_on"].nunique() > 1:
            of = " · ".join(str(line[name]) for name in ("store", "labels", "site", "tokens"))
            title = f"{of}, layer {line['best_layer']}"
            found.append(Panel([transfer_figure(matrix, line["metric"], title)], title=title))
    return found


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _markup(name: str) -> Markup:
    from markupsafe import Markup

    return Markup(_read(name))


def _script_json(value: Any) -> Markup:
    """Write JSON that no text in it can break out of a script element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), default=_python_number)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _python_number(value: Any) -> Any:
    return value.item()


@cache
def _javascript() -> Markup:
    """Bundle vega, vega-lite and vega-embed for the version of Vega-Lite that altair writes."""
    import altair
    import vl_convert
    from markupsafe import Markup

    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    return Markup(
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", version).replace("</script", "<\\/script")
    )
