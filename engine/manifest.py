"""Data sets that a user brings along: a JSONL, CSV or Parquet file with one row per sample."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sonde.errors import InputError
from sonde.store.table import Row, read_rows

from .picture import Picture, is_url, named_picture
from .sample import Dataset, LabelValue, Sample

RESERVED = ("id", "prompt", "messages", "image", "images", "group", "split", "spans")
"""Columns with a meaning of their own; every other column is a label."""


def read_manifest(path: str | Path, *, remote_images: bool = False) -> Dataset:
    """Read a data set from a JSONL (``.jsonl``, ``.ndjson``), CSV (``.csv``) or Parquet (``.parquet``) file.

    Columns: `id`; `prompt` and/or `messages` (a list of chat turns, in CSV as JSON), exactly one of them per row;
    optionally `image` (one path) or `images` (a list of paths; in CSV as JSON, or one path), `group`, `split` and
    `spans` (a mapping of names to ``[start, stop]`` in characters of the prompt, or to a text that stands there once;
    in CSV as JSON). Every other column is a label. Relative image paths are relative to the manifest's folder; with
    `remote_images` an image may be a URL.

    Ids are text: ``007`` stays ``007``. A list as a label becomes a tuple of strings (multi-label); NaN becomes None.
    A label column of a CSV file is of integers, floats, bools (true/false) or JSON lists if all its cells are, else
    text; an empty cell is None.

    Raises
    ------
    InputError
        If the file is missing, of another kind or empty, lacks a column, or has a row that is no sample; the text
        names the file and the line (Parquet: the row, from 1).
    """
    path = Path(path).absolute()
    rows = read_rows(path, RESERVED)
    _require_columns(path, rows)
    samples = tuple(
        make_sample(row, lambda name: named_picture(name, path.parent, remote=remote_images)) for row in rows
    )
    try:
        return Dataset(samples, root=path.parent)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _require_columns(path: Path, rows: list[Row]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row.cells)
    for needed in (("id",), ("prompt", "messages")):
        if not any(name in columns for name in needed):
            raise InputError(
                f"manifest {path} has no column {' or '.join(map(repr, needed))}: "
                f"it has {', '.join(map(repr, columns))}; add the column or rename one"
            )


def make_sample(row: Row, picture: Callable[[Any], Picture]) -> Sample:
    """Make the sample that a row describes.

    Parameters
    ----------
    row
        Cells by the names of a manifest's columns.
    picture
        Makes an image of one entry of the cell `image` or `images`.

    Raises
    ------
    InputError
        If the row is no sample; the text names its place.
    """
    cells = row.cells
    try:
        prompt, messages = cells.get("prompt"), _messages(cells.get("messages"))
        if prompt is None and messages is None and "prompt" in cells:
            prompt = ""
        return Sample(
            id=_text("id", cells.get("id")),
            prompt=prompt,
            messages=messages,
            images=tuple(picture(entry) for entry in _image_entries(cells)),
            group=_text("group", cells.get("group")),
            split=_text("split", cells.get("split")),
            spans=_spans(cells.get("spans")),
            labels={name: _label(name, value) for name, value in cells.items() if name not in RESERVED},
        )
    except InputError as error:
        raise InputError(f"{row.place}: {error}") from error


def _text(column: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise InputError(f"{column} {value!r} is a {type(value).__name__}: give a string or an integer")
    return str(value)


def _label(column: str, value: object) -> LabelValue:
    if isinstance(value, list):
        if not all(isinstance(item, str | int) for item in value):
            raise InputError(f"label {column!r} is a list of more than names, {value!r}: give a list of strings")
        return tuple(str(item) for item in value)
    if isinstance(value, float) and math.isnan(value):
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(
        f"label {column!r} is a {type(value).__name__}, {value!r}: give text, a number, a bool, or a list of strings"
    )


def _image_entries(cells: Mapping[str, Any]) -> list[Any]:
    """What stands in the `image` or the `images` cell of a row, as given."""
    one, several = cells.get("image"), cells.get("images")
    if one is not None and several is not None:
        raise InputError("both image and images are given: give one of them")
    if isinstance(several, str) and several.lstrip().startswith("["):
        several = _json("images", several)
    given = one if several is None else several
    entries: list[Any] = given if isinstance(given, list) else [given]
    return [] if entries == [None] else entries


def _messages(value: object) -> tuple[Mapping[str, Any], ...] | None:
    """Chat turns of a row; image parts are placeholders, the files stand in the image column."""
    if value is None:
        return None
    turns = _without_nulls(_json("messages", value) if isinstance(value, str) else value)
    if not isinstance(turns, list):
        raise InputError(f"messages is a {type(value).__name__}: give a list of turns with 'role' and 'content'")
    for turn in turns:
        content = turn.get("content") if isinstance(turn, dict) else None
        for part in content if isinstance(content, list) else []:
            for key, source in part.items() if isinstance(part, dict) else []:
                if key != "text" and isinstance(source, str) and is_url(source):
                    raise InputError(
                        f"image {source!r} in messages is a URL: write {{'type': 'image'}} there, and put the file's "
                        "path (or with data.remote_images = true the URL) in the column 'images'"
                    )
            if isinstance(part, dict) and part.get("type") == "image" and part.keys() - {"type"}:
                raise InputError(
                    f"an image in messages names its own file, {part!r}: write {{'type': 'image'}} there and put the "
                    "path in the column 'images'"
                )
    return tuple(turns)


def _spans(value: object) -> Mapping[str, Any]:
    """Spans of a row; Parquet gives a map as a list of pairs, and in a structure every row the names of all others."""
    if value is None:
        return {}
    spans = _json("spans", value) if isinstance(value, str) else value
    if isinstance(spans, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in spans):
        spans = dict(spans)
    if not isinstance(spans, dict):
        raise InputError(f"spans is a {type(spans).__name__}: give a mapping of names to [start, stop] or text")
    return {name: place for name, place in spans.items() if place is not None}


def _without_nulls(value: Any) -> Any:
    """Drop null fields at any depth: Parquet gives every turn and part the fields of all others."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _json(column: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        form = "mapping" if column == "spans" else "list"
        raise InputError(f"{column} is not JSON ({error}): give a JSON {form}") from error
