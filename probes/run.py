"""Probing a store: every chosen layer as one Dask task, then one table."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec, Store, versions

from .bootstrap import cluster_weights, paired_difference
from .evaluate import ALL, Evaluation, evaluate
from .fit import Fit, Solver, fit_layer
from .metrics import PRIMARY, higher_is_better
from .probe import Probe, save_probes
from .problem import Problem
from .results import BASELINE, Results
from .tables import COLUMNS, COMPARISON_COLUMNS, write_atomically


@dataclass(frozen=True, slots=True)
class _Task:
    """One layer to be probed."""

    url: str
    spec: ArraySpec
    layer: int

    def run(
        self, problem: Problem, draws: NDArray[Any], solver: Solver, alphas: Any, device: str | None
    ) -> tuple[_Task, Fit, Evaluation]:
        rows = Store.open(self.url).layer(self.spec.site, self.spec.tokens, self.layer)
        fit = fit_layer(rows, problem, solver, alphas, device)
        evaluation = evaluate(
            problem,
            fit.scores,
            draws,
            probabilities=solver == "logistic",
            alpha=fit.alpha,
            converged=fit.converged,
        )
        return self, fit, evaluation


def probe(
    store: Store | str | os.PathLike[str],
    labels: str,
    *,
    solver: Solver = "ridge",
    sites: Sequence[str] | None = None,
    tokens: Sequence[str] | None = None,
    layers: Sequence[int] | None = None,
    alphas: Sequence[float] | None = None,
    test_size: float = 0.25,
    n_folds: int = 5,
    n_draws: int = 1000,
    seed: int = 0,
    device: str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    out: str | os.PathLike[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Results:
    """Fit linear probes to every layer of a store.

    The penalty is chosen by cross-validation over group-wise folds of the training samples, the best layer by its
    cross-validated score; test samples are scored once.

    Parameters
    ----------
    store
        A complete store, or where it is.
    labels
        Name of labels in the store.
    solver
        ``ridge``: least squares on 0/1 targets or values; ``logistic``: sigmoid or softmax.
    sites, tokens, layers
        Which activations; all if left out.
    alphas
        Penalties to choose from, on standardised activations: scikit-learn's Ridge ``alpha``, logistic ``1 / C``.
    test_size
        Share of samples to test, whole groups; a ``split`` column in the store overrides it.
    n_folds, n_draws, seed
        Folds of the cross-validation, draws of the cluster bootstrap, seed of both.
    device
        Torch device to compute on, such as ``cuda``; left out, numpy.
    scheduler
        Address of a Dask scheduler, ``tcp://…``; its workers must see the store at the same place.
    workers
        Local worker processes; left out, threads of this process.
    out
        Folder for ``results.parquet``, ``comparisons.parquet``, ``scores.parquet`` and the probes; must not exist.
    on_progress
        Called with (layers done, layers in all).

    Returns
    -------
    Results

    Raises
    ------
    StoreError
        If the store is not complete or lacks what is asked for, or ``out`` exists.
    InputError
        If an option, the labels or the activations cannot be used.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    if solver not in get_args(Solver):
        raise InputError(f"unknown solver {solver!r}: there are {', '.join(get_args(Solver))}")
    if out is not None and Path(out).exists():
        raise StoreError(f"{out} exists already; choose another --out")
    tasks = _tasks(store, sites, tokens, layers)
    if not tasks:
        raise StoreError(f"{store.location} has no activations of these sites, tokens and layers together")
    if not store.complete:
        raise StoreError(
            f"{store.location} is not finished: {len(store.missing)} of {len(store.ranges)} ranges are missing; "
            "finish it with `sonde extract --resume`"
        )
    problem = Problem.of(store, labels, test_size=test_size, n_folds=n_folds, seed=seed)
    if solver == "logistic" and problem.kind == "regression":
        raise InputError(f"labels {labels!r} are numbers: logistic probes need classes; use the solver ridge")
    draws = cluster_weights(store.groups[problem.split.test].tolist(), n_draws, seed)
    done: list[tuple[_Task, Fit, Evaluation]] = []
    for result in _compute(tasks, (problem, draws, solver, alphas, device), scheduler, workers):
        done.append(result)
        if on_progress is not None:
            on_progress(len(done), len(tasks))
    order = {task: i for i, task in enumerate(tasks)}
    done.sort(key=lambda result: order[result[0]])
    results = _table(store, problem, draws, done, solver, seed)
    if out is not None:
        folder = Path(out)
        results.save(folder)
        save_probes(folder, [_probe(problem, solver, task, fit) for task, fit, _ in done])
        _save_scores(folder, store, problem, done)
    return results


def _tasks(
    store: Store, sites: Sequence[str] | None, tokens: Sequence[str] | None, layers: Sequence[int] | None
) -> list[_Task]:
    for name, asked, there in (
        ("site", sites, {a.site for a in store.arrays}),
        ("tokens", tokens, {a.tokens for a in store.arrays}),
        ("layer", layers, {layer for a in store.arrays for layer in a.layers}),
    ):
        unknown = [value for value in asked or () if value not in there]
        if unknown:
            raise StoreError(f"{store.location} has no {name} {unknown[0]!r}: it has {sorted(there)}")
    return [
        _Task(str(store.location), spec, layer)
        for spec in store.arrays
        if (sites is None or spec.site in sites) and (tokens is None or spec.tokens in tokens)
        for layer in spec.layers
        if layers is None or layer in layers
    ]


def _compute(
    tasks: Sequence[_Task], arguments: tuple[Any, ...], scheduler: str | None, workers: int | None
) -> Iterator[tuple[_Task, Fit, Evaluation]]:
    """Run the tasks on threads, local processes or a cluster, and give out what is done."""
    if scheduler is None and workers is None:
        yield from _on_threads(tasks, arguments)
        return
    import distributed

    with ExitStack() as stack:
        if scheduler is None:
            cluster = distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            client = stack.enter_context(distributed.Client(stack.enter_context(cluster)))
        else:
            try:
                client = stack.enter_context(distributed.Client(scheduler, timeout="10s"))
            except (OSError, ValueError) as error:
                raise InputError(f"no Dask scheduler answers at {scheduler!r} ({error}); check --scheduler") from error
        shared = client.scatter(list(arguments), broadcast=True)
        for future in distributed.as_completed([client.submit(_Task.run, task, *shared) for task in tasks]):
            yield future.result()


def _on_threads(tasks: Sequence[_Task], arguments: tuple[Any, ...]) -> Iterator[tuple[_Task, Fit, Evaluation]]:
    from dask.base import compute
    from dask.delayed import delayed
    from threadpoolctl import threadpool_limits

    n_cores = os.cpu_count() or 1
    n_threads = min(len(tasks), n_cores)
    # One layer per core: BLAS threads of their own would fight over the cores.
    with threadpool_limits(n_cores // n_threads):
        for start in range(0, len(tasks), 4 * n_threads):
            some = [delayed(_Task.run)(task, *arguments) for task in tasks[start : start + 4 * n_threads]]
            yield from compute(*some, scheduler="threads", num_workers=n_threads)


def _table(
    store: Store,
    problem: Problem,
    draws: NDArray[Any],
    done: Sequence[tuple[_Task, Fit, Evaluation]],
    solver: str,
    seed: int,
) -> Results:
    model, name = str(store.schema.model.get("name")), store.location.root.name
    common = {
        "model": model,
        "store": name,
        "labels": problem.labels,
        "split_hash": problem.split.hash,
        "seed": seed,
    }
    records = [
        common | {"site": t.spec.site, "tokens": t.spec.tokens, "layer": t.layer, "solver": solver} | record
        for t, _, evaluation in done
        for record in evaluation.records
    ]
    constant = np.tile(problem.prior(), (len(problem.y), 1))
    baseline = evaluate(problem, constant, draws, probabilities=problem.kind != "regression", cross_validated=False)
    where = {"site": "", "tokens": "", "layer": -1, "solver": BASELINE}
    records += [common | where | record for record in baseline.records]
    primary = PRIMARY[problem.kind]
    comparisons = [
        {"model": model, "store": name, "labels": problem.labels, "solver": solver, "metric": primary} | row
        for row in _comparisons(done, primary)
    ]
    provenance = {
        "model": model,
        "weights": store.schema.model.get("weights", "pretrained"),
        "store": name,
        "store_path": str(store.location),
        "n_layers": store.schema.model.get("n_layers"),
        "primary": {problem.labels: primary},
        "kind": problem.kind,
        "solver": solver,
        "seed": seed,
        "n_folds": problem.split.n_folds,
        "n_draws": len(draws),
        "split_hash": problem.split.hash,
        "left_out": problem.left_out,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "extraction": {
            "model": dict(store.schema.model),
            "data": dict(store.schema.data),
            "capture": dict(store.schema.capture),
            "versions": dict(store.schema.versions),
        },
    }
    throughput = store.throughput()
    if throughput:
        provenance["throughput"] = throughput
    return Results(
        pd.DataFrame.from_records(records, columns=list(COLUMNS)),
        pd.DataFrame.from_records(comparisons, columns=list(COMPARISON_COLUMNS)),
        provenance,
    )


def _comparisons(done: Sequence[tuple[_Task, Fit, Evaluation]], metric: str) -> Iterator[dict[str, Any]]:
    """Compare the best layer, chosen by cross-validation, with the last one on the same bootstrap draws."""
    sign = 1 if higher_is_better(metric) else -1
    curves: dict[ArraySpec, list[tuple[_Task, Evaluation]]] = {}
    for task, _, evaluation in done:
        curves.setdefault(task.spec, []).append((task, evaluation))
    for spec, curve in curves.items():
        if len(curve) < 2:
            continue
        best_task, best = max(curve, key=lambda entry: sign * _value(entry[1], metric, "cv"))
        top_task, top = curve[-1]
        values = _value(best, metric, "test"), _value(top, metric, "test")
        difference = paired_difference(*values, best.draws, top.draws)
        yield (
            {
                "site": spec.site,
                "tokens": spec.tokens,
                "best_layer": best_task.layer,
                "top_layer": top_task.layer,
                "best": values[0],
                "top": values[1],
            }
            | {key: float(value) for key, value in asdict(difference).items() if key != "value"}
            | {"difference": float(difference.value)}
        )


def _value(evaluation: Evaluation, metric: str, split: str) -> float:
    wanted = (metric, ALL, split)
    return next(float(r["value"]) for r in evaluation.records if (r["metric"], r["target"], r["split"]) == wanted)


def _probe(problem: Problem, solver: str, task: _Task, fit: Fit) -> Probe:
    return Probe(
        site=task.spec.site,
        tokens=task.spec.tokens,
        layer=task.layer,
        labels=problem.labels,
        solver=solver,
        kind=problem.kind,
        targets=problem.targets,
        weights=fit.weights,
        bias=fit.bias,
        alpha=tuple(fit.alpha.tolist()),
    )


def _save_scores(folder: Path, store: Store, problem: Problem, done: Sequence[tuple[_Task, Fit, Evaluation]]) -> None:
    """Write raw test scores, a row per layer, sample and target, to ``scores.parquet``."""
    test, targets = problem.split.test, list(problem.targets)
    ids = store.ids[test]
    tables = [
        pd.DataFrame(
            {
                "site": task.spec.site,
                "tokens": task.spec.tokens,
                "layer": task.layer,
                "id": np.repeat(ids, len(targets)),
                "target": np.tile(targets, len(ids)),
                "truth": problem.y[test].reshape(-1),
                "score": fit.scores[test].reshape(-1),
            }
        )
        for task, fit, _ in done
    ]
    write_atomically(folder / "scores.parquet", pd.concat(tables, ignore_index=True).to_parquet(index=False))
