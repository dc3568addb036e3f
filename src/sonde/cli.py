"""The command line: results to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 failed, 2 usage, 3 done with skipped samples, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_store import Json, StorePath, show
from .cli_store import app as store_commands
from .errors import InputError, SondeError
from .terminal import (
    console,
    counting_progress,
    extraction_progress,
    logging_to_stderr,
    print_plan,
    print_results,
)

SKIPPED = 3
INTERRUPTED = 130

app = typer.Typer(
    name="sonde",
    help="Run a frozen model over a data set once, keep every layer, and probe the layers as often as you like.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; an error is one line on stderr."""
    debug = "--debug" in arguments
    command = [argument for argument in arguments if argument != "--debug"]
    extracting = command[:1] == ["extract"]
    with logging_to_stderr():
        try:
            code = int(app(command, standalone_mode=False) or 0)
        except KeyboardInterrupt:
            code = INTERRUPTED
        except SondeError as error:
            return _failed(error, str(error), debug)
        except MemoryError as error:
            return _failed(error, "out of memory; lower run.token_budget or run.range_size", debug)
        except OSError as error:
            return _failed(error, _explain_os_error(error, extracting), debug)
        except Exception as error:
            if type(error).__name__ == "Abort":
                code = INTERRUPTED
            elif hasattr(error, "format_message") and hasattr(error, "exit_code"):
                return _fail(_explain_usage(error), int(error.exit_code))
            else:
                raise
        # typer turns Ctrl-C into this code and says nothing.
        if code == INTERRUPTED:
            remedy = "; what is committed stays, go on with `sonde extract --resume`" if extracting else ""
            return _fail(f"interrupted{remedy}", code)
        return code


def _failed(error: Exception, message: str, debug: bool) -> int:
    if debug:
        raise error
    return _fail(f"error: {message}", 1)


def _fail(message: str, code: int) -> int:
    if message:
        print(f"sonde: {message}", file=sys.stderr)
    return code


def _explain_usage(error: Any) -> str:
    message = str(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError" or context is None:
        return message
    return f"{message}; see `{context.command_path} --help`"


def _explain_os_error(error: OSError, extracting: bool) -> str:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    full = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your share of the disk is used up",
        errno.EFBIG: "no file may grow this large here (ulimit -f)",
    }.get(error.errno or 0)
    if full is not None:
        remedy = "go on with --resume: what is committed stays" if extracting else "try again"
        return f"{full}{where}; make room and {remedy}"
    if error.errno == errno.EROFS or isinstance(error, PermissionError | NotADirectoryError):
        return f"{error.strerror}{where}; choose another --out"
    return f"{error.strerror or error}{where}"


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; at any place.")] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the data, the stores and the report.")] = Path("sonde-demo"),
    fast: Annotated[bool, typer.Option("--fast", help="Fewer scenes.")] = False,
    seed: Annotated[int, typer.Option(help="Of the scenes, the random weights and the splits.")] = 0,
) -> None:
    """Run the whole study in miniature, on data and a model that ship with sonde."""
    from .demo import run_demo

    screen = console()
    outcome = run_demo(out, fast=fast, seed=seed, say=lambda text: screen.print(text, highlight=False))
    for line in outcome.lines:
        print(line)
    print(f"scenes, models, stores (*.zarr) and results (*.probes): {out.absolute()}")
    print(f"report: {outcome.report.absolute()}")


@app.command()
def extract(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="What to extract.", show_default=False)],
    out: Annotated[str | None, typer.Option(help="The store to make; overrides run.out.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: model.dtype=float32.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a store that was begun.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Add the samples to a store of the same model.")] = False,
    scheduler: Annotated[str | None, typer.Option(help="Dask scheduler, tcp://…")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Local processes, with a model each.")] = None,
    profile: Annotated[Path | None, typer.Option(help="JSON for a trace viewer: when each stage was at work.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, and write nothing.")] = False,
    as_json: Json = False,
) -> int:
    r"""Run a frozen model over a data set and keep the activations of every layer.

    A minimal CONFIG.toml:

        \[model]
        name = "gpt2"

        \[data]
        manifest = "samples.jsonl"

        \[capture]
        tokens = ["last", "mean"]

        \[run]
        out = "run.zarr"
    """
    from .engine import ExtractConfig
    from .engine import extract as run_extract

    settings = list(overrides or [])
    if out is not None:
        settings.append(f"run.out={json.dumps(out)}")
    checked = ExtractConfig.load(config, settings)
    if dry_run:
        from .engine.plan import plan_extraction

        plan = plan_extraction(checked)
        print(json.dumps(asdict(plan))) if as_json else print_plan(plan)
        return 0
    with extraction_progress() as on_progress:
        store = run_extract(
            checked,
            resume=resume,
            append=append,
            workers=workers,
            scheduler=scheduler,
            profile=profile,
            on_progress=on_progress,
        )
    show(store, as_json)
    return SKIPPED if store.skipped else 0


@app.command()
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
    with counting_progress("layers") as on_progress:
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
            transfer=transfer,
            texts=None if texts is None else _texts(texts),
            on_progress=on_progress,
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


@app.command()
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
        extracting=lambda _: extraction_progress(),
        probing=lambda _: counting_progress("layers"),
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


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR…", help="Folders of results.", show_default=False)],
    out: Annotated[Path, typer.Option(help="The HTML file.")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML report of one or several results."""
    from .probes.report import write_report

    print(write_report(folders, out))


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that are supported, and how each was verified."""
    from .engine.families import FAMILIES

    if as_json:
        print(json.dumps([{"family": f.name, "takes": f.takes, "verified": f.verified} for f in FAMILIES]))
        return
    from rich.table import Table

    table = Table("family", "takes", "verified", title=None)
    for family in FAMILIES:
        table.add_row(family.name, family.takes, family.verified)
    console(stderr=False).print(table)
    print("Other transformers models whose blocks form one list are tried in the same way.")


app.add_typer(store_commands)
