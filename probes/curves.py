"""The rows of layer curves: which are meant, which layer is best, which is at the top."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sonde.errors import InputError

from .metrics import higher_is_better
from .tables import CURVE


def only(rows: pd.DataFrame, column: str) -> str:
    """Take the one value of a column; InputError if there are several."""
    known = rows[column].unique()
    if len(known) > 1:
        raise InputError(f"the results hold several {column} ({', '.join(known)}): say {column}=…")
    return str(known[0])


def matching(rows: pd.DataFrame, wanted: Mapping[str, Any]) -> "pd.Series[bool]":
    """Say which rows hold these values."""
    mask = pd.Series(True, index=rows.index)
    for column, value in wanted.items():
        mask &= rows[column] == value
    return mask


def ranked(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort lines of a summary: labels as first seen, of each the best cross-validated score first."""
    place = {name: i for i, name in enumerate(dict.fromkeys(line["labels"] for line in lines))}

    def key(line: dict[str, Any]) -> tuple[int, float]:
        return place[line["labels"]], -line["cv_value"] if higher_is_better(line["metric"]) else line["cv_value"]

    return sorted(lines, key=key)


def best_cv(curves: pd.DataFrame) -> pd.Series:
    """Find the row with the best cross-validated score, of equal ones the lowest layer; InputError if there is none."""
    for column in ("model", "store"):
        only(curves, column)
    cv = curves[(curves["split"] == "cv") & curves["value"].notna()].sort_values("layer", kind="stable")
    if cv.empty:
        raise InputError("no layer has a cross-validated score, and the test rows must not choose it: probe with folds")
    better = cv["value"] if higher_is_better(str(cv["metric"].iloc[0])) else -cv["value"]
    return cv.iloc[int(np.argmax(better.to_numpy()))]


def top_cv(curves: pd.DataFrame, best: pd.Series) -> pd.Series:
    """Find the cross-validated row of the last layer of the curve that a row is on."""
    curve = curves[matching(curves, {column: best[column] for column in CURVE}) & (curves["split"] == "cv")]
    return curve.iloc[int(np.argmax(curve["layer"].to_numpy()))]


def with_test(curves: pd.DataFrame, cv: pd.Series) -> pd.Series:
    """Find the test row of a cross-validated row, whose score becomes its ``cv_value``; InputError if there is none."""
    wanted = {column: cv[column] for column in (*CURVE, "layer")} | {"split": "test"}
    found = curves[matching(curves, wanted)]
    if found.empty:
        raise InputError(f"layer {cv['layer']} of {cv['labels']!r} has no test score: probe with a test part")
    row: pd.Series = pd.concat([found.iloc[0], pd.Series({"cv_value": cv["value"]})])
    return row
