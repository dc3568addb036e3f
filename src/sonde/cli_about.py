"""The commands that say what is supported, and what this machine has of it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .cli_store import Json, examples
from .progress import console

app = typer.Typer()


@app.command(epilog=examples("sonde models --json"))
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


@app.command(epilog=examples("sonde doctor", "sonde doctor --path /scratch --size 1024"))
def doctor(
    path: Annotated[Path, typer.Option(help="Folder whose disk is measured.")] = Path(),
    size: Annotated[int, typer.Option(min=4, help="MiB that are written there, read and removed.")] = 256,
    as_json: Json = False,
) -> int:
    """Say what this machine has, how fast its disk is, and what is missing for what; code 1 if sonde cannot work."""
    from .doctor import diagnose, print_diagnosis

    found = diagnose(path, size << 20)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        print_diagnosis(found)
    return 1 if found.broken else 0
