"""Tables of samples: one row per line of a JSONL, CSV or Parquet file."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.errors import InputError

# "007" and "1_000" are names that happen to hold digits: they stay text.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read, and where: ``samples.csv:12``, say."""

    place: str
    cells: Mapping[str, Any]


def read_rows(path: str | Path, text: Collection[str] = ("id",)) -> list[Row]:
    """Read a table from a JSONL (``.jsonl``, ``.ndjson``), CSV (``.csv``) or Parquet (``.parquet``) file.

    Parameters
    ----------
    path
        The file; its suffix tells its kind.
    text
        Columns of a CSV file that stay text. Any other is of integers, floats, bools (true/false) or JSON lists if all
        its cells are, else text; an empty cell is None.

    Raises
    ------
    InputError
        If the file is missing, of another kind or empty, or a row cannot be read; the text names the file and the line.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError(f"there is no file {path}: give a .jsonl, .csv or .parquet file")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        rows = list(_read_jsonl(path))
    elif suffix == ".csv":
        rows = list(_read_csv(path, text))
    elif suffix == ".parquet":
        rows = list(_read_parquet(path))
    else:
        raise InputError(f"{path.name} is of an unknown kind: give a .jsonl, .ndjson, .csv or .parquet file")
    if not rows:
        raise InputError(f"no samples in {path}: give at least one row")
    return rows


def _read_jsonl(path: Path) -> Iterator[Row]:
    # Split by "\n" alone: str.splitlines would break at U+2028, which JSON strings may hold.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            place = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                cells = json.loads(line) if line else None
            except ValueError as error:
                raise InputError(f"{place}: not JSON ({error}): give one object per line, in UTF-8") from error
            if not line:
                continue
            if not isinstance(cells, dict):
                raise InputError(f"{place}: a {type(cells).__name__}, not an object: give one object per line")
            yield Row(place, cells)


def _read_csv(path: Path, text: Collection[str]) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        rows: list[tuple[str, list[str]]] = []
        try:
            header = next(reader, [])
            for cells in reader:
                if cells:
                    rows.append((f"{path}:{reader.line_num}", cells))
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}:{reader.line_num + 1}: not CSV in UTF-8 ({error})") from error
    if len(set(header)) != len(header) or "" in header:
        raise InputError(f"{path}:1: header {header} has an empty or a repeated name: name every column once")
    for place, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{place}: {len(cells)} cells for {len(header)} columns: quote cells that hold commas")
    columns = {name: [cells[i] for _, cells in rows] for i, name in enumerate(header)}
    values = {name: column if name in text else _typed(column) for name, column in columns.items()}
    for i, (place, _) in enumerate(rows):
        yield Row(place, {name: None if column[i] == "" else column[i] for name, column in values.items()})


def _typed(cells: list[str]) -> list[Any]:
    """Cells of one CSV label column as the narrowest type that holds for all of them; empty ones as None."""
    filled = [cell for cell in cells if cell]
    parse: Any = str
    if all(_INTEGER.fullmatch(cell) for cell in filled):
        parse = int
    elif all(_NUMBER.fullmatch(cell) for cell in filled):
        parse = float
    elif all(cell.lower() in ("true", "false") for cell in filled):
        parse = _is_true
    elif all(_is_json_list(cell) for cell in filled):
        parse = json.loads
    return [parse(cell) if cell else None for cell in cells]


def _is_true(cell: str) -> bool:
    return cell.lower() == "true"


def _is_json_list(cell: str) -> bool:
    try:
        return isinstance(json.loads(cell), list)
    except ValueError:
        return False


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # One file, not a data set: read_table would turn a folder named "a=1" into a column.
        with pq.ParquetFile(path) as file:
            table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({error}): write it again") from error
    for number, cells in enumerate(table.to_pylist(), start=1):
        yield Row(f"{path}: row {number}", cells)
