"""The tables of a run, made of what its layers gave."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.store import Store, versions

from .compare import compare_layers, draw_table
from .evaluate import evaluate
from .layers import ProbedLayer, Recipe
from .metrics import PRIMARY
from .problem import Problem
from .results import MAJORITY, TEXT, Results
from .tables import (
    COLUMNS,
    COMPARISON_COLUMNS,
    CONTROL_COLUMNS,
    PENALTY_COLUMNS,
    RELIABILITY_COLUMNS,
    write_atomically,
)


def origin_of(store: Store, problem: Problem, seed: int) -> dict[str, Any]:
    """Columns of the results that are the same for all layers."""
    model = str(store.schema.model.get("name"))
    where = {"model": model, "store": store.location.name, "labels": problem.labels}
    return where | {"split_hash": problem.split.hash, "seed": seed}


def about_run(store: Store, problem: Problem, recipe: Recipe, n_draws: int) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON."""
    used, controls = (problem.split.folds >= 0) | problem.split.test, recipe.controls
    named = json.dumps([problem.labels, problem.kind, problem.targets]).encode()
    return {
        "store": str(store.location),
        "labels": _digest(named, problem.y[used], used),
        "split": problem.split.hash,
        "solver": recipe.solver,
        "backend": recipe.backend,
        "alphas": recipe.alphas.tolist(),
        "class weights": repr(recipe.class_weight),
        "device": recipe.device,
        "seed": controls.seed,
        "draws": n_draws,
        "permutations": controls.permutations,
        "codelength": controls.codelength,
        "control task": None if controls.task is None else _digest(controls.task.problem.y),
        "erased": None if controls.erased is None else _digest(controls.erased),
        "transfer": None if controls.variants is None else _digest(controls.variants),
    }


def assemble(
    store: Store,
    problem: Problem,
    draws: NDArray[Any],
    done: Sequence[ProbedLayer],
    recipe: Recipe,
    seed: int,
    words: NDArray[np.float64] | None,
) -> Results:
    """Put what the layers gave into tables, with the baselines, the comparisons and where all of it comes from.

    Parameters
    ----------
    store, problem, recipe, seed
        What was asked.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap.
    done
        The layers, those of a curve in ascending order.
    words
        What the words alone say, ``[sample, target]``, if that was asked for.
    """
    common, primary = origin_of(store, problem, seed), PRIMARY[problem.kind]
    origin = {name: common[name] for name in ("model", "store", "labels")} | {"solver": recipe.solver}
    records = [
        common
        | {"site": p.spec.site, "tokens": p.spec.tokens, "layer": p.probe.layer, "solver": recipe.solver}
        | record
        for p in done
        for record in p.evaluation.records
    ]
    probabilities = problem.kind != "regression"
    constant = np.tile(problem.prior(), (len(problem.y), 1))
    baselines = {MAJORITY: evaluate(problem, constant, draws, probabilities=probabilities, cross_validated=False)}
    if words is not None:
        baselines[TEXT] = evaluate(problem, words, draws, probabilities=probabilities)
    for name, baseline in baselines.items():
        where = {"site": "", "tokens": "", "layer": -1, "solver": name}
        records += [common | where | record for record in baseline.records]
    place = [origin | {"site": p.spec.site, "tokens": p.spec.tokens, "layer": p.probe.layer} for p in done]
    between = {"trained_on": "", "tested_on": ""}
    controls = [where | between | dict(record) for where, p in zip(place, done, strict=True) for record in p.controls]
    penalties = [
        where | {"alpha": float(alpha), "error": float(errors.mean()), "n_chosen": p.probe.alpha.count(float(alpha))}
        for where, p in zip(place, done, strict=True)
        for alpha, errors in zip(recipe.alphas, p.cv_error, strict=bool(p.cv_error.size))
    ]
    bins = [where | line for where, p in zip(place, done, strict=True) for line in p.evaluation.reliability]
    return Results(
        pd.DataFrame.from_records(records, columns=list(COLUMNS)),
        pd.DataFrame.from_records(
            [origin | row for row in compare_layers(done, primary)], columns=list(COMPARISON_COLUMNS)
        ),
        _provenance(store, problem, recipe, seed, len(draws)),
        [draw_table(done).assign(**origin)],
        pd.DataFrame.from_records(controls, columns=list(CONTROL_COLUMNS)),
        pd.DataFrame.from_records(penalties, columns=list(PENALTY_COLUMNS)),
        pd.DataFrame.from_records(bins, columns=list(RELIABILITY_COLUMNS)),
    )


def _provenance(store: Store, problem: Problem, recipe: Recipe, seed: int, n_draws: int) -> dict[str, Any]:
    task = recipe.controls.task
    throughput = store.throughput()
    return {
        "model": str(store.schema.model.get("name")),
        "weights": store.schema.model.get("weights", "pretrained"),
        "store": store.location.name,
        "store_path": str(store.location),
        "n_layers": store.schema.model.get("n_layers"),
        "primary": {problem.labels: PRIMARY[problem.kind]},
        "kind": problem.kind,
        "solver": recipe.solver,
        "backend": recipe.backend,
        "alphas": recipe.alphas.tolist(),
        "class_weight": None if recipe.class_weight is None else repr(recipe.class_weight),
        "seed": seed,
        "n_folds": problem.split.n_folds,
        "n_draws": n_draws,
        "split_hash": problem.split.hash,
        # Runs of one seed whose test groups are the same drew the same of them: their scores are paired.
        "test_groups": _digest("\n".join(sorted(set(problem.groups[problem.split.test].tolist()))).encode()),
        "left_out": problem.left_out,
        "control_task": None if task is None else {"coverage": task.coverage, "left_out": task.problem.left_out},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "extraction": {
            "model": dict(store.schema.model),
            "data": dict(store.schema.data),
            "capture": dict(store.schema.capture),
            "versions": dict(store.schema.versions),
        },
    } | ({"throughput": throughput} if throughput else {})


def save_scores(folder: Path, problem: Problem, ids: NDArray[np.str_], done: Sequence[ProbedLayer]) -> None:
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


def _digest(*parts: bytes | NDArray[Any]) -> str:
    joined = b"".join(part if isinstance(part, bytes) else part.tobytes() for part in parts)
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
