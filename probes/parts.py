"""The finished layers of a run that is going on, as files: what `--resume` finds again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from sonde.errors import StoreError

from .evaluate import Evaluation
from .layers import LayerTask, ProbedLayer
from .probe import Probe
from .tables import COLUMNS, read_table, tidy, write_atomically, write_table

LAYERS = "layers"
# Readers of a folder of tables pass over names that begin so.
_DESCRIPTION = "_run.json"


class Parts:
    """A folder with a Parquet table of scores, and safetensors of all else, for every layer that is done.

    The tables are readable while the run goes on: ``pandas.read_parquet(folder / "layers")``. A layer is done when its
    table is there, which is written last.

    Parameters
    ----------
    folder
        That of the run.
    about
        What decides the numbers, as JSON.
    origin
        Columns of the tables that are the same for all layers.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any], origin: Mapping[str, Any]) -> None:
        self._folder, self._about, self._origin = folder / LAYERS, json.loads(json.dumps(about)), dict(origin)

    def begin(self, tasks: Sequence[LayerTask]) -> list[ProbedLayer]:
        """Make the folder, or read from the one that is there what is done of the tasks.

        Raises
        ------
        StoreError
            If a run with other options left it, or it cannot be made.
        """
        path = self._folder / _DESCRIPTION
        if not path.is_file():
            write_atomically(path, json.dumps(self._about, indent=1).encode())
            return []
        try:
            before = dict(json.loads(path.read_bytes()))
        except (TypeError, ValueError):
            before = {}
        other = sorted(name for name in self._about if before.get(name) != self._about[name])
        if other:
            raise StoreError(
                f"{self._folder.parent} was begun with another {', '.join(other)}: give the same, or another --out"
            )
        return [layer for task in tasks if (layer := self._read(task)) is not None]

    def add(self, layer: ProbedLayer) -> None:
        """Write a layer that is done; StoreError if that fails."""
        from safetensors.numpy import save

        probe = layer.probe
        name = _name(layer.spec.site, layer.spec.tokens, probe.layer)
        arrays = {"weights": probe.weights, "bias": probe.bias, "scores": layer.scores, "cv_error": layer.cv_error}
        arrays |= {f"draws/{metric}": values for metric, values in layer.evaluation.draws.items()}
        described = {k: v for k, v in asdict(probe).items() if k not in ("weights", "bias")}
        told = {
            "probe": json.dumps(described),
            "controls": json.dumps([dict(control) for control in layer.controls]),
            "reliability": json.dumps(layer.evaluation.reliability),
        }
        data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, told)
        write_atomically(self._folder / f"_{name}.safetensors", data)
        where = {"site": probe.site, "tokens": probe.tokens, "layer": probe.layer, "solver": probe.solver}
        rows = [self._origin | where | record for record in layer.evaluation.records]
        table = tidy(pd.DataFrame.from_records(rows, columns=list(COLUMNS)), COLUMNS)
        write_table(self._folder / f"{name}.parquet", table, "{}")

    def remove(self) -> None:
        """Remove the files: the tables of the run have what was in them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _read(self, task: LayerTask) -> ProbedLayer | None:
        from safetensors import safe_open

        path = self._folder / _name(task.spec.site, task.spec.tokens, task.layer)
        if not path.with_name(f"{path.name}.parquet").is_file():
            return None
        kept = [column for column in COLUMNS if column not in {*self._origin, "site", "tokens", "layer", "solver"}]
        try:
            rows, _ = read_table(path.with_name(f"{path.name}.parquet"), COLUMNS)
            with safe_open(path.with_name(f"_{path.name}.safetensors"), "numpy") as file:
                names = file.keys()
                arrays = {name: file.get_tensor(name) for name in names}
                told = {name: json.loads(text) for name, text in file.metadata().items()}
            described = told["probe"]
            described |= {"targets": tuple(described["targets"]), "alpha": tuple(described["alpha"])}
            records = [dict(zip(kept, row, strict=True)) for row in rows[kept].itertuples(index=False)]
            # safetensors has an order of its own.
            draws = {metric: arrays[f"draws/{metric}"] for metric in rows["metric"].unique()}
            probe = Probe(**described, weights=arrays["weights"], bias=arrays["bias"])
            evaluation = Evaluation(records, draws, told["reliability"])
            return ProbedLayer(task.spec, probe, arrays["scores"], evaluation, arrays["cv_error"], told["controls"])
        # Bytes of anyone: what cannot be read is made again.
        except Exception:
            return None


def _name(site: str, tokens: str, layer: int) -> str:
    return "-".join(quote(part, safe="").replace("-", "%2D") for part in (site, tokens, str(layer)))
