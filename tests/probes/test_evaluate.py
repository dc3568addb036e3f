"""Rows of the results say what scikit-learn says, of every draw of whole groups."""

from typing import Any

import numpy as np
import pytest
from sklearn.calibration import _SigmoidCalibration
from sklearn.metrics import brier_score_loss

from sonde.probes import Problem, Split
from sonde.probes.bootstrap import cluster_weights
from sonde.probes.evaluate import Evaluation, evaluate

N, N_TEST, N_FOLDS, N_DRAWS = 90, 30, 3, 60
TARGETS = {
    "binary": ("x",),
    "multilabel": ("often", "rare", "never"),
    "multiclass": ("a", "b", "c"),
    "regression": ("x",),
}


def make_problem(kind: Any) -> Problem:
    rng = np.random.default_rng(0)
    test = np.arange(N) < N_TEST
    folds = np.where(test, -1, np.arange(N) % N_FOLDS).astype(np.int16)
    n_targets = len(TARGETS[kind])
    if kind == "multiclass":
        y = np.eye(n_targets)[rng.choice(n_targets, N, p=[0.8, 0.15, 0.05])]
    else:
        y = rng.normal(size=(N, n_targets))
    if kind in ("binary", "multilabel"):
        y = (y > [0.0, 1.4, 0.5][:n_targets]).astype(float)
        y[:N_TEST, 2:] = 0  # a target without a positive among the test rows
    groups = np.array([f"g{i // 4}" for i in range(N)])
    return Problem("asked", kind, TARGETS[kind], y, Split(test, folds, "hash", N_FOLDS), groups, {})


def make_scores(problem: Problem) -> np.ndarray[Any, Any]:
    """Make scores in [0, 1] with ties that know a little of the answer, and NaN where nothing is scored."""
    noise = np.random.default_rng(1).random(problem.y.shape)
    scores = np.round(0.2 + 0.3 * np.clip(problem.y, -1, 1) + 0.3 * noise, 1)
    return scores / scores.sum(axis=1, keepdims=True) if problem.kind == "multiclass" else scores


def make_draws(problem: Problem) -> np.ndarray[Any, Any]:
    return cluster_weights(problem.groups[problem.split.test].tolist(), N_DRAWS, 0)


def values(evaluation: Evaluation, split: str, column: str = "value") -> dict[tuple[str, str], float]:
    """Values of what is not calibrated, by metric and target."""
    found = {(r["metric"], r["target"]): r[column] for r in evaluation.records if r["split"] == split}
    return {(metric, target): value for (metric, target), value in found.items() if "calibrated" not in metric}


def mean(values: np.ndarray[Any, Any]) -> float:
    """Mean over the targets that have a value."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


@pytest.mark.parametrize("kind", TARGETS)
def test_every_value_and_interval_is_scikit_learns(kind: str, score_with_sklearn: Any) -> None:
    problem = make_problem(kind)
    scores, draws = make_scores(problem), make_draws(problem)
    found = evaluate(problem, scores, draws, probabilities=True)

    def reference(rows: np.ndarray[Any, Any]) -> dict[tuple[str, str], float]:
        by_metric = score_with_sklearn(kind, problem.y[rows], scores[rows])
        flat = {(metric, "all"): mean(column) for metric, column in by_metric.items()}
        if kind == "multilabel":
            flat |= {(m, t): column[i] for m, column in by_metric.items() for i, t in enumerate(problem.targets)}
        return flat

    test = np.flatnonzero(problem.split.test)
    assert values(found, "test") == pytest.approx(reference(test), nan_ok=True)
    assert values(found, "cv") == pytest.approx(reference(np.flatnonzero(~problem.split.test)), nan_ok=True)
    drawn = [reference(np.repeat(test, draw)) for draw in draws]
    low, high = values(found, "test", "low"), values(found, "test", "high")
    for key in drawn[0]:
        known = np.array([one[key] for one in drawn if not np.isnan(one[key])])
        ends = np.quantile(known, [0.025, 0.975]) if known.size else [np.nan, np.nan]
        assert (low[key], high[key]) == pytest.approx(tuple(ends), nan_ok=True)
    assert np.isnan([end for column in ("low", "high") for end in values(found, "cv", column).values()]).all()
    for metric in {metric for metric, _ in drawn[0]}:
        assert found.draws[metric].dtype == np.float32
        np.testing.assert_allclose(found.draws[metric], [one[metric, "all"] for one in drawn], rtol=1e-6)


def test_a_target_without_a_positive_test_row_has_no_precision_and_does_not_count_in_the_mean() -> None:
    problem = make_problem("multilabel")
    found = values(evaluate(problem, make_scores(problem), make_draws(problem), probabilities=False), "test")
    assert np.isnan(found["average_precision", "never"])
    pair = [found["average_precision", target] for target in ("often", "rare")]
    assert found["average_precision", "all"] == pytest.approx(np.mean(pair))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_every_solver_has_losses_of_calibrated_probabilities_and_those_of_its_own_if_it_gives_any(kind: Any) -> None:
    problem, losses = make_problem(kind), {"log_loss", "brier", "ece"}
    for probabilities in (False, True):
        found = evaluate(problem, make_scores(problem), make_draws(problem), probabilities=probabilities)
        calibrated = {f"calibrated_{name}" for name in losses}
        named = {record["metric"] for record in found.records}
        assert named & (losses | calibrated) == (calibrated | losses if probabilities else calibrated)
        assert set(found.draws) == named


def test_calibrated_probabilities_are_scored_on_test_rows_by_the_curve_of_the_training_rows() -> None:
    problem = make_problem("binary")
    scores, draws = make_scores(problem), make_draws(problem)
    found = evaluate(problem, scores, draws, probabilities=False)
    test = problem.split.test
    curve = _SigmoidCalibration().fit(scores[~test, 0], problem.y[~test, 0])
    chance, y = curve.predict(scores[test, 0]), problem.y[test, 0]
    value = {(r["metric"], r["split"]): r for r in found.records}["calibrated_brier", "test"]
    assert value["value"] == pytest.approx(brier_score_loss(y, chance), rel=1e-4)
    drawn = [brier_score_loss(y, chance, sample_weight=draw) for draw in draws]
    assert (value["low"], value["high"]) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), rel=1e-4)


def test_records_carry_the_probe_and_the_counts() -> None:
    problem = make_problem("multilabel")
    alpha, converged = np.array([1.0, 10.0, 1.0]), np.array([True, False, True])
    found = evaluate(
        problem, make_scores(problem), make_draws(problem), probabilities=True, alpha=alpha, converged=converged
    )
    accuracy = {(r["target"], r["split"]): r for r in found.records if r["metric"] == "accuracy"}
    assert len(accuracy) == 8
    for t, target in enumerate(problem.targets):
        for split, rows in (("test", problem.split.test), ("cv", ~problem.split.test)):
            record = accuracy[target, split]
            assert (record["alpha"], record["converged"]) == (alpha[t], converged[t])
            assert record["n_positive"] == problem.y[rows, t].sum()
            assert (record["n_train"], record["n_test"]) == (N - N_TEST, N_TEST)
    assert np.isnan(accuracy["all", "test"]["alpha"])
    assert not accuracy["all", "test"]["converged"]
    assert accuracy["all", "cv"]["n_positive"] == problem.y[~problem.split.test].sum()
    one = evaluate(problem, make_scores(problem), make_draws(problem), probabilities=True, alpha=np.full(3, 5.0))
    assert {record["alpha"] for record in one.records} == {5.0}


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_labels_without_positives_have_one_row_a_metric_and_no_count_of_them(kind: str) -> None:
    problem = make_problem(kind)
    found = evaluate(problem, make_scores(problem), make_draws(problem), probabilities=True)
    assert {(record["target"], record["n_positive"]) for record in found.records} == {("all", -1)}


def test_without_cross_validation_training_rows_need_no_scores() -> None:
    problem = make_problem("binary")
    scores = np.where(problem.split.test[:, None], make_scores(problem), np.nan)
    found = evaluate(problem, scores, make_draws(problem), probabilities=True, cross_validated=False)
    assert {record["split"] for record in found.records} == {"test"}
    assert np.isnan(found.records[0]["alpha"])
    assert found.records[0]["converged"] is True
