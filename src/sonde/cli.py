"""The command line: results to stdout, progress and errors to stderr.

Exit codes: 0 done, 1 failed, 2 usage, 3 done with skipped samples, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_about import app as about_commands
from .cli_probe import app as probe_commands
from .cli_store import SKIPPED, Json, examples, show
from .cli_store import app as store_commands
from .errors import SondeError
from .progress import console
from .terminal import logging_to_stderr, print_plan, progress_bar

INTERRUPTED = 130
_AFTER = {
    "extract": "; what is committed stays, go on with `sonde extract --resume`",
    "study": "; what is done stays, the same command goes on with the rest",
    "copy": "; what is committed stays, the same command goes on with the rest",
}
"""What to do after Ctrl-C; `sonde probe` says so itself where a layer is done."""
_WITH_OUT = ("demo", "extract", "probe", "report")

app = typer.Typer(
    name="sonde",
    help="Run a frozen model over a data set once, keep every layer, and probe the layers as often as you like.",
    epilog=examples("sonde demo", "sonde extract extract.toml", "sonde probe run.zarr --labels answer"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
            remedy = (
                "lower run.token_budget or run.range_size" if extracting else "free some, or take fewer layers at once"
            )
            return _failed(error, f"out of memory; {remedy}", debug)
        except OSError as error:
            return _failed(error, _explain_os_error(error, command), debug)
        except Exception as error:
            if type(error).__name__ == "Abort":
                code = INTERRUPTED
            elif hasattr(error, "format_message") and hasattr(error, "exit_code"):
                return _fail(_explain_usage(error), int(error.exit_code))
            else:
                raise
        # typer turns Ctrl-C into this code and says nothing.
        if code == INTERRUPTED:
            return _fail(f"interrupted{_AFTER.get(command[0], '')}", code)
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


def _explain_os_error(error: OSError, command: Sequence[str]) -> str:
    import errno

    where = f" ({error.filename})" if error.filename else ""
    full = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "your share of the disk is used up",
        errno.EFBIG: "no file may grow this large here (ulimit -f)",
    }.get(error.errno or 0)
    if full is not None:
        remedy = "go on with --resume: what is committed stays" if command[:1] == ["extract"] else "try again"
        return f"{full}{where}; make room and {remedy}"
    if error.errno == errno.EROFS or isinstance(error, PermissionError | NotADirectoryError):
        return (
            f"{error.strerror}{where}; {'choose another --out' if command[0] in _WITH_OUT else 'choose another place'}"
        )
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


@app.command(epilog=examples("sonde demo --fast --out sonde-demo"))
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


@app.command(
    epilog=examples(
        "sonde extract extract.toml",
        "sonde extract extract.toml --resume",
        "sonde extract extract.toml --out run.zarr --set model.dtype=float32 --dry-run",
    )
)
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
    store = run_extract(
        checked,
        resume=resume,
        append=append,
        workers=workers,
        scheduler=scheduler,
        profile=profile,
        callbacks=[progress_bar()],
    )
    show(store, as_json)
    return SKIPPED if store.skipped else 0


app.add_typer(probe_commands)
app.add_typer(about_commands)
app.add_typer(store_commands)
