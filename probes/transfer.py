"""Transfer between variants of a question: what probes that were trained on one prompt know of another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .bootstrap import Difference, interval, paired_difference
from .class_weights import ClassWeight
from .fit import Library, Solver, fit_layer
from .metrics import PRIMARY, score
from .problem import Problem
from .rows import HeldRows, Rows
from .sums import macro


@dataclass(frozen=True, slots=True, eq=False)
class Transfer:
    """Scores of probes trained on one variant (row of the matrix) and tested on another (column).

    Attributes
    ----------
    variants
        Names of the V variants, ascending.
    metric
        Name of the score, the primary metric of the labels' kind.
    value, low, high
        float64 ``[V, V]``, over all targets together; ends of the bootstrap interval.
    draws
        float64 ``[draw, V, V]``: the score under each bootstrap draw, for intervals of differences.
    left_out
        Multi-label targets that do not vary in some variant, and are left out of all.
    """

    variants: tuple[str, ...]
    metric: str
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    draws: NDArray[np.float64]
    left_out: tuple[str, ...]

    def loss(self) -> Difference:
        """Mean score on the variant that was trained on, less that on the others; NaN if there is one variant only."""
        own = np.eye(len(self.variants), dtype=bool)
        if own.all():
            missing = np.asarray(np.nan)
            return Difference(missing, missing, missing, missing)
        return paired_difference(
            self.value[own].mean(), self.value[~own].mean(), *(self.draws[:, part].mean(axis=1) for part in (own, ~own))
        )


def transfer(
    rows: Rows,
    problem: Problem,
    variants: NDArray[np.str_],
    draws: NDArray[Any],
    *,
    solver: Solver = "ridge",
    alphas: Any = None,
    device: str | None = None,
    backend: Library = "sonde",
    class_weight: ClassWeight | None = None,
) -> Transfer:
    """Train probes on the training rows of every variant and score each on the test rows of every variant.

    A probe sees the folds of its own variant alone, for its penalty too. Test groups are those of the problem, so no
    group is trained on in one variant and tested in another.

    Parameters
    ----------
    rows
        The layer's activations. Every row enters one variant's statistics; a layer too large to be held in memory is
        read again for each.
    problem
        Targets, test rows, folds and groups.
    variants
        Variant of each sample, such as the number of its prompt.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap, the same for all cells.
    solver, alphas, device, backend, class_weight
        As in `sonde.probes.fit_layer`.

    Raises
    ------
    InputError
        If there is not one variant per sample, a variant has no test row, no target varies in all training parts of
        all variants, or the layer cannot be fitted.
    """
    variants = np.asarray(variants, dtype=np.str_)
    if variants.shape != problem.groups.shape:
        raise InputError(f"variants of shape {variants.shape} for {len(problem.y)} samples: give one per sample")
    test, folds = problem.split.test, problem.split.folds
    names = np.unique(variants[test | (folds >= 0)]).tolist()
    kept = _common_targets(problem, variants, names)
    left_out = tuple(np.array(problem.targets)[~kept].tolist())
    problem = replace(problem, y=problem.y[:, kept], targets=tuple(np.array(problem.targets)[kept].tolist()))
    metric = PRIMARY[problem.kind]
    value = np.empty((len(names), len(names)))
    drawn = np.empty((len(draws), len(names), len(names)))
    rows = HeldRows(rows)
    for i, trained in enumerate(names):
        split = replace(problem.split, folds=np.where(variants == trained, folds, -1))
        asked = replace(problem, split=split)
        scores = fit_layer(rows, asked, solver, alphas, device, backend=backend, class_weight=class_weight).scores
        for j, tested in enumerate(names):
            here = test & (variants == tested)
            answer = problem.truth(here), scores[here]
            value[i, j] = macro(score(problem.kind, *answer)[metric])
            drawn[:, i, j] = macro(score(problem.kind, *answer, draws[:, here[test]])[metric])
    low, high = interval(drawn)
    return Transfer(tuple(names), metric, value, low, high, drawn, left_out)


def _common_targets(problem: Problem, variants: NDArray[np.str_], names: list[str]) -> NDArray[np.bool_]:
    """Find the targets that vary in every training part, and if they are many, in the test rows, of every variant."""
    kept = np.ones(len(problem.targets), dtype=bool)
    for name in names:
        mine = variants == name
        if not (mine & problem.split.test).any():
            raise InputError(f"variant {name!r} has no test row: leave it out, or test more groups")
        folds = np.where(mine, problem.split.folds, -1)
        parts = [(folds >= 0) & (folds != fold) for fold in range(problem.split.n_folds)]
        if problem.kind == "multilabel":
            parts.append(mine & problem.split.test)
        varies = np.all([(problem.y[part] != problem.y[part][:1]).any(axis=0) for part in parts], axis=0)
        if problem.kind == "multilabel":
            kept &= varies
        elif not varies.all():
            lacking = problem.targets[int(np.argmin(varies))]
            raise InputError(
                f"the target {lacking!r} is the same in all of a training part of variant {name!r}: "
                "leave the variant out, or use fewer folds"
            )
    if not kept.any():
        raise InputError(f"no target of {problem.labels!r} varies in all parts of all variants: drop rare variants")
    return kept
