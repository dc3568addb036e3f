"""The tables of a probing run as Parquet files with their provenance."""

import json
import os
import uuid
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from sonde.errors import InputError, StoreError

CURVE = ("model", "store", "labels", "solver", "site", "tokens")
"""The columns that tell one layer curve from another."""

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
"majority" and "text" are baselines, with layer -1; ``n_positive`` is -1 where it means nothing."""

COMPARISON_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(CURVE, "str"),
    "metric": "str",
    "best_layer": "int64",
    "other_layer": "int64",
    "best": "float64",
    "other": "float64",
    "difference": "float64",
    "low": "float64",
    "high": "float64",
    "p": "float64",
}
"""Columns of the comparisons: score(best layer) − score(other layer) on the test rows, with interval and p-value as of
`paired_difference`, for every metric and every other layer of a curve. The best layer is so by the cross-validated
primary metric."""

DRAW_COLUMNS: Mapping[str, str] = {
    "model": "category",
    "store": "category",
    "labels": "category",
    "solver": "category",
    "site": "category",
    "tokens": "category",
    "layer": "int64",
    "metric": "category",
    "draw": "int32",
    "value": "float32",
}
"""Columns of the bootstrap draws: the value of a metric over all targets of a layer under each draw of the test rows;
the draws of all layers are of the same rows."""

CONTROL_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(CURVE, "str"),
    "layer": "int64",
    "control": "str",
    "metric": "str",
    "trained_on": "str",
    "tested_on": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "p": "float64",
}
"""Columns of what is measured beside the probes of a layer, over all targets and on the test rows.

``control`` is ``permutation`` (mean of the null, its central 95 %, and the p-value of the layer), ``control task`` and
``selectivity``, ``erased`` and ``erasure loss``, ``online code`` (by ``metric``: bits, uniform bits, prior bits,
compression), ``v-information`` (bits per row), ``transfer``, from the variant ``trained_on`` to the variant
``tested_on``, or ``transfer loss``, what is lost on average on the variants that were not trained on."""

PENALTY_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(CURVE, "str"),
    "layer": "int64",
    "alpha": "float64",
    "error": "float64",
    "n_chosen": "int64",
}
"""Columns of the penalties that were tried: ``error`` on held-out folds (squared error of ridge and LDA, log-loss in
nats of logistic probes), the mean over targets, and how many targets chose the penalty."""

RELIABILITY_COLUMNS: Mapping[str, str] = {
    **dict.fromkeys(CURVE, "str"),
    "layer": "int64",
    "calibrated": "bool",
    "bin": "int64",
    "n": "int64",
    "predicted": "float64",
    "observed": "float64",
}
"""Columns of the reliability of probabilities on the test rows, as they are and calibrated, all targets together: see
`sonde.probes.reliability`."""

_METADATA_KEY = b"sonde"
# Comparisons were once of the best layer with the top layer alone, and without p-values.
_OLDER_NAMES = {"top_layer": "other_layer", "top": "other"}
_OLDER_LACK = "p"


def tidy(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Copy the named columns in their order and dtypes; InputError if one is missing or does not convert."""
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise InputError(f"the table lacks the column(s) {', '.join(missing)}: see sonde.probes.tables")
    whole = [name for name, dtype in columns.items() if not dtype.startswith("float")]
    empty = [name for name in whole if frame[name].isna().any()]
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
        frame = table.to_pandas().rename(columns=_OLDER_NAMES)
        if _OLDER_LACK not in frame:
            frame[_OLDER_LACK] = float("nan")
        return tidy(frame, columns), provenance
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
