"""The permutation null keeps what the labels are by themselves, and breaks what ties them to the activations."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Split, accumulate, fit_layer, permutation, ridge_cv
from sonde.probes.eigenbasis import eigenbases
from sonde.probes.metrics import PRIMARY, score
from sonde.probes.permutation import p_value, permutation_null, permuted

ALPHAS = (1.0, 30.0, 1000.0)


def labels_by_group(problem: Problem, part: np.ndarray[Any, Any]) -> Counter[Any]:
    """How often each sequence of labels is that of a group."""
    rows: dict[str, list[Any]] = {}
    for group, labels in zip(problem.groups[part], problem.y[part].tolist(), strict=True):
        rows.setdefault(group, []).append(tuple(labels))
    return Counter(map(tuple, rows.values()))


def test_groups_of_one_size_exchange_the_labels_of_all_their_rows_inside_their_part(example: Any) -> None:
    for labels in ("objects", "size"):
        problem = Problem.of(example.store, labels)
        test, training = problem.split.test, problem.split.folds >= 0
        for other in permuted(problem, 3):
            for part in (test, training):
                assert labels_by_group(other, part) == labels_by_group(problem, part)
                assert (other.y[part] != problem.y[part]).any()
            np.testing.assert_array_equal(other.y[~(test | training)], problem.y[~(test | training)])
            assert (other.split, other.targets) == (problem.split, problem.targets)


def test_rows_of_groups_alone_in_their_size_are_permuted_singly(example: Any) -> None:
    problem = Problem.of(example.store, "size")
    training = np.flatnonzero(problem.split.folds >= 0)
    n_alone = 12 + training.size % 2
    alone, pairs = training[:n_alone], training[n_alone:]
    groups = problem.groups.astype("<U9")
    groups[alone] = ["four"] * 4 + ["three"] * 3 + ["more"] * (n_alone - 7)
    groups[pairs] = [f"pair {i // 2}" for i in range(pairs.size)]
    [other] = permuted(replace(problem, groups=groups), 1)
    for rows in (alone, pairs):
        assert sorted(other.y[rows].tolist()) == sorted(problem.y[rows].tolist())
    assert not {*other.y[alone[:4], 0]} <= {*problem.y[alone[:4], 0]}
    assert not {*other.y[alone[:4], 0]} <= {*problem.y[alone[-5:], 0]}


def test_a_permutation_depends_on_seed_and_number_alone(example: Any) -> None:
    problem = Problem.of(example.store, "size")
    few, many, others = (np.stack([p.y for p in permuted(problem, n, seed)]) for n, seed in ((2, 0), (4, 0), (4, 1)))
    np.testing.assert_array_equal(few, many[:2])
    assert len(np.unique(np.concatenate([many, others]), axis=0)) == 8


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("labels", ["entailment", "colour", "objects", "size"])
def test_the_null_of_ridge_is_scikit_learns_at_the_real_penalties(
    labels: str, namespace: Any, example: Any, score_with_sklearn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, x = Problem.of(example.store, labels, n_folds=3), example.x(5)
    rows, test, training = ArrayRows(namespace(x), 37), problem.split.test, problem.split.folds >= 0
    stats = accumulate(rows, problem.y, problem.split.folds)
    alpha, basis = ridge_cv(stats, ALPHAS, per_target=problem.per_target).alpha, eigenbases(stats)[-1]
    wide = x.astype(np.float64)

    def reference(other: Problem) -> float:
        columns = [
            make_pipeline(StandardScaler(), Ridge(a)).fit(wide[training], y[training]).predict(wide[test])
            for a, y in zip(alpha, other.y.T, strict=True)
        ]
        primary = {"multilabel": "average_precision", "regression": "r2"}.get(problem.kind, "accuracy")
        by_metric = score_with_sklearn(problem.kind, other.y[test], np.column_stack(columns), probabilities=False)
        return float(by_metric[primary].mean())

    expected = [reference(other) for other in permuted(problem, 5, seed=3)]
    for block in (problem.y.size // 2, 2 * problem.y.size, permutation._BLOCK_ELEMENTS):
        monkeypatch.setattr(permutation, "_BLOCK_ELEMENTS", block)
        np.testing.assert_allclose(permutation_null(rows, problem, basis, alpha, n=5, seed=3), expected, atol=1e-5)


def test_another_metric_of_the_labels_may_be_asked_for(example: Any) -> None:
    problem = Problem.of(example.store, "entailment")
    rows = ArrayRows(example.x(5))
    basis = eigenbases(accumulate(rows, None, problem.split.folds))[-1]
    null = permutation_null(rows, problem, basis, 10.0, n=30, metric="auroc")
    assert null.shape == (30,)
    assert abs(null.mean() - 0.5) < 0.05
    for metric in ("log_loss", "r2"):
        with pytest.raises(InputError, match=f"metric '{metric}' cannot judge a ridge probe of binary labels: use acc"):
            permutation_null(rows, problem, basis, 10.0, metric=metric)


def independent_p(seed: int, grouped: bool) -> float:
    """The p-value of labels that have nothing to do with the activations; both are the same in all of a group."""
    rng = np.random.default_rng(seed)
    member = np.repeat(np.arange(24), 4)
    x = rng.normal(size=(24, 6))[member] + 0.1 * rng.normal(size=(96, 6))
    y = rng.normal(size=24)[member][:, None]
    test = member >= 16
    split = Split(test, np.where(test, -1, member % 2).astype(np.int16), "hash", 2)
    groups = np.array([f"g{m}" if grouped else f"g{i}" for i, m in enumerate(member)])
    problem = Problem("asked", "regression", ("asked",), y, split, groups, {})
    rows = ArrayRows(x)
    basis = eigenbases(accumulate(rows, None, split.folds))[-1]
    ridge = make_pipeline(StandardScaler(), Ridge(10.0)).fit(x[~test], y[~test])
    return p_value(ridge.score(x[test], y[test]), permutation_null(rows, problem, basis, 10.0, n=19, seed=seed), "r2")


def test_p_values_of_independent_labels_are_uniform_if_groups_stay_together() -> None:
    whole, torn = (np.array([independent_p(seed, grouped) for seed in range(120)]) for grouped in (True, False))
    for level in (0.1, 0.25, 0.5, 0.75):
        assert abs((whole <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 120)
    assert (torn >= 0.9).mean() > 0.3  # what would be said if rows of a group were thought to be independent


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects", "size"])
def test_labels_that_the_activations_know_have_the_least_p_value(labels: str, example: Any) -> None:
    problem, rows = Problem.of(example.store, labels), ArrayRows(example.x(5))
    stats = accumulate(rows, problem.y, problem.split.folds)
    alpha = ridge_cv(stats, ALPHAS, per_target=problem.per_target).alpha
    null = permutation_null(rows, problem, eigenbases(stats)[-1], alpha, n=19)
    scores, test, primary = fit_layer(rows, problem, "ridge", ALPHAS).scores, problem.split.test, PRIMARY[problem.kind]
    value = score(problem.kind, problem.truth(test), scores[test])[primary].mean()
    assert p_value(float(value), null, primary) == 1 / 20


def test_a_p_value_counts_what_is_at_least_as_good() -> None:
    null = np.array([0.1, 0.2, 0.3, 0.4])
    assert p_value(0.3, null, "accuracy") == 3 / 5
    assert p_value(0.3, null, "log_loss") == 4 / 5
    assert p_value(0.5, null, "accuracy") == 1 / 5
    assert np.isnan(p_value(float("nan"), null, "accuracy"))
