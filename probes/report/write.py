"""Writing a report: the page, and its curves as PNG, SVG and CSV beside it."""

import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from sonde.errors import InputError
from sonde.probes.findings import Findings
from sonde.probes.plot import curves_figure
from sonde.probes.results import Results
from sonde.probes.tables import write_atomically

from .page import render
from .worst import Ask, Sheet, worst_sheets

Source = Results | str | os.PathLike[str]


def write_report(
    sources: Source | Sequence[Source],
    out: str | os.PathLike[str],
    findings: Findings | None = None,
    *,
    worst: int = 0,
    ask: Ask | None = None,
) -> Path:
    """Write the report of one or several results.

    Parameters
    ----------
    sources : Results or folder, or a sequence of them
        What the report is about; several stand side by side.
    out : path
        An ``.html`` file, or a folder that gets ``report.html``. ``layer_curves.png``, ``.svg`` and ``.csv`` are
        written beside it.
    findings : Findings, optional
        What comes of the results together, where they are a study's.
    worst : int
        How many test samples to show that each folder's best probe gets most wrong.
    ask : function, optional
        Tells what those samples asked, by store and ids, such as `sonde.asked.asked`. Their prompts and pictures are
        then in the page, for whoever it is given to.

    Returns
    -------
    pathlib.Path
        The HTML file. It holds its styles, scripts and data and loads nothing.

    Raises
    ------
    InputError
        If there are no results, none was cross-validated, two are about the same probe, or the worst samples are to be
        shown of results that are in no folder.
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
    page = render(results, summary, findings, _sheets(given, worst, ask))
    _write_curves(results, path.parent)
    return write_atomically(path, page.encode())


def _sheets(given: Sequence[Source], n: int, ask: Ask | None) -> list[Sheet]:
    if n and any(isinstance(one, Results) for one in given):
        raise InputError("raw scores lie in folders of results alone: give those, or leave out the worst samples")
    return [sheet for one in given if n for sheet in worst_sheets(Path(str(one)), n, ask)]


def _write_curves(results: Results, folder: Path) -> None:
    import matplotlib as mpl

    figure = curves_figure(results)
    # Without these two, equal results would give files that differ.
    with mpl.rc_context({"svg.hashsalt": "sonde"}):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            buffer = BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            write_atomically(folder / f"layer_curves.{kind}", buffer.getvalue())
    rows = results.rows[results.rows["target"] == "all"]
    write_atomically(folder / "layer_curves.csv", rows.to_csv(index=False, lineterminator="\n").encode())
