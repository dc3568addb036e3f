"""One layer of a store as a task: where it is, and what probing it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec, Store

from .evaluate import Evaluation, evaluate
from .fit import HELD_BYTES, Solver, fit_layer
from .probe import Probe
from .problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class ProbedLayer:
    """What comes back from one layer.

    Attributes
    ----------
    spec
        The array that the layer is of.
    probe
        Of all training rows.
    scores
        float64 ``[test row, target]``: the probe's.
    evaluation
        Their metrics, and those of the folds.
    """

    spec: ArraySpec
    probe: Probe
    scores: NDArray[np.float64]
    evaluation: Evaluation


@dataclass(frozen=True, slots=True)
class LayerTask:
    """One layer to be probed.

    Attributes
    ----------
    url
        Where the store is.
    spec, layer
        One of its arrays, and one of that array's layers.
    """

    url: str
    spec: ArraySpec
    layer: int

    def nbytes(self, problem: Problem, itemsize: int) -> int:
        """Estimate the memory that `run` takes at its peak; of the number of samples, only labels and scores grow."""
        hidden, n_parts = self.spec.hidden, problem.split.n_folds + 1
        # Gram matrices of the folds, eigenbases of the training parts, and what one decomposition works with.
        square = 8 * hidden**2 * (2 * n_parts + 4)
        held = min(HELD_BYTES, len(problem.y) * hidden * itemsize)
        return square + held + 8 * problem.y.size * 6

    def run(
        self, problem: Problem, draws: NDArray[Any], solver: Solver, alphas: NDArray[np.float64], device: str | None
    ) -> ProbedLayer:
        """Fit the layer's probes and evaluate them; arguments as of `fit_layer` and `evaluate`.

        Raises
        ------
        InputError
            As `fit_layer`; the message names the layer.
        StoreError
            If the layer cannot be read.
        """
        rows = Store.open(self.url).layer(self.spec.site, self.spec.tokens, self.layer)
        try:
            fit = fit_layer(rows, problem, solver, alphas, device)
        except InputError as error:
            raise InputError(f"layer {self.layer} of {self.spec.name}: {error}") from error
        probabilities = solver == "logistic"
        evaluation = evaluate(
            problem, fit.scores, draws, probabilities=probabilities, alpha=fit.alpha, converged=fit.converged
        )
        probe = Probe(
            site=self.spec.site,
            tokens=self.spec.tokens,
            layer=self.layer,
            labels=problem.labels,
            solver=solver,
            kind=problem.kind,
            targets=problem.targets,
            weights=fit.weights,
            bias=fit.bias,
            alpha=tuple(fit.alpha.tolist()),
        )
        return ProbedLayer(self.spec, probe, fit.scores[problem.split.test], evaluation)


def layer_tasks(
    store: Store, sites: Sequence[str] | None, tokens: Sequence[str] | None, layers: Sequence[int] | None
) -> list[LayerTask]:
    """List the layers of a store that are of the given sites, tokens and layers; None is all of them.

    Raises
    ------
    StoreError
        If the store lacks one of them, or has no layer that is of all three; the message lists what there is.
    """
    for name, asked, there in (
        ("site", sites, {a.site for a in store.arrays}),
        ("tokens", tokens, {a.tokens for a in store.arrays}),
        ("layer", layers, {layer for a in store.arrays for layer in a.layers}),
    ):
        unknown = [value for value in asked or () if value not in there]
        if unknown:
            raise StoreError(f"{store.location} has no {name} {unknown[0]!r}: it has {sorted(there)}")
    rows = [spec for spec in store.arrays if not spec.ragged]
    if not rows:
        raise StoreError(
            f"{store.location} keeps every token, and no array of one row per sample: make one with store.pool('mean')"
        )
    tasks = [
        LayerTask(str(store.location), spec, layer)
        for spec in rows
        if (sites is None or spec.site in sites) and (tokens is None or spec.tokens in tokens)
        for layer in spec.layers
        if layers is None or layer in layers
    ]
    if not tasks:
        raise StoreError(f"{store.location} has no activations of these sites, tokens and layers together")
    return tasks
