"""V-information is what the log-loss of a probe falls below that of the class shares, in bits."""

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Split, fit_layer
from sonde.probes.bootstrap import cluster_weights
from sonde.probes.information import v_information

Floats = np.ndarray[Any, Any]


def bits(problem: Problem, rows: Floats, p: Floats) -> Floats:
    """Log-loss by scikit-learn in bits, of each question and in sum."""
    y = problem.y[rows]
    if problem.kind == "multiclass":
        each = [log_loss(y.argmax(axis=1), p[rows], labels=range(y.shape[1]))]
    else:
        each = [log_loss(y[:, t], p[rows, t], labels=[0, 1]) for t in range(y.shape[1])]
    return np.array([*each, sum(each)]) / np.log(2)


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects"])
@pytest.mark.parametrize("conditional", [False, True])
def test_information_and_its_interval_are_scikit_learns(labels: str, conditional: bool, example: Any) -> None:
    problem = Problem.of(example.store, labels)
    better, worse = (fit_layer(ArrayRows(example.x(layer)), problem, "logistic").scores for layer in (5, 0))
    test = np.flatnonzero(problem.split.test)
    weights = cluster_weights(problem.groups[test].tolist(), 40, 0)
    before = worse if conditional else np.tile(problem.y[problem.split.folds >= 0].mean(axis=0), (len(better), 1))
    found = v_information(problem, better, weights, given=worse if conditional else None, level=0.9)
    np.testing.assert_allclose(found.value, bits(problem, test, before) - bits(problem, test, better))
    drawn = [
        bits(problem, rows, before) - bits(problem, rows, better) for rows in (np.repeat(test, w) for w in weights)
    ]
    np.testing.assert_allclose(found.low, np.quantile(drawn, 0.05, axis=0))
    np.testing.assert_allclose(found.high, np.quantile(drawn, 0.95, axis=0))
    assert found.low[-1] > 0 or conditional


def test_labels_that_have_nothing_to_do_with_the_activations_give_about_none(example: Any) -> None:
    problem = Problem.of(example.store, "objects")
    draws = cluster_weights(problem.groups[problem.split.test].tolist(), 200, 0)
    x = np.random.default_rng(0).normal(size=example.x(5).shape)
    found = v_information(problem, fit_layer(ArrayRows(x), problem, "logistic").scores, draws)
    np.testing.assert_allclose(found.value[:-1], 0, atol=0.05)
    assert (found.low < 0).all()
    constant = np.tile(problem.prior(), (len(x), 1))
    np.testing.assert_array_equal(v_information(problem, constant, draws).value, 0)


def test_labels_that_are_known_give_all_their_entropy() -> None:
    y = (np.arange(32) % 4 == 0)[:, None].astype(float)
    test = np.arange(32) >= 16
    split = Split(test, np.where(test, -1, 0).astype(np.int16), "hash", 1)
    problem = Problem("asked", "binary", ("asked",), y, split, np.arange(32).astype(str), {})
    found = v_information(problem, y, np.ones((2, 16)))
    np.testing.assert_allclose(found.value, -0.25 * np.log2(0.25) - 0.75 * np.log2(0.75))


def test_numbers_and_scores_that_are_no_probabilities_are_errors(example: Any) -> None:
    size, objects = Problem.of(example.store, "size"), Problem.of(example.store, "objects")
    scores = np.full(objects.y.shape, 1.5)
    with pytest.raises(InputError, match="'size' are numbers: information in bits needs classes; use r2"):
        v_information(size, scores, np.ones((2, 1)))
    with pytest.raises(InputError, match="probabilities are wanted"):
        v_information(objects, scores, np.ones((2, int(objects.split.test.sum()))))
