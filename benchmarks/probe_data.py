"""Stores to probe: layers that know their labels through more or less noise, as residual streams do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.probes import ALPHAS, Fit, Problem, fit_layer
from sonde.probes.fit import Solver
from sonde.store import ArraySpec, Labels, Schema, Store, as_float32, bfloat16

Floats = NDArray[Any]

SITE, TOKENS = "resid_post", "last"
_RANGE_SIZE, _GROUP_SIZE = 1024, 4
# What a target depends on, and how many columns have a mean that is far from zero.
_LATENT, _FAR_COLUMNS, _FAR = 64, 4, 20.0
_RAREST, _FEWEST = 0.003, 30


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a store and of the grid of probes that is fitted to it; ``folds`` of the training rows, three in four."""

    layers: int
    rows: int
    hidden: int
    targets: int
    alphas: int
    folds: int

    def __str__(self) -> str:
        return (
            f"{self.layers} layers of {self.rows:,} x {self.hidden}, "
            f"{self.targets} targets, {self.alphas} alphas, {self.folds} folds"
        )

    def penalties(self, solver: Solver) -> Floats:
        """As many as there are to be, over the range of sonde's own."""
        return np.geomspace(ALPHAS[solver].min(), ALPHAS[solver].max(), self.alphas)


def write_store(place: Path, shape: Shape, labels: Sequence[str] = ("objects",)) -> Store:
    """Write bfloat16 layers and multi-label targets, from rare (0.3 % or 30 rows) to even.

    A layer is the same source in columns of falling variance, mixed anew, some of them far from zero; a target is a
    noisy half-space of the source. Four rows make a group.
    """
    random = np.random.default_rng(0)
    source = random.standard_normal((shape.rows, shape.hidden), dtype=np.float32)
    groups = [f"g{row // _GROUP_SIZE}" for row in range(shape.rows)]
    spec = ArraySpec(SITE, TOKENS, tuple(range(shape.layers)), shape.hidden)
    schema = Schema((spec,), shape.rows, min(_RANGE_SIZE, shape.rows), {"name": "benchmark"}, {})
    columns = {"id": [str(row) for row in range(shape.rows)], "group": groups}
    store = Store.create(place, schema, columns, fsync=False)
    falling = np.arange(1, shape.hidden + 1, dtype=np.float32) ** -0.5
    layers = np.empty((shape.layers, shape.rows, shape.hidden), dtype=bfloat16)
    for layer in layers:
        mixing = random.standard_normal((shape.hidden, shape.hidden), dtype=np.float32)
        x = (source * falling) @ mixing
        x[:, :_FAR_COLUMNS] += _FAR * x[:, :_FAR_COLUMNS].std(axis=0)
        layer[:] = x
    writer = store.writer()
    for range_ in store.ranges:
        buffers = writer.buffers()
        buffers[spec.name][:, : len(range_)] = layers[:, range_.rows]
        writer.commit(range_, buffers)
    store.refresh()
    latent = source[:, :_LATENT]
    rarity = np.geomspace(min(0.5, max(_RAREST, _FEWEST / shape.rows)), 0.5, shape.targets)
    for name in labels:
        signal = latent @ random.standard_normal((latent.shape[1], shape.targets))
        noisy = signal / signal.std(axis=0) + random.standard_normal(signal.shape)
        bounds = [np.quantile(column, 1 - share) for column, share in zip(noisy.T, rarity, strict=True)]
        names = tuple(f"target {t}" for t in range(shape.targets))
        store.write_labels(Labels(name, "multilabel", (noisy > bounds).astype(np.int8), names))
    return store


def fit_one(layer: int, store: Store, problem: Problem, solver: Solver, alphas: Floats) -> Fit:
    """Probe one layer: what `sonde.probe` does before it evaluates."""
    return fit_layer(store.layer(SITE, TOKENS, layer), problem, solver, alphas)


@dataclass(frozen=True, slots=True, eq=False)
class LayerData:
    """One layer in memory, as peers are given it: float32 activations ``[row, hidden]``, targets ``[row, target]``.

    Attributes
    ----------
    x, y, folds
        Training rows; folds are of groups.
    test_x, test_y
        Test rows.
    alphas
        Penalties to choose from.
    """

    x: Floats
    y: Floats
    folds: Floats
    test_x: Floats
    test_y: Floats
    alphas: Floats

    @classmethod
    def of(cls, store: Store, problem: Problem, layer: int, alphas: Floats) -> LayerData:
        """Read a layer."""
        x = as_float32(store.layer(SITE, TOKENS, layer).numpy())
        train, test = problem.split.folds >= 0, problem.split.test
        return cls(x[train], problem.y[train], problem.split.folds[train], x[test], problem.y[test], alphas)
