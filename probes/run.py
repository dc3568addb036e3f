"""Probing a store: every chosen layer as a task of its own, then one table."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError
from sonde.store import Store, versions

from .bootstrap import cluster_weights, paired_difference
from .evaluate import Evaluation, evaluate
from .fit import ALPHAS, Solver, ensure_solvable
from .layers import LayerTask, ProbedLayer, layer_tasks
from .metrics import PRIMARY, higher_is_better
from .parts import LAYERS, Parts
from .probe import save_probes
from .problem import ALL, Problem
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
    resume: bool = False,
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
        Folder for ``results.parquet``, ``comparisons.parquet``, ``scores.parquet`` and the probes; must not exist. While
        layers are probed, those that are done are in its folder ``layers``.
    resume
        Go on with the layers that a run to ``out`` has left, or begin it.
    on_progress
        Called with (layers done, layers in all).

    Returns
    -------
    Results

    Raises
    ------
    StoreError
        If the store is not complete or lacks what is asked for, or ``out`` exists, or was begun with other options.
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
    penalties = ALPHAS[solver] if alphas is None else alpha_array(alphas)
    draws = cluster_weights(problem.groups[problem.split.test].tolist(), n_draws, seed)
    common = _origin(store, problem) | {"split_hash": problem.split.hash, "seed": seed}
    about = {
        "store": str(store.location),
        "labels": _digest(problem),
        "split": problem.split.hash,
        "solver": solver,
        "alphas": penalties.tolist(),
        "seed": seed,
        "draws": n_draws,
        "device": device,
    }
    # The folder comes first: hours of probing must not end at one that cannot be made.
    with _folder(out, resume) as path:
        if path is not None and (path / "results.parquet").is_file():
            log.info("%s is finished", path)
            return Results.load(path)
        parts = None if path is None else Parts(path, about, common)
        done = parts.begin(tasks) if parts is not None else []
        known = {(probed.spec.name, probed.probe.layer) for probed in done}
        left = [task for task in tasks if (task.spec.name, task.layer) not in known]
        if done and on_progress is not None:
            on_progress(len(done), len(tasks))
        shared = (problem, draws, solver, penalties, device)
        for probed in run_tasks(
            LayerTask.run,
            left,
            shared,
            scheduler=scheduler,
            workers=workers,
            device=device,
            task_bytes=max((task.nbytes(problem, store.schema.numpy_dtype.itemsize) for task in left), default=0),
        ):
            done.append(probed)
            if parts is not None:
                parts.add(probed)
            if on_progress is not None:
                on_progress(len(done), len(tasks))
        order = {(task.spec.name, task.layer): i for i, task in enumerate(tasks)}
        done.sort(key=lambda probed: order[probed.spec.name, probed.probe.layer])
        _warn_of_edges(done, penalties, int((problem.split.folds >= 0).sum()))
        results = _table(store, problem, draws, done, solver, penalties, seed)
        if path is not None and parts is not None:
            save_probes(path, [probed.probe for probed in done])
            _save_scores(path, problem, store.ids, done)
            # The results come last: a folder that has them is complete.
            results.save(path)
            parts.remove()
    return results


@contextmanager
def _folder(out: str | os.PathLike[str] | None, resume: bool) -> Iterator[Path | None]:
    """Make the folder of a run, and remove it again if nothing came to be in it before an error."""
    if out is None:
        if resume:
            raise InputError("a run without a folder leaves nothing to resume: give `out`")
        yield None
        return
    path = Path(out)
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        if not (resume and ((path / LAYERS).is_dir() or (path / "results.parquet").is_file())):
            raise StoreError(
                f"{path} exists already; choose another --out, or go on with a run that was cut off with --resume"
            ) from None
    except OSError as error:
        raise StoreError(f"cannot make the folder {path} ({error.strerror}); choose another --out") from error
    try:
        yield path
    except BaseException:
        if any(path.glob(f"{LAYERS}/*.parquet")):
            log.warning("the layers that are done are kept in %s; --resume goes on with the others", path)
        else:
            shutil.rmtree(path / LAYERS, ignore_errors=True)
            with suppress(OSError):
                path.rmdir()
        raise


def _origin(store: Store, problem: Problem) -> dict[str, str]:
    return {"model": str(store.schema.model.get("name")), "store": store.location.name, "labels": problem.labels}


def _digest(problem: Problem) -> str:
    """Digest of what is asked of which sample."""
    used = (problem.split.folds >= 0) | problem.split.test
    named = json.dumps([problem.labels, problem.kind, problem.targets]).encode()
    return hashlib.blake2b(named + problem.y[used].tobytes() + used.tobytes(), digest_size=16).hexdigest()


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
    origin, primary = _origin(store, problem), PRIMARY[problem.kind]
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
    comparisons = [origin | {"solver": solver, "metric": primary} | row for row in _comparisons(done, primary)]
    provenance = {
        "model": origin["model"],
        "weights": store.schema.model.get("weights", "pretrained"),
        "store": origin["store"],
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
    )


def _comparisons(done: Sequence[ProbedLayer], metric: str) -> Iterator[dict[str, Any]]:
    """Compare the best layer, chosen by cross-validation, with the last one on the same bootstrap draws."""
    sign = 1 if higher_is_better(metric) else -1
    curves: dict[str, list[ProbedLayer]] = {}
    for probed in done:
        curves.setdefault(probed.spec.name, []).append(probed)
    for curve in curves.values():
        if len(curve) < 2:
            continue
        best = max(curve, key=lambda probed: sign * _value(probed.evaluation, metric, "cv"))
        top = curve[-1]
        values = _value(best.evaluation, metric, "test"), _value(top.evaluation, metric, "test")
        difference = paired_difference(*values, best.evaluation.draws, top.evaluation.draws)
        yield {
            "site": top.spec.site,
            "tokens": top.spec.tokens,
            "best_layer": best.probe.layer,
            "top_layer": top.probe.layer,
            "best": values[0],
            "top": values[1],
            "difference": float(difference.value),
            "low": float(difference.low),
            "high": float(difference.high),
        }


def _value(evaluation: Evaluation, metric: str, split: str) -> float:
    wanted = (metric, ALL, split)
    return next(float(r["value"]) for r in evaluation.records if (r["metric"], r["target"], r["split"]) == wanted)


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
