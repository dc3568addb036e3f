"""Probing a store: every chosen layer as a task of its own, then one table."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.errors import StoreError
from sonde.store import Store, versions

from .bootstrap import cluster_weights
from .compare import compare_layers, draw_table
from .evaluate import evaluate, warn_of_missing_positives
from .fit import ALPHAS, Solver, ensure_solvable
from .layers import LayerTask, ProbedLayer, layer_tasks
from .metrics import PRIMARY
from .probe import save_probes
from .problem import Problem
from .results import BASELINE, Results
from .ridge import alpha_array
from .schedule import run_tasks
from .tables import COLUMNS, COMPARISON_COLUMNS, write_atomically

log = logging.getLogger(__name__)


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
        Local worker processes; left out, threads of this process. A script must ask for them under
        ``if __name__ == "__main__":``, as for all processes of Python.
    out
        Folder for the tables ``results``, ``comparisons``, ``draws`` and ``scores`` and the probes; must not exist.
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
        If an option, the labels or the activations cannot be used, or no scheduler answers.
    WorkerError
        If worker processes keep dying.
    """
    store = store if isinstance(store, Store) else Store.open(store)
    tasks = layer_tasks(store, sites, tokens, layers)
    if not store.complete:
        raise StoreError(
            f"{store.location} is not finished: {len(store.missing)} of {len(store.ranges)} ranges are missing; "
            "finish it with `sonde extract --resume`"
        )
    problem = Problem.of(store, labels, test_size=test_size, n_folds=n_folds, seed=seed)
    ensure_solvable(problem, solver)
    warn_of_missing_positives(problem)
    penalties = ALPHAS[solver] if alphas is None else alpha_array(alphas)
    draws = cluster_weights(problem.groups[problem.split.test].tolist(), n_draws, seed)
    # The folder comes first: hours of probing must not end at one that cannot be made.
    folder: AbstractContextManager[Path | None] = nullcontext() if out is None else _new_folder(Path(out))
    with folder as path:
        done: list[ProbedLayer] = []
        shared = (problem, draws, solver, penalties, device)
        for probed in run_tasks(LayerTask.run, tasks, shared, scheduler=scheduler, workers=workers):
            done.append(probed)
            if on_progress is not None:
                on_progress(len(done), len(tasks))
        order = {(task.spec.name, task.layer): i for i, task in enumerate(tasks)}
        done.sort(key=lambda probed: order[probed.spec.name, probed.probe.layer])
        _warn_of_edges(done, penalties, int((problem.split.folds >= 0).sum()))
        results = _table(store, problem, draws, done, solver, penalties, seed)
        if path is not None:
            save_probes(path, [probed.probe for probed in done])
            _save_scores(path, problem, store.ids, done)
            # The results come last: a folder that has them is complete.
            results.save(path)
    return results


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Make a folder, and remove it again if nothing came to be in it before an error."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        raise StoreError(f"{path} exists already; choose another --out") from None
    except OSError as error:
        raise StoreError(f"cannot make the folder {path} ({error.strerror}); choose another --out") from error
    try:
        yield path
    except BaseException:
        with suppress(OSError):
            path.rmdir()
        raise


def _warn_of_edges(done: Sequence[ProbedLayer], alphas: NDArray[np.float64], n_train: int) -> None:
    """Say once how many layers chose a penalty beyond which a better one may lie."""
    if alphas.size < 2:
        return
    edges = {"weakest": alphas.min()}
    # Standardised columns have sums of squares of n: a penalty above that leaves little of any probe, and to choose it
    # says that there is nothing to learn.
    if alphas.max() < n_train:
        edges["strongest"] = alphas.max()
    for name, edge in edges.items():
        n_layers = sum(edge in probed.probe.alpha for probed in done)
        if n_layers:
            log.warning(
                "%d of %d layers chose the %s penalty, alpha %g: beyond it may be a better one; widen the alphas",
                n_layers,
                len(done),
                name,
                edge,
            )


def _table(
    store: Store,
    problem: Problem,
    draws: NDArray[Any],
    done: Sequence[ProbedLayer],
    solver: str,
    alphas: NDArray[np.float64],
    seed: int,
) -> Results:
    model, name, primary = str(store.schema.model.get("name")), store.location.name, PRIMARY[problem.kind]
    origin = {"model": model, "store": name, "labels": problem.labels}
    common = origin | {"split_hash": problem.split.hash, "seed": seed}
    records = [
        common | {"site": p.spec.site, "tokens": p.spec.tokens, "layer": p.probe.layer, "solver": solver} | record
        for p in done
        for record in p.evaluation.records
    ]
    constant = np.tile(problem.prior(), (len(problem.y), 1))
    baseline = evaluate(problem, constant, draws, probabilities=problem.kind != "regression", cross_validated=False)
    where = {"site": "", "tokens": "", "layer": -1, "solver": BASELINE}
    records += [common | where | record for record in baseline.records]
    comparisons = [origin | {"solver": solver} | row for row in compare_layers(done, primary)]
    provenance = {
        "model": model,
        "weights": store.schema.model.get("weights", "pretrained"),
        "store": name,
        "store_path": str(store.location),
        "n_layers": store.schema.model.get("n_layers"),
        "primary": {problem.labels: primary},
        "kind": problem.kind,
        "solver": solver,
        "alphas": alphas.tolist(),
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
        [draw_table(done).assign(**origin, solver=solver)],
    )


def _save_scores(folder: Path, problem: Problem, ids: NDArray[np.str_], done: Sequence[ProbedLayer]) -> None:
    """Write raw test scores, a row per layer, sample and target, to ``scores.parquet``, a row group per layer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    test, n_targets = problem.split.test, len(problem.targets)
    row = np.repeat(np.arange(int(test.sum())), n_targets)
    shared = {
        "id": pa.array(ids[test].tolist()).take(pa.array(row)),
        "target": pa.array(problem.targets).take(pa.array(np.arange(row.size) % n_targets)),
        "truth": problem.y[test].reshape(-1),
    }
    buffer = BytesIO()
    writer: pq.ParquetWriter | None = None
    for probed in done:
        where = {"site": probed.spec.site, "tokens": probed.spec.tokens, "layer": probed.probe.layer}
        columns = {name: pa.repeat(value, row.size) for name, value in where.items()}
        table = pa.table(columns | shared | {"score": probed.scores.reshape(-1)})
        writer = writer or pq.ParquetWriter(buffer, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None, "there is at least one task"
    writer.close()
    write_atomically(folder / "scores.parquet", buffer.getvalue())
