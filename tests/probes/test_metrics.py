"""Every metric against scikit-learn, draw by draw and target by target."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.probes import metrics

N_ROWS, N_TARGETS, N_CLASSES, N_DRAWS = 150, 4, 5, 6


def hard(score: Callable[..., float]) -> Callable[..., float]:
    return lambda y, s, sample_weight: score(y, s > 0.5, sample_weight=sample_weight)


BINARY_REFERENCES = {
    "accuracy": hard(reference.accuracy_score),
    "balanced_accuracy": hard(reference.balanced_accuracy_score),
    "average_precision": reference.average_precision_score,
    "auroc": reference.roc_auc_score,
    "f1": hard(reference.f1_score),
    "log_loss": reference.log_loss,
}
MULTICLASS_REFERENCES = {
    "accuracy": lambda y, s, w: reference.accuracy_score(y, s.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda y, s, w: reference.balanced_accuracy_score(y, s.argmax(1), sample_weight=w),
    "macro_f1": lambda y, s, w: reference.f1_score(y, s.argmax(1), average="macro", sample_weight=w),
    "log_loss": lambda y, s, w: reference.log_loss(y, s, labels=range(N_CLASSES), sample_weight=w),
}


def binary_problem(seed: int, *, ties: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.random((N_ROWS, N_TARGETS)) < [0.5, 0.2, 0.05, 0.9]
    y[:2] = [[True] * N_TARGETS, [False] * N_TARGETS]
    scores = np.clip(0.3 * y + 0.7 * rng.random(y.shape), 0, 1)
    weights = rng.gamma(1.0, size=(N_DRAWS, N_ROWS)) * (rng.random((N_DRAWS, N_ROWS)) < 0.7)
    weights[:, :2] = 1.0
    return y.astype(np.int64), np.round(scores, 1) if ties else scores, weights


def multiclass_problem(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(N_CLASSES), rng.integers(N_CLASSES, size=N_ROWS - N_CLASSES)])
    scores = rng.random((N_ROWS, N_CLASSES)) + np.eye(N_CLASSES)[y]
    weights = rng.gamma(1.0, size=(N_DRAWS, N_ROWS))
    return y, scores / scores.sum(axis=1, keepdims=True), weights


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", BINARY_REFERENCES)
def test_binary_metrics_equal_scikit_learn_for_every_draw_and_target(name: str, ties: bool) -> None:
    y, scores, weights = binary_problem(3, ties=ties)
    compute = metrics.METRICS["multilabel"][name].compute
    expected = [
        [BINARY_REFERENCES[name](y[:, t], scores[:, t], sample_weight=w) for t in range(N_TARGETS)] for w in weights
    ]
    np.testing.assert_allclose(compute(y, scores, weights), expected, rtol=1e-12, atol=1e-14)
    plain = [BINARY_REFERENCES[name](y[:, t], scores[:, t], sample_weight=None) for t in range(N_TARGETS)]
    np.testing.assert_allclose(compute(y, scores), plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", MULTICLASS_REFERENCES)
def test_multiclass_metrics_equal_scikit_learn_for_every_draw(name: str) -> None:
    y, scores, weights = multiclass_problem(5)
    compute = metrics.METRICS["multiclass"][name].compute
    expected = [[MULTICLASS_REFERENCES[name](y, scores, w)] for w in weights]
    np.testing.assert_allclose(compute(y, scores, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(compute(y, scores), [MULTICLASS_REFERENCES[name](y, scores, None)], rtol=1e-12)


def test_r2_equals_scikit_learn_even_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(loc=[0.0, 1e6, -50.0], size=(N_ROWS, 3))
    scores, weights = y + 0.5 * rng.normal(size=y.shape), rng.gamma(1.0, size=(N_DRAWS, N_ROWS))
    expected = [[reference.r2_score(y[:, t], scores[:, t], sample_weight=w) for t in range(3)] for w in weights]
    np.testing.assert_allclose(metrics.r2(y, scores, weights), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.r2(y, scores), reference.r2_score(y, scores, multioutput="raw_values"))


@pytest.mark.parametrize("name", BINARY_REFERENCES)
def test_counts_as_weights_equal_repeated_rows(name: str) -> None:
    y, scores, _ = binary_problem(8, ties=True)
    counts = np.random.default_rng(1).poisson(1.0, size=(N_DRAWS, N_ROWS)).astype(np.uint8)
    counts[:, :2] = 1
    compute = metrics.METRICS["binary"][name].compute
    repeated = [compute(np.repeat(y, c, axis=0), np.repeat(scores, c, axis=0)) for c in counts]
    np.testing.assert_allclose(compute(y, scores, counts), repeated, rtol=1e-12)


def test_macro_f1_of_a_draw_without_some_class_equals_scikit_learn_on_the_repeated_rows() -> None:
    y, scores, _ = multiclass_problem(6)
    counts = np.random.default_rng(2).poisson(1.0, size=(2, N_ROWS)) * (y != 3)
    for c, value in zip(counts, metrics.macro_f1(y, scores, counts), strict=True):
        predicted = np.repeat(scores.argmax(1), c)
        expected = reference.f1_score(np.repeat(y, c), predicted, average="macro", zero_division=0)
        np.testing.assert_allclose(value, [expected], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 2)), min_size=2, max_size=12).filter(
        lambda rows: {y for y, _, w in rows if w} == {True, False}
    )
)
def test_ranking_metrics_hold_for_any_pattern_of_ties_and_zero_weights(
    rows: list[tuple[bool, int, int]],
) -> None:
    y, s, w = (np.array(column) for column in zip(*rows, strict=True))
    ap = metrics.average_precision(y[:, None], s[:, None], w[None])
    auc = metrics.auroc(y[:, None], s[:, None], w[None])
    np.testing.assert_allclose(ap, [[reference.average_precision_score(y, s, sample_weight=w)]], rtol=1e-12)
    np.testing.assert_allclose(auc, [[reference.roc_auc_score(y, s, sample_weight=w)]], rtol=1e-12)


def test_blocks_of_draws_do_not_change_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    y, scores, weights = binary_problem(4, ties=True)
    whole = {name: metric.compute(y, scores, weights) for name, metric in metrics.METRICS["binary"].items()}
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 2 * N_ROWS)
    for name, metric in metrics.METRICS["binary"].items():
        np.testing.assert_allclose(metric.compute(y, scores, weights), whole[name], rtol=1e-13)


def test_a_target_without_positives_or_negatives_is_nan_and_left_out_of_the_mean() -> None:
    y = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    scores = np.array([[0.1, 0.2, 0.9], [0.2, 0.3, 0.1], [0.3, 0.4, 0.8], [0.9, 0.5, 0.2]])
    undefined = {
        "average_precision": [True, False, False],
        "f1": [True, False, False],
        "auroc": [True, True, False],
        "balanced_accuracy": [True, True, False],
        "accuracy": [False, False, False],
        "log_loss": [False, False, False],
    }
    for name, expected in undefined.items():
        values = metrics.METRICS["multilabel"][name].compute(y, scores)
        np.testing.assert_array_equal(np.isnan(values), expected, err_msg=name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.macro(metrics.auroc(y, scores)) == 1.0
        assert np.isnan(metrics.macro(np.full(3, np.nan)))
        np.testing.assert_array_equal(metrics.macro(np.array([[1.0, np.nan], [0.5, 0.0]])), [1.0, 0.25])


def test_a_draw_without_positives_is_nan_in_that_draw_only() -> None:
    y, scores = np.array([[1], [0], [0]]), np.array([[0.9], [0.5], [0.6]])
    weights = np.array([[1, 1, 1], [0, 1, 2]])
    np.testing.assert_array_equal(metrics.average_precision(y, scores, weights), [[1.0], [np.nan]])
    np.testing.assert_array_equal(metrics.auroc(y, scores, weights), [[1.0], [np.nan]])


def test_r2_of_a_target_that_does_not_vary_is_nan() -> None:
    y = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    values = metrics.r2(y, y + 0.1, np.array([[1, 1, 1], [0, 0, 2]]))
    np.testing.assert_array_equal(np.isnan(values), [[True, False], [True, True]])


def test_every_kind_has_its_primary_metric_and_losses_are_marked() -> None:
    assert metrics.PRIMARY == {
        "binary": "accuracy",
        "multilabel": "average_precision",
        "multiclass": "accuracy",
        "regression": "r2",
    }
    assert all(metrics.PRIMARY[kind] in metrics.METRICS[kind] for kind in metrics.METRICS)
    assert not metrics.higher_is_better("log_loss")
    assert metrics.higher_is_better("r2")


@pytest.mark.parametrize(
    ("compute", "y", "scores", "weights", "message"),
    [
        (metrics.auroc, [[1], [0]], [[0.5], [0.1], [0.2]], None, r"\[rows, targets\]"),
        (metrics.auroc, [[1], [2]], [[0.5], [0.1]], None, "0 or 1"),
        (metrics.auroc, [[1], [0]], [[0.5], [np.nan]], None, "1 of 2 scores are NaN"),
        (metrics.auroc, [[1], [0]], [[0.5], [0.1]], [[1.0]], r"\[draws, rows\]"),
        (metrics.auroc, [[1], [0]], [[0.5], [0.1]], [[1.0, -1.0]], "negative"),
        (metrics.auroc, np.zeros((0, 1)), np.zeros((0, 1)), None, "no rows"),
        (metrics.log_loss, [[1], [0]], [[1.5], [0.1]], None, "probabilities"),
        (metrics.multiclass_log_loss, [1, 0], [[1.5, 0.1], [0.1, 0.1]], None, "probabilities"),
        (metrics.multiclass_accuracy, [0, 2], [[0.5, 0.5], [0.1, 0.9]], None, "do not fit 2 columns"),
        (metrics.multiclass_accuracy, [0.0, 1.0], [[0.5, 0.5], [0.1, 0.9]], None, "integer codes"),
    ],
)
def test_input_that_cannot_be_scored_is_an_error_with_the_way_out(
    compute: Callable[..., np.ndarray], y: object, scores: object, weights: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compute(np.asarray(y), np.asarray(scores), None if weights is None else np.asarray(weights))
