"""What is measured beside the probes comes with their results, layer by layer, and is what its parts compute."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Results, accumulate, fit_layer, leace, probe
from sonde.probes.bootstrap import cluster_weights
from sonde.probes.codelength import online_codelength
from sonde.probes.control import control_task
from sonde.probes.evaluate import evaluate
from sonde.probes.information import v_information
from sonde.probes.transfer import transfer
from sonde.store import Labels, Store

LAYER, SEED, N_DRAWS = 5, 3, 30
TYPES = [f"type {i % 30}" for i in range(240)]
VARIANTS = [("plain", "polite")[i % 2] for i in range(240)]


@pytest.fixture(scope="module")
def store(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The example with labels that say of what type and variant each sample is."""
    path = tmp_path_factory.mktemp("controls") / "run.zarr"
    shutil.copytree(example.path, path)
    opened = Store.open(path)
    opened.write_labels(Labels.from_column("kind of input", TYPES))
    opened.write_labels(Labels.from_column("prompt", VARIANTS))
    return opened


def ask(store: Store, labels: str, **chosen: Any) -> Results:
    return probe(store, labels, layers=[LAYER, 9], sites=["resid_post"], seed=SEED, n_draws=N_DRAWS, **chosen)


def rows_of(results: Results, control: str, layer: int = LAYER) -> list[Mapping[str, Any]]:
    found = results.controls
    return found[(found["control"] == control) & (found["layer"] == layer)].to_dict("records")


def draws_of(problem: Problem) -> np.ndarray[Any, Any]:
    return cluster_weights(problem.groups[problem.split.test].tolist(), N_DRAWS, SEED)


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects", "size"])
def test_the_permutation_null_is_far_below_a_layer_that_knows(store: Store, labels: str) -> None:
    results = ask(store, labels, permutations=60)
    for layer in (LAYER, 9):
        [row] = rows_of(results, "permutation", layer)
        score = results.curves().set_index(["layer", "split"]).loc[(layer, "test"), "value"]
        assert row["metric"] == results.primary(labels)
        assert row["low"] <= row["value"] <= row["high"] < score
        assert row["p"] == pytest.approx(1 / 61)


def test_the_control_task_and_selectivity_are_those_of_its_problem(store: Store) -> None:
    results = ask(store, "entailment", solver="lda", control_task="kind of input")
    [row], [selectivity] = rows_of(results, "control task"), rows_of(results, "selectivity")
    problem = Problem.of(store, "entailment", seed=SEED)
    task = control_task(problem, TYPES, SEED)
    fit = fit_layer(store.layer("resid_post", "last", LAYER), task.problem, "lda")
    judged = evaluate(task.problem, fit.scores, draws_of(problem), probabilities=True).records
    theirs = next(r for r in judged if (r["metric"], r["target"], r["split"]) == ("accuracy", "all", "test"))
    assert (row["value"], row["low"], row["high"]) == (theirs["value"], theirs["low"], theirs["high"])
    score = results.curves().set_index(["layer", "split"]).loc[(LAYER, "test"), "value"]
    assert selectivity["value"] == pytest.approx(score - row["value"])
    assert selectivity["low"] < selectivity["value"] < selectivity["high"]
    assert results.provenance["control_task"] == {"coverage": task.coverage, "left_out": {}}


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects"])
def test_codelength_and_information_are_those_of_the_logistic_probe(store: Store, labels: str) -> None:
    results = ask(store, labels, solver="logistic", codelength=True)
    problem = Problem.of(store, labels, seed=SEED)
    rows = store.layer("resid_post", "last", LAYER)
    fit = fit_layer(rows, problem, "logistic")
    code = online_codelength(rows, problem, fit.alpha, seed=SEED)
    found = {row["metric"]: row["value"] for row in rows_of(results, "online code")}
    assert found == pytest.approx(
        {
            "bits": code.bits.sum(),
            "uniform bits": code.uniform_bits.sum(),
            "prior bits": code.prior_bits.sum(),
            "compression": code.total_compression,
        },
        rel=1e-6,
    )
    [row] = rows_of(results, "v-information")
    information = v_information(problem, fit.scores, draws_of(problem))
    theirs = (information.value[-1], information.low[-1], information.high[-1])
    assert (row["value"], row["low"], row["high"]) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize(
    "chosen", [{"backend": "sklearn", "alphas": [1.0, 10.0]}, {"solver": "logistic", "class_weight": "balanced"}]
)
def test_controls_are_probed_as_the_labels_are(store: Store, chosen: dict[str, Any]) -> None:
    results = ask(store, "entailment", control_task="kind of input", transfer="prompt", **chosen)
    problem, rows = Problem.of(store, "entailment", seed=SEED), store.layer("resid_post", "last", LAYER)
    task = control_task(problem, TYPES, SEED).problem
    scores = fit_layer(rows, task, **chosen).scores[task.split.test]
    [row] = rows_of(results, "control task")
    assert row["value"] == pytest.approx(float(((scores > 0.5) == task.y[task.split.test]).mean()))
    matrix = transfer(rows, problem, np.array(VARIANTS), draws_of(problem), **chosen)
    found = [row["value"] for row in rows_of(results, "transfer")]
    np.testing.assert_allclose(found, matrix.value.ravel())


def test_transfer_has_a_row_for_every_pair_of_variants(store: Store) -> None:
    results = ask(store, "entailment", transfer="prompt")
    problem = Problem.of(store, "entailment", seed=SEED)
    matrix = transfer(store.layer("resid_post", "last", LAYER), problem, np.array(VARIANTS), draws_of(problem))
    found = {(row["trained_on"], row["tested_on"]): row for row in rows_of(results, "transfer")}
    assert set(found) == {(a, b) for a in ("plain", "polite") for b in ("plain", "polite")}
    for i, trained in enumerate(matrix.variants):
        for j, tested in enumerate(matrix.variants):
            row = found[trained, tested]
            assert (row["value"], row["low"], row["high"]) == (
                matrix.value[i, j],
                matrix.low[i, j],
                matrix.high[i, j],
            )


def test_groups_of_the_store_may_tell_variants_apart_where_no_labels_do(store: Store) -> None:
    with pytest.raises(InputError, match="has no test row"):
        ask(store, "entailment", transfer="group")


def test_words_that_tell_the_answer_are_a_baseline_of_their_own(store: Store, example: Any) -> None:
    says = example.truth["entailment"][:, 0] > 0
    texts = {f"s{i}": "it holds" if yes else "it does not" for i, yes in enumerate(says)}
    results = ask(store, "entailment", texts=texts)
    [row] = results.baselines("text").query("metric == 'accuracy'").to_dict("records")
    assert (row["value"], row["layer"], row["site"]) == (1.0, -1, "")
    summary = results.summary().iloc[0]
    assert summary["text_baseline"] == 1.0
    assert summary["baseline"] < 1.0
    assert results.best()["solver"] == "ridge"


def test_controls_come_back_from_disk_and_from_several_runs(store: Store, tmp_path: Path) -> None:
    ridge = ask(store, "entailment", permutations=5, out=tmp_path / "ridge")
    logistic = ask(store, "entailment", solver="logistic", codelength=True, out=tmp_path / "logistic")
    loaded = Results.concat([Results.load(tmp_path / name) for name in ("ridge", "logistic")])
    assert loaded.controls["control"].value_counts().to_dict() == {
        "online code": 8,
        "permutation": 2,
        "v-information": 2,
    }
    assert len(loaded.controls) == len(ridge.controls) + len(logistic.controls)


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"solver": "logistic", "permutations": 5}, "use the solver ridge"),
        ({"backend": "sklearn", "permutations": 5}, "use the solver ridge"),
        ({"permutations": -1}, "-1 permutations"),
        ({"codelength": True}, "use the solver logistic"),
        ({"codelength": True, "solver": "logistic", "class_weight": "balanced"}, "leave out class weights"),
        ({"control_task": "objects"}, "'objects' are multilabel: types and variants are classes"),
    ],
)
def test_controls_that_are_not_for_such_probes_are_errors(store: Store, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(store, "entailment", **chosen)


def test_nothing_is_left_of_what_is_erased_and_most_of_what_is_not(store: Store) -> None:
    results = ask(store, "entailment", erase="entailment")
    [row], [loss] = rows_of(results, "erased"), rows_of(results, "erasure loss")
    score = results.curves().set_index(["layer", "split"]).loc[(LAYER, "test"), "value"]
    assert score > 0.8
    assert row["value"] < 0.65
    assert loss["value"] == pytest.approx(score - row["value"])
    assert loss["low"] < loss["value"] < loss["high"]
    [other] = rows_of(ask(store, "entailment", erase="size"), "erased")
    assert other["value"] > 0.75


@pytest.mark.parametrize("chosen", [{}, {"solver": "logistic"}, {"backend": "sklearn", "alphas": [1.0]}])
def test_erased_rows_are_probed_as_the_rows_are(store: Store, chosen: dict[str, Any]) -> None:
    [row] = rows_of(ask(store, "entailment", erase="objects", **chosen), "erased")
    problem, rows = Problem.of(store, "entailment", seed=SEED), store.layer("resid_post", "last", LAYER)
    x = np.asarray(rows.numpy(), dtype=np.float64)
    objects = store.labels("objects")
    told = (problem.split.folds >= 0) & objects.present
    stats = accumulate(ArrayRows(x), objects.values.astype(float), np.where(told, 0, -1))
    without = ArrayRows(leace(stats.total()).apply(x))
    scores = fit_layer(without, problem, **chosen).scores[problem.split.test]
    assert row["value"] == pytest.approx(float(((scores > 0.5) == problem.y[problem.split.test]).mean()), abs=0.02)


def test_labels_that_no_training_row_has_cannot_be_erased(store: Store) -> None:
    problem = Problem.of(store, "entailment", seed=SEED)
    lacking = [None if part >= 0 else "a" for part in problem.split.folds.tolist()]
    store.write_labels(Labels.from_column("of test rows", lacking))
    with pytest.raises(InputError, match="no training row has the labels that are to be erased"):
        ask(store, "entailment", erase="of test rows")
