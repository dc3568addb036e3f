"""One layer of a store as a task: where it is, and what probing it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec, Store

from .cache import LayerCache
from .class_weights import ClassWeight
from .controls import Controls, measure
from .evaluate import Evaluation, evaluate
from .fit import PROBABILISTIC, Library, Solver, fit_layer, label_free
from .probe import Probe
from .problem import Problem
from .rows import HELD_BYTES, HeldRows


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """How every layer is probed.

    Attributes
    ----------
    solver, alphas, device, backend, class_weight
        As of `fit_layer`.
    cache
        Whether what no label changes is kept in the store.
    controls
        What is measured beside.
    """

    solver: Solver
    alphas: NDArray[np.float64]
    device: str | None = None
    backend: Library = "sonde"
    class_weight: ClassWeight | None = None
    cache: bool = True
    controls: Controls = field(default_factory=Controls)


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
    cv_error
        As of `Fit`.
    controls
        What `measure` gives.
    """

    spec: ArraySpec
    probe: Probe
    scores: NDArray[np.float64]
    evaluation: Evaluation
    cv_error: NDArray[np.float64]
    controls: Sequence[Mapping[str, Any]] = ()


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
        # Gram matrices of the folds, bases of the training parts, and what one decomposition works with.
        square = 8 * hidden**2 * (2 * n_parts + 4)
        # As they are read, and as logistic passes multiply them.
        held = sum(min(HELD_BYTES, len(problem.y) * hidden * size) for size in (itemsize, max(4, itemsize)))
        return square + held + 8 * problem.y.size * 6

    def run(self, problem: Problem, draws: NDArray[Any], recipe: Recipe) -> ProbedLayer:
        """Fit the layer's probes and evaluate them.

        Raises
        ------
        InputError
            As `fit_layer`; the message names the layer.
        StoreError
            If the layer cannot be read.
        """
        store, spec = Store.open(self.url), self.spec
        layer = store.layer(spec.site, spec.tokens, self.layer)
        solver, alphas, device = recipe.solver, recipe.alphas, recipe.device
        rows = HeldRows(layer, device=device)
        try:
            known = None
            if recipe.backend == "sonde" and solver != "mass-mean":
                cache = LayerCache.of(store.statistics, layer) if recipe.cache else None
                known = label_free(rows, problem, solver, device, cache)
            fit = fit_layer(
                rows,
                problem,
                solver,
                alphas,
                device,
                backend=recipe.backend,
                class_weight=recipe.class_weight,
                known=known,
            )
            evaluation = evaluate(
                problem,
                fit.scores,
                draws,
                probabilities=solver in PROBABILISTIC,
                alpha=fit.alpha,
                converged=fit.converged,
            )
            controls = list(
                measure(
                    recipe.controls,
                    rows,
                    problem,
                    fit,
                    evaluation,
                    draws,
                    solver=solver,
                    alphas=alphas,
                    device=device,
                    backend=recipe.backend,
                    class_weight=recipe.class_weight,
                    known=known,
                )
            )
        except InputError as error:
            raise InputError(f"layer {self.layer} of {spec.name}: {error}") from error
        probe = Probe(
            site=spec.site,
            tokens=spec.tokens,
            layer=self.layer,
            labels=problem.labels,
            solver=solver,
            kind=problem.kind,
            targets=problem.targets,
            weights=fit.weights,
            bias=fit.bias,
            alpha=tuple(fit.alpha.tolist()),
        )
        return ProbedLayer(spec, probe, fit.scores[problem.split.test], evaluation, fit.cv_error, controls)


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
        kept = ", ".join(f"{spec.name} of layers {list(spec.layers)}" for spec in rows)
        raise StoreError(
            f"{store.location} has no activations of these sites, tokens and layers together: it has {kept}"
        )
    return tasks
