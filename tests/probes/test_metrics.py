"""Every metric against scikit-learn, draw by draw and target by target."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.probes import metrics, sums
from sonde.probes.metrics import score, score_probabilities

N_ROWS, N_TARGETS, N_CLASSES, N_DRAWS = 150, 4, 5, 6
Score = Callable[[Any, Any, Any], float]


def hard(metric: Callable[..., float]) -> Score:
    return lambda y, s, w: metric(y, s > 0.5, sample_weight=w)


def calibration_error(y: Any, p: Any, w: Any) -> float:
    """Add rows to bins one by one, closed above."""
    w = np.ones(len(y)) if w is None else w
    gaps = np.zeros(15)
    for i in range(len(y)):
        m = 0
        while m < 14 and p[i] > np.linspace(0, 1, 16)[m + 1]:
            m += 1
        gaps[m] += w[i] * (y[i] - p[i])
    return float(np.abs(gaps).sum() / w.sum())


def one_against_rest(y: Any, s: Any, w: Any) -> float:
    return float(reference.roc_auc_score(y, s, multi_class="ovr", average="macro", sample_weight=w))


BINARY_REFERENCES: Mapping[str, Score] = {
    "accuracy": hard(reference.accuracy_score),
    "balanced_accuracy": hard(reference.balanced_accuracy_score),
    "f1": hard(reference.f1_score),
    "average_precision": lambda y, s, w: reference.average_precision_score(y, s, sample_weight=w),
    "auroc": lambda y, s, w: reference.roc_auc_score(y, s, sample_weight=w),
    "log_loss": lambda y, s, w: reference.log_loss(y, s, sample_weight=w),
    "brier": lambda y, s, w: reference.brier_score_loss(y, s, sample_weight=w),
    "ece": calibration_error,
}
MULTICLASS_REFERENCES: Mapping[str, Score] = {
    "accuracy": lambda y, s, w: reference.accuracy_score(y, s.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda y, s, w: reference.balanced_accuracy_score(y, s.argmax(1), sample_weight=w),
    "macro_f1": lambda y, s, w: reference.f1_score(y, s.argmax(1), average="macro", sample_weight=w),
    "macro_auroc": one_against_rest,
    "log_loss": lambda y, s, w: reference.log_loss(y, s, labels=range(N_CLASSES), sample_weight=w),
    "brier": lambda y, s, w: reference.brier_score_loss(y, s, sample_weight=w, scale_by_half=False),
    "ece": lambda y, s, w: calibration_error(y == s.argmax(1), s.max(1), w),
}

# What is computed in float32 under counts, as a bootstrap has them.
ROUNDING = dict.fromkeys(BINARY_REFERENCES, 1e-12) | {"ece": 1e-5, "average_precision": 1e-6, "auroc": 1e-6}


def everything(kind: Any, y: Any, scores: Any, weights: Any = None) -> dict[str, Any]:
    return score(kind, y, scores, weights) | score_probabilities(kind, y, scores, weights)


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
def test_binary_metrics_equal_scikit_learn_for_every_draw_and_target(ties: bool) -> None:
    y, scores, weights = binary_problem(3, ties=ties)
    counts = np.round(2 * weights).astype(np.uint8)
    found, counted, plain = (everything("multilabel", y, scores, w) for w in (weights, counts, None))
    assert list(found) == list(BINARY_REFERENCES)
    for name, ask in BINARY_REFERENCES.items():
        for values, draws in ((found, weights), (counted, counts)):
            rounding = ROUNDING[name] if draws is counts else 1e-12
            expected = [[ask(y[:, t], scores[:, t], w) for t in range(N_TARGETS)] for w in draws]
            np.testing.assert_allclose(values[name], expected, rtol=rounding, atol=rounding / 100, err_msg=name)
        expected = [ask(y[:, t], scores[:, t], None) for t in range(N_TARGETS)]
        np.testing.assert_allclose(plain[name], expected, rtol=1e-12, atol=1e-14, err_msg=name)


def test_multiclass_metrics_equal_scikit_learn_for_every_draw() -> None:
    y, scores, weights = multiclass_problem(5)
    found, plain = (everything("multiclass", y, scores, w) for w in (weights, None))
    assert list(found) == list(MULTICLASS_REFERENCES)
    for name, ask in MULTICLASS_REFERENCES.items():
        expected = [[ask(y, scores, w)] for w in weights]
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(plain[name], [ask(y, scores, None)], rtol=1e-12, err_msg=name)


def test_regression_metrics_equal_scikit_learn_and_numpy_even_far_from_zero() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(loc=[0.0, 1e6, -50.0], size=(N_ROWS, 3))
    scores, weights = y + 0.5 * rng.normal(size=y.shape), rng.gamma(1.0, size=(N_DRAWS, N_ROWS))
    found, plain = score("regression", y, scores, weights), score("regression", y, scores)
    for name, ask in (("r2", reference.r2_score), ("mean_squared_error", reference.mean_squared_error)):
        expected = [[ask(y[:, t], scores[:, t], sample_weight=w) for t in range(3)] for w in weights]
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(plain[name], ask(y, scores, multioutput="raw_values"), rtol=1e-9)
    for t in range(3):
        for b, w in enumerate(weights):
            covariance = np.cov(y[:, t], scores[:, t], aweights=w)
            expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
            assert found["pearson_r"][b, t] == pytest.approx(expected, rel=1e-9)
        assert plain["pearson_r"][t] == pytest.approx(np.corrcoef(y[:, t], scores[:, t])[0, 1], rel=1e-9)


@pytest.mark.parametrize("ties", [False, True])
def test_counts_as_weights_equal_repeated_rows(ties: bool) -> None:
    y, scores, _ = binary_problem(8, ties=ties)
    counts = np.random.default_rng(1).poisson(1.0, size=(N_DRAWS, N_ROWS)).astype(np.uint8)
    counts[:, :2] = 1
    found = everything("binary", y, scores, counts)
    for b, c in enumerate(counts):
        for name, values in everything("binary", np.repeat(y, c, axis=0), np.repeat(scores, c, axis=0)).items():
            np.testing.assert_allclose(
                found[name][b], values, rtol=ROUNDING[name], atol=ROUNDING[name] / 100, err_msg=name
            )


def test_macro_f1_of_a_draw_without_some_class_equals_scikit_learn_on_the_repeated_rows() -> None:
    y, scores, _ = multiclass_problem(6)
    counts = np.random.default_rng(2).poisson(1.0, size=(2, N_ROWS)) * (y != 3)
    for c, value in zip(counts, score("multiclass", y, scores, counts)["macro_f1"], strict=True):
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
    for weights in (w, w / 7):
        found = score("binary", y[:, None], s[:, None], weights[None])
        for name in ("average_precision", "auroc"):
            expected = [[BINARY_REFERENCES[name](y, s, w)]]
            np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=1e-15)


def test_blocks_of_draws_do_not_change_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    y, scores, weights = binary_problem(4, ties=True)
    whole = everything("binary", y, scores, weights)
    monkeypatch.setattr(sums, "_BLOCK_ELEMENTS", 4 * N_ROWS)
    for name, values in everything("binary", y, scores, weights).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-13)


def test_counts_beyond_the_digits_of_float32_are_added_without_rounding() -> None:
    y, scores = np.array([[1], [0], [1], [0]]), np.array([[0.9], [0.8], [0.6], [0.1]])
    weights = np.array([[2**24, 1, 3, 2**24 + 1]])
    found = score("binary", y, scores, weights)
    for name in ("accuracy", "average_precision", "auroc"):
        expected = BINARY_REFERENCES[name](y[:, 0], scores[:, 0], weights[0])
        assert found[name][0, 0] == pytest.approx(expected, rel=1e-14)


def test_a_target_without_positives_or_negatives_is_nan_and_left_out_of_the_mean() -> None:
    y = np.array([[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 0]])
    scores = np.array([[0.1, 0.2, 0.9], [0.2, 0.3, 0.1], [0.3, 0.4, 0.8], [0.9, 0.5, 0.2]])
    undefined = {
        "average_precision": [True, False, False],
        "f1": [True, False, False],
        "auroc": [True, True, False],
        "balanced_accuracy": [True, True, False],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = everything("multilabel", y, scores)
    for name, values in found.items():
        np.testing.assert_array_equal(np.isnan(values), undefined.get(name, [False] * 3), err_msg=name)
    assert sums.macro(found["auroc"]) == 1.0
    assert np.isnan(sums.macro(np.full(3, np.nan)))
    np.testing.assert_array_equal(sums.macro(np.array([[1.0, np.nan], [0.5, 0.0]])), [1.0, 0.25])


def test_a_class_without_rows_does_not_count_in_macro_auroc() -> None:
    y, scores, _ = multiclass_problem(7)
    scores = scores[y < 3]
    y = y[y < 3]
    expected = [reference.roc_auc_score(y == c, scores[:, c]) for c in range(3)]
    np.testing.assert_allclose(score("multiclass", y, scores)["macro_auroc"], [np.mean(expected)], rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.int64, np.float64])
def test_a_draw_without_positives_is_nan_in_that_draw_only(dtype: Any) -> None:
    y, scores = np.array([[1], [0], [0]]), np.array([[0.9], [0.5], [0.6]])
    found = score("binary", y, scores, np.array([[1, 1, 1], [0, 1, 2]], dtype))
    for name in ("average_precision", "auroc"):
        np.testing.assert_array_equal(found[name], [[1.0], [np.nan]])


def test_what_does_not_vary_has_no_r2_and_no_correlation() -> None:
    y = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 4.0]])
    found = score("regression", y, y + 0.1, np.array([[1, 1, 1], [0, 0, 2]]))
    for name in ("r2", "pearson_r"):
        np.testing.assert_array_equal(np.isnan(found[name]), [[True, False], [True, True]], err_msg=name)
    constant = score("regression", y, np.full_like(y, 2.0))
    assert np.isnan(constant["pearson_r"]).all()
    assert not np.isnan(constant["mean_squared_error"]).any()


def test_calibration_error_of_one_bin_is_the_gap_of_its_means() -> None:
    y, chance = np.array([[1], [0], [0], [0]]), np.full((4, 1), 0.4)
    np.testing.assert_allclose(score_probabilities("binary", y, chance)["ece"], [0.15])
    # 0.4 is an upper end, and belongs to the bin below it with 0.35: their gaps cancel.
    y, chance = np.array([[1], [0]]), np.array([[0.4], [0.35]])
    np.testing.assert_allclose(score_probabilities("binary", y, chance)["ece"], [0.125])


def test_every_kind_has_its_primary_metric_and_losses_are_marked() -> None:
    assert metrics.PRIMARY == {
        "binary": "accuracy",
        "multilabel": "average_precision",
        "multiclass": "accuracy",
        "regression": "r2",
    }
    y, scores = np.array([[1, 0], [0, 1]]), np.array([[0.8, 0.2], [0.3, 0.7]])
    for kind, primary in metrics.PRIMARY.items():
        assert primary in score(kind, y.argmax(axis=1) if kind == "multiclass" else y, scores)
    for loss in ("log_loss", "brier", "ece", "mean_squared_error", "calibrated_ece"):
        assert not metrics.higher_is_better(loss)
    for name in ("r2", "auroc", "pearson_r"):
        assert metrics.higher_is_better(name)


@pytest.mark.parametrize(
    ("compute", "kind", "y", "scores", "weights", "message"),
    [
        (score, "binary", [[1], [0]], [[0.5], [0.1], [0.2]], None, r"\[rows, targets\]"),
        (score, "binary", [[1], [2]], [[0.5], [0.1]], None, "0 or 1"),
        (score, "binary", [[1], [0]], [[0.5], [np.nan]], None, "1 of 2 scores are NaN"),
        (score, "binary", [[1], [0]], [[0.5], [0.1]], [[1.0]], r"\[draws, rows\]"),
        (score, "binary", [[1], [0]], [[0.5], [0.1]], [[1.0, -1.0]], "negative"),
        (score, "binary", np.zeros((0, 1)), np.zeros((0, 1)), None, "no rows"),
        (score_probabilities, "binary", [[1], [0]], [[1.5], [0.1]], None, "probabilities"),
        (score_probabilities, "binary", [[1], [0]], [[0.5], [np.nan]], None, "1 of 2 scores are NaN"),
        (score_probabilities, "multiclass", [1, 0], [[1.5, 0.1], [0.1, 0.1]], None, "probabilities"),
        (score, "multiclass", [0, 2], [[0.5, 0.5], [0.1, 0.9]], None, "do not fit 2 columns"),
        (score, "multiclass", [0.0, 1.0], [[0.5, 0.5], [0.1, 0.9]], None, "integer codes"),
    ],
)
def test_input_that_cannot_be_scored_is_an_error_with_the_way_out(
    compute: Callable[..., Any], kind: str, y: object, scores: object, weights: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        compute(kind, np.asarray(y), np.asarray(scores), None if weights is None else np.asarray(weights))
