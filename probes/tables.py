"""The two tables of a probing run as Parquet files with their provenance."""

import json
import os
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from sonde.errors import InputError, StoreError

COLUMNS: Mapping[str, str] = {
    "model": "str",
    "store": "str",
    "site": "str",
    "tokens": "str",
    "layer": "int64",
    "labels": "str",
    "target": "str",
    "solver": "str",
    "metric": "str",
    "split": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "alpha": "float64",
    "n_train": "int64",
    "n_test": "int64",
    "n_positive": "int64",
    "converged": "bool",
    "split_hash": "str",
    "seed": "int64",
}
"""Columns of the table of results: one row per model, store, site, tokens, layer, labels, target, solver, metric and
split (``cv`` or ``test``). ``target`` "all" is the mean over targets, or the whole of a multiclass probe; ``solver``
"majority" is the baseline, with layer -1; ``n_positive`` is -1 where it means nothing."""

COMPARISON_COLUMNS: Mapping[str, str] = {
    "model": "str",
    "store": "str",
    "labels": "str",
    "solver": "str",
    "site": "str",
    "tokens": "str",
    "metric": "str",
    "best_layer": "int64",
    "top_layer": "int64",
    "best": "float64",
    "top": "float64",
    "difference": "float64",
    "low": "float64",
    "high": "float64",
}
"""Columns of the comparisons: score(best layer) − score(top layer) on the test rows with its paired bootstrap interval;
the best layer is chosen by cross-validation."""

CURVE = ("model", "store", "labels", "solver", "site", "tokens")
"""The columns that tell one layer curve from another."""

_METADATA_KEY = b"sonde"


def tidy(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Copy the named columns in their order and dtypes; InputError if one is missing or does not convert."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"the table lacks the column(s) {', '.join(missing)}: see sonde.probes.tables")
    empty = [name for name, dtype in columns.items() if dtype != "float64" and frame[name].isna().any()]
    if empty:
        raise InputError(f"the column(s) {', '.join(empty)} of the table have missing values: fill them")
    try:
        return frame[list(columns)].astype(dict(columns)).reset_index(drop=True)
    except (TypeError, ValueError) as error:
        raise InputError(f"a column of the table has another type ({error}): see sonde.probes.tables") from error


def write_table(path: Path, frame: pd.DataFrame, provenance: str) -> Path:
    """Write a table with its provenance (JSON) in the schema's metadata; StoreError if that fails."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pandas(frame, preserve_index=False)
    buffer = BytesIO()
    pq.write_table(table.replace_schema_metadata({_METADATA_KEY: provenance.encode()}), buffer, compression="zstd")
    return write_atomically(path, buffer.getvalue())


def read_table(path: Path, columns: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read a table with its provenance; StoreError if the file is missing or is something else."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        provenance = json.loads((table.schema.metadata or {})[_METADATA_KEY])
        return tidy(table.to_pandas(), columns), provenance
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as Parquet ({error}): run `sonde probe` again") from error
    except (KeyError, ValueError) as error:
        raise StoreError(f"{path} is no table of sonde's results ({error}): run `sonde probe` again") from error


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file that is whole or not there, making its folder; StoreError if that fails."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot write {path} ({error.strerror or error}): free space or pick another folder"
        ) from error
    return path
