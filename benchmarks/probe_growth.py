"""How the time of ridge probes grows in each of their sizes, beside its floor."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonde.probes import Problem

from .probe_data import Shape, write_store
from .probe_floor import time_ridge

Row = dict[str, Any]

SIZES = ("rows", "hidden", "targets", "alphas", "folds", "layers")
"""Of a `Shape`."""


@dataclass(frozen=True, slots=True)
class Growth:
    """One shape, and by what each of its sizes is multiplied while the others stay.

    Attributes
    ----------
    base
        The shape.
    factors
        Of every size.
    rounds
        Counted runs of each.
    """

    base: Shape
    factors: Sequence[float]
    rounds: int


def grow(folder: Path, growth: Growth) -> list[Row]:
    """Time sonde and its floor at every size."""
    rows: list[Row] = []
    for size in SIZES:
        for factor in growth.factors:
            value = round(factor * getattr(growth.base, size))
            shape = replace(growth.base, **{size: value})
            store = write_store(folder / "growing.zarr", shape)
            problem = Problem.of(store, "objects", n_folds=shape.folds)
            seconds = time_ridge(store, problem, shape.penalties("ridge"), growth.rounds)
            rows += [
                {"what": _question(size), "who": who, "size": value, "seconds": seconds[who]}
                for who in ("sonde", "floor")
            ]
            shutil.rmtree(str(store.location))
    return rows


def draw(rows: Sequence[Row], growth: Growth, folder: Path) -> Path:
    """Draw small multiples, one for each size, to ``growth.svg``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    for axes, size in zip(figure.subplots(2, 3, sharey=True).flat, SIZES, strict=True):
        for who, style in (("sonde", "o-"), ("floor", "s--")):
            points = [(r["size"], r["seconds"]) for r in rows if (r["what"], r["who"]) == (_question(size), who)]
            axes.loglog(*zip(*points, strict=True), style, label=who, markersize=4)
        axes.set_xlabel(size)
        axes.set_xticks([x for x, _ in points], [f"{x:,}" for x, _ in points])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    figure.supylabel("seconds")
    figure.suptitle(f"Ridge probes of {growth.base}: one size varied", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(path := folder / "growth.svg")
    return path


def _question(size: str) -> str:
    return f"ridge as {size} grow"
