"""The commands that ask a store: probes of every layer, studies of several models, and the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .cli_store import SKIPPED, Json, StorePath, examples
from .errors import InputError
from .progress import console
from .terminal import print_plan, print_results, progress_bar

app = typer.Typer()


class SolverName(StrEnum):
    """Solvers of ``sonde probe``."""

    ridge = "ridge"
    logistic = "logistic"
    mass_mean = "mass-mean"
    lda = "lda"


class BackendName(StrEnum):
    """Whose solvers ``sonde probe`` uses."""

    sonde = "sonde"
    sklearn = "sklearn"
    cuml = "cuml"


@app.command(
    epilog=examples(
        "sonde probe run.zarr --labels answer",
        "sonde probe run.zarr --labels answer --solver logistic --tokens last",
        "sonde probe run.zarr --labels answer --where task=entailment --resume",
    )
)
def probe(
    store: StorePath,
    labels: Annotated[str, typer.Option(help="Name of labels in the store.", show_default=False)],
    solver: Annotated[SolverName, typer.Option(help="Kind of probe.")] = SolverName.ridge,
    out: Annotated[Path | None, typer.Option(help="Folder for the results.", show_default="RUN.probes/…")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABELS=VALUE", help="Only samples of which labels or a column say this: task=entailment."
        ),
    ] = None,
    site: Annotated[list[str] | None, typer.Option(help="Only these sites.")] = None,
    tokens: Annotated[list[str] | None, typer.Option(help="Only these tokens.")] = None,
    layer: Annotated[list[int] | None, typer.Option(help="Only these layers.")] = None,
    alpha: Annotated[list[float] | None, typer.Option(help="Penalties to choose from.")] = None,
    folds: Annotated[int, typer.Option(help="Folds of the cross-validation.")] = 5,
    test_size: Annotated[float, typer.Option(help="Share of samples to test.")] = 0.25,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the split and the bootstrap.")] = 0,
    device: Annotated[str | None, typer.Option(help="Torch device; numpy if left out.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler, tcp://…")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Local worker processes; threads if left out.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what a run to the same folder left.")] = False,
    backend: Annotated[BackendName, typer.Option(help="Whose ridge and logistic regression.")] = BackendName.sonde,
    balanced: Annotated[bool, typer.Option("--balanced", help="Weight classes equally (logistic).")] = False,
    cache: Annotated[bool, typer.Option(help="Keep statistics in the store for the next labels.")] = True,
    permutations: Annotated[int, typer.Option(min=0, help="Permutations of the labels, for the null (ridge).")] = 0,
    control_task: Annotated[
        str | None,
        typer.Option(metavar="LABELS", help="Labels or column that tell types of input, for a control task."),
    ] = None,
    codelength: Annotated[bool, typer.Option("--codelength", help="Online codelength (logistic).")] = False,
    erase: Annotated[
        str | None,
        typer.Option(metavar="LABELS", help="Labels to erase (LEACE), for every layer to be probed once more."),
    ] = None,
    transfer: Annotated[
        str | None,
        typer.Option(metavar="LABELS", help="Labels or column that tell variants: train on one, test on all."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Manifest with `id` and `prompt`, for a baseline of words alone."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit linear probes to every layer of a store."""
    from .probes.run import probe as run_probe

    name = "-".join([labels, *(where or []), solver.value])
    folder = out or Path(f"{store.rstrip('/').removesuffix('.zarr')}.probes") / name
    results = run_probe(
        store,
        labels,
        where=_conditions(where or []),
        solver=solver.value,
        sites=site,
        tokens=tokens,
        layers=layer,
        alphas=alpha,
        n_folds=folds,
        test_size=test_size,
        n_draws=draws,
        seed=seed,
        device=device,
        scheduler=scheduler,
        workers=workers,
        out=folder,
        resume=resume,
        backend=backend.value,
        class_weight="balanced" if balanced else None,
        cache=cache,
        permutations=permutations,
        control_task=control_task,
        codelength=codelength,
        erase=erase,
        transfer=transfer,
        texts=None if texts is None else _texts(texts),
        callbacks=[progress_bar()],
    )
    if as_json:
        summary = results.summary()
        tables = {"summary": summary, "controls": results.controls}
        told = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print(json.dumps({"results": str(folder)} | told))
    else:
        print_results(results)
        print(f"results: {folder}")


def _conditions(given: Sequence[str]) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in given]
    wrong = next(
        (condition for condition, (name, equals, _) in zip(given, pairs, strict=True) if not (name and equals)), None
    )
    if wrong is not None:
        raise InputError(f"--where {wrong!r}: write it as labels=value, for example task=entailment")
    return {name: value for name, _, value in pairs}


def _texts(file: Path) -> dict[str, str]:
    """Read the prompts of a manifest by id."""
    from .store.table import read_rows

    rows = read_rows(file, text=("id", "prompt"))
    lacking = next((row for row in rows if not {"id", "prompt"} <= row.cells.keys()), None)
    if lacking is not None:
        raise InputError(f"{lacking.place}: the row lacks an id or a prompt: give --texts a manifest with both")
    return {str(row.cells["id"]): str(row.cells["prompt"] or "") for row in rows}


@app.command(epilog=examples("sonde study study.toml --dry-run", "sonde study study.toml --set data.limit=1000"))
def study(
    config: Annotated[
        Path, typer.Argument(metavar="STUDY.toml", help="What to ask of which models.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: data.limit=1000.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what each model would take; write nothing.")] = False,
    as_json: Json = False,
) -> int:
    r"""Ask several models the same questions: extract, probe, compare, report. Run it again to go on.

    A minimal STUDY.toml:

        \[study]
        out = "runs/study"

        \[\[models]]
        label = "kosmos-2"
        name = "microsoft/kosmos-2-patch14-224"

        \[data]
        task = \["entailment", "recognition"]
        cue = "both"
        prompt = "all"
        annotations = "coco/annotations"
        images = "coco/val2017"

        \[capture]
        tokens = \["last", "image_mean"]
    """
    from .study import run_study
    from .study_config import StudyConfig

    checked = StudyConfig.load(config, overrides or [])
    if dry_run:
        from .engine.plan import plan_extraction

        plans = {model.label: plan_extraction(checked.extraction(model)) for model in checked.models}
        if as_json:
            print(json.dumps({label: asdict(plan) for label, plan in plans.items()}))
            return 0
        for label, plan in plans.items():
            print(label)
            print_plan(plan)
        return 0
    screen = console()
    done = run_study(
        checked,
        say=lambda text: screen.print(text, highlight=False),
        callbacks=[progress_bar()],
    )
    if as_json:
        tables = {name: getattr(done.findings, name) for name in ("peaks", "cues", "prompts", "models")}
        told = {name: json.loads(table.to_json(orient="records")) for name, table in tables.items()}
        print(json.dumps({"report": str(done.report), "sentences": done.sentences} | told))
    else:
        for sentence in done.sentences:
            print(sentence)
        print(f"report: {done.report.absolute()}")
    return SKIPPED if any(done.skipped.values()) else 0


@app.command(epilog=examples("sonde report run.probes/answer-ridge run.probes/answer-logistic"))
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of results.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
    worst: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Samples to show that the best probes get most wrong; puts their prompts and pictures into the page.",
        ),
    ] = 0,
) -> None:
    """Write one self-contained HTML report of one or several results."""
    from .asked import asked
    from .probes.report import write_report

    print(write_report(folders, out, worst=worst, ask=asked))
