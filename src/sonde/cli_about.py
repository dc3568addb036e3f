"""The commands that say what is supported."""

from __future__ import annotations

import json

import typer

from .cli_store import Json, examples
from .terminal import console

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
