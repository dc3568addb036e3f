"""The commands that look after a store: what is in it, what is added to it, where it is kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import InputError, StoreError
from .terminal import print_store, progress_bar

if TYPE_CHECKING:
    from .store import Kind, Store


def examples(*lines: str) -> str:
    """Put command lines below the help of a command."""
    return "\n".join(["Example:" if len(lines) == 1 else "Examples:", *lines])


app = typer.Typer()
labels_app = typer.Typer(
    help="Labels of a store.", epilog=examples("sonde labels add run.zarr labels.csv"), no_args_is_help=True
)
app.add_typer(labels_app, name="labels")

SKIPPED = 3
"""Exit code: done, with skipped samples."""
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StorePath = Annotated[str, typer.Argument(metavar="RUN.zarr", help="The store.", show_default=False)]


@app.command(epilog=examples("sonde info run.zarr"))
def info(store: StorePath, as_json: Json = False) -> None:
    """Show what a store holds and where it came from."""
    from .store import Store

    show(Store.open(store), as_json)


@app.command(epilog=examples("sonde verify run.zarr --repair"))
def verify(
    store: StorePath,
    repair: Annotated[bool, typer.Option("--repair", help="Mark broken ranges for `extract --resume`.")] = False,
    as_json: Json = False,
) -> int:
    """Read every committed chunk of a store and hold it against its checksum."""
    from .store import Store

    opened = Store.open(store, strict=False)
    damaged = opened.verify()
    left = opened.repair(damaged) if repair and damaged else damaged
    if as_json:
        found = [{"range": d.range.index if d.range else None, "errors": list(d.errors)} for d in damaged]
        print(json.dumps({"damaged": found, "verified": len(opened.commits), "repaired": repair, "left": len(left)}))
    else:
        for damage in damaged:
            for error in damage.errors:
                print(error)
        n_ranges = sum(damage.range is not None for damage in damaged)
        others = f", {len(damaged) - n_ranges} other objects" if n_ranges < len(damaged) else ""
        missing = f", {len(opened.missing)} not committed" if opened.missing else ""
        summary = f"{n_ranges} of {len(opened.ranges)} ranges damaged{others}{missing}"
        ended = "marked for `sonde extract --resume`" if repair else "run `sonde verify --repair` to mark them"
        print(f"{summary}; {ended}" if damaged else summary)
    return 1 if left else 0


@app.command("copy", epilog=examples("sonde copy run.zarr s3://bucket/run.zarr"))
def copy_command(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The store to copy.", show_default=False)],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="A path or URL, such as s3://bucket/run.zarr.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Copy a store to another place, with every chunk checked; a copy that was cut off goes on."""
    from .store.copying import copy_store

    copied = copy_store(source, destination, callbacks=[progress_bar()])
    if as_json:
        facts = {"store": str(copied.store.location), "complete": copied.store.complete}
        print(json.dumps(facts | {"copied": copied.ranges, "present": copied.present, "bytes": copied.nbytes}))
        return
    print(f"{copied.store.location}: {copied.ranges} ranges copied ({copied.nbytes:,} bytes), {copied.present} there")


@app.command(epilog=examples("sonde cache run.zarr --clear"))
def cache(
    store: StorePath,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    as_json: Json = False,
) -> None:
    """Show, or clear, what `sonde probe` has kept in a store for the next labels: statistics of its layers."""
    from .store import Store

    statistics = Store.open(store).statistics
    entries = statistics.entries()
    if clear:
        statistics.clear()
    nbytes = sum(entry.nbytes for entry in entries)
    if as_json:
        print(json.dumps({"entries": [asdict(entry) for entry in entries], "bytes": nbytes, "cleared": clear}))
        return
    for entry in entries:
        about = entry.about
        what = f"{about.get('site')}/{about.get('tokens')}/{about.get('layer')}"
        print(
            f"{what}: {about.get('n_folds')} folds, {about.get('dtype')}, {about.get('where')}, {entry.nbytes:,} bytes"
        )
    print(f"{len(entries)} layers' statistics, {nbytes:,} bytes{', cleared' if clear else ''}")


@app.command(epilog=examples("sonde push run.zarr me/activations --private"))
def push(
    store: StorePath,
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Dataset repository.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch; main if left out.")] = None,
) -> None:
    """Copy a store to the Hugging Face Hub; log in by `hf auth login` before."""
    from .store import Store
    from .store.hub import push as push_store

    print(push_store(Store.open(store), repo_id, private=private, revision=revision))


@app.command(epilog=examples("sonde pull me/activations run.zarr"))
def pull(
    repo_id: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Dataset repository.", show_default=False)],
    destination: Annotated[str, typer.Argument(metavar="DST", help="Folder of the copy.", show_default=False)],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; main if left out.")] = None,
    as_json: Json = False,
) -> None:
    """Copy a store from the Hugging Face Hub, and verify it."""
    from .store.hub import pull as pull_store

    show(pull_store(repo_id, destination, revision=revision), as_json)


@app.command(epilog=examples("sonde pool run.zarr mean --site resid_post"))
def pool(
    store: StorePath,
    tokens: Annotated[str, typer.Argument(help="last, first, mean, max, image_mean or text_mean.", show_default=False)],
    site: Annotated[list[str] | None, typer.Option(help="Only these sites.")] = None,
) -> None:
    """Make one row per sample of all tokens, without the model."""
    from .store import Store

    for spec in Store.open(store).pool(tokens, sites=site):
        print(spec.name)


@labels_app.command(
    "add",
    epilog=examples(
        "sonde labels add run.zarr labels.csv",
        "sonde labels add run.zarr labels.csv --kind score=regression --overwrite",
    ),
)
def labels_add(
    store: StorePath,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Parquet, CSV or JSONL of `id` and label columns.", show_default=False),
    ],
    ignore_unknown: Annotated[bool, typer.Option("--ignore-unknown", help="Pass over ids not in the store.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace labels of the same name.")] = False,
    kinds: Annotated[
        list[str] | None,
        typer.Option(
            "--kind", metavar="NAME=KIND", help="Kind of a column: binary, multiclass, multilabel or regression."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Join label columns to a store's samples by id; samples that the file does not name are left without a label."""
    from .store import Store
    from .store.table import read_rows

    opened = Store.open(store)
    rows = read_rows(file)
    columns = list(dict.fromkeys(name for row in rows for name in row.cells))
    if "id" not in columns or columns == ["id"]:
        raise InputError(f"{file} needs a column 'id' and one or more of labels: it has {', '.join(columns)}")
    nameless = next((row for row in rows if row.cells.get("id") in (None, "")), None)
    if nameless is not None:
        raise InputError(f"{nameless.place}: the row has no id: say which sample it is about")
    names = [name for name in columns if name != "id"]
    there = [name for name in names if name in opened.label_names]
    if there and not overwrite:
        raise StoreError(f"{opened.location} has labels {there[0]!r} already; replace them with --overwrite")
    ids = [str(row.cells["id"]) for row in rows]
    kind_of = _kinds(kinds or [], names)
    unknown = len(set(ids) - set(opened.ids.tolist()))
    # Every column is joined before the first is written: a mistake in the last leaves the store as it was.
    added = [
        opened.join_labels(
            name, ids, [row.cells.get(name) for row in rows], kind=kind_of.get(name), ignore_unknown=ignore_unknown
        )
        for name in names
    ]
    for labels in added:
        opened.write_labels(labels, overwrite=overwrite)
    report = {
        labels.name: {
            "kind": labels.kind,
            "labelled": int(labels.present.sum()),
            "missing": int((~labels.present).sum()),
            "unknown": unknown,
        }
        for labels in added
    }
    if as_json:
        print(json.dumps(report))
        return
    for name, facts in report.items():
        print(f"{name}: {facts['kind']}, {facts['labelled']} samples labelled, {facts['missing']} without a label")
    if unknown:
        print(f"{unknown} ids of {file} are not in the store: passed over")


def _kinds(given: Sequence[str], names: Sequence[str]) -> dict[str, Kind]:
    """Read ``name=kind`` options."""
    from typing import get_args

    from .store import Kind

    known: dict[str, Kind] = {kind: kind for kind in get_args(Kind)}
    kinds: dict[str, Kind] = {}
    for text in given:
        name, _, kind = text.rpartition("=")
        if name not in names or kind not in known:
            raise InputError(
                f"--kind {text!r}: write it as name=kind, with a column ({', '.join(names)}) and one of "
                f"{', '.join(known)}"
            )
        kinds[name] = known[kind]
    return kinds


def show(store: Store, as_json: bool) -> None:
    """Print what a store holds."""
    if as_json:
        print(json.dumps(store.info()))
    else:
        print_store(store)
