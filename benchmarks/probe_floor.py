"""What ridge probes of all layers cannot do without: reading, symmetric products, decompositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sonde.probes import Problem
from sonde.probes.schedule import run_tasks
from sonde.store import Store

from .probe_data import SITE, TOKENS, Floats, LayerData, fit_one
from .probe_peers import standardised
from .result import interleave

PARTS = ("read the layers", "symmetric products", "decompositions")


@dataclass(frozen=True, slots=True, eq=False)
class Floor:
    """The parts of the floor, each for all layers, as many layers at once as sonde has.

    Attributes
    ----------
    store
        Whose layers are read, chunk by chunk.
    folds
        float32 rows of every fold, standardised, C-contiguous ``[row, hidden]``; the first layer's stand for all.
    gram
        float64 ``[hidden, hidden]`` of a training part; every layer decomposes ``len(folds) + 1`` of them.
    """

    store: Store
    folds: list[Floats]
    gram: Floats

    @classmethod
    def of(cls, store: Store, problem: Problem) -> Floor:
        """Make everything ready but what is timed."""
        data = LayerData.of(store, problem, 0, np.ones(1))
        x, _ = standardised(data.x, data.test_x)
        folds = [np.ascontiguousarray(x[data.folds == fold]) for fold in range(problem.split.n_folds)]
        return cls(store, folds, sum(part.T.astype(np.float64) @ part for part in folds[1:]))

    def contestants(self) -> Mapping[str, Callable[[], object]]:
        """Return each part by its name."""
        return {
            name: partial(on_all_layers, self.store, part)
            for name, part in zip(PARTS, (self._read, self._multiply, self._decompose), strict=True)
        }

    def _read(self, layer: int) -> None:
        for _ in self.store.layer(SITE, TOKENS, layer):
            pass

    def _multiply(self, layer: int) -> None:
        for x in self.folds:
            x.T @ x  # numpy calls BLAS ssyrk

    def _decompose(self, layer: int) -> None:
        for _ in range(len(self.folds) + 1):
            np.linalg.eigh(self.gram)


def on_all_layers(store: Store, function: Callable[..., object], *arguments: Any) -> None:
    """Run ``function(layer, *arguments)`` for every layer as `sonde.probe` does: a layer per core, with one thread."""
    for _ in run_tasks(function, list(store.arrays[0].layers), arguments):
        pass


def time_ridge(store: Store, problem: Problem, alphas: Floats, rounds: int) -> dict[str, float]:
    """Seconds of sonde's ridge probes of all layers, of each part of their floor, and of the floor."""
    floor = Floor.of(store, problem)
    ours = partial(on_all_layers, store, fit_one, store, problem, "ridge", alphas)
    seconds = interleave({"sonde": ours, **floor.contestants()}, rounds)
    return seconds | {"floor": sum(seconds[part] for part in PARTS)}
