import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logit
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.discriminant import lda, mean_difference
from sonde.probes.ridge import ridge_cv
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate
from sonde.probes.tridiagonal import ridge_bases

ALPHAS = np.logspace(-1, 4, 4)
N, F = 90, 3


def make_x(case, rng):
    x = rng.standard_normal((N, 150 if case == "more columns than rows" else 8))
    if case == "huge mean":
        x[:, ::3] += 1e4
    if case == "constant column":
        x[:, 2] = 5.25
    return x


CASES = ["random", "huge mean", "constant column", "more columns than rows"]


@pytest.fixture(params=CASES)
def data(request):
    """Rows; three targets of falling prevalence; four classes; folds."""
    rng = np.random.default_rng(0)
    x = make_x(request.param, rng)
    hidden = x[:, :4] - x[:, :4].mean(axis=0) + rng.standard_normal((N, 4))
    y = (hidden[:, :3] > [0.0, 0.5, 1.0]).astype(np.float64)
    return x, y, np.eye(4)[hidden.argmax(axis=1)], np.arange(N) % F


@pytest.fixture
def tame():
    """As `data`, well-conditioned: what scikit-learn can solve without shrinkage."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 6)) @ rng.standard_normal((6, 6)) + 3.0
    hidden = x[:, :4] - x[:, :4].mean(axis=0) + 2 * rng.standard_normal((400, 4))
    return x, (hidden[:, :3] > 0.5).astype(np.float64), np.eye(4)[hidden.argmax(axis=1)], np.arange(400) % F


def parts(fit, folds):
    """(training rows, weights, bias) of every fit, the last one of all rows."""
    for f in range(F):
        yield folds != f, to_numpy(fit.fold_weights)[f], to_numpy(fit.fold_bias)[f]
    yield folds >= 0, to_numpy(fit.weights), to_numpy(fit.bias)


def class_means(x, y):
    return np.stack([x[column > 0].mean(axis=0) for column in y.T])


def shrunk_logits(x, y, alpha, standardize, at, per_target):
    """Log-odds (or log-odds but for a constant) at rows `at`, from the definition of the Gaussian model."""
    variance = np.where(np.ptp(x, axis=0) > 0, x.var(axis=0), 1.0) if standardize else np.ones(x.shape[1])
    found = []
    for t in range(y.shape[1]):
        columns = np.column_stack([1 - y[:, t], y[:, t]]) if per_target else y
        within = x - columns @ class_means(x, columns)
        covariance = (within.T @ within + alpha * np.diag(variance)) / len(x)
        means = class_means(x, columns) - x.mean(axis=0)
        solved = np.linalg.solve(covariance, means.T)
        scores = (at - x.mean(axis=0)) @ solved - np.sum(means.T * solved, axis=0) / 2 + np.log(columns.mean(axis=0))
        if not per_target:
            return scores
        found.append(scores[:, 1] - scores[:, 0])
    return np.stack(found, axis=1)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_mean_difference_is_along_the_means_and_says_0_and_1_at_them(data, namespace):
    x, y, _, folds = data
    fit = mean_difference(accumulate(ArrayRows(namespace(x), 17), y, folds))
    assert isinstance(fit.weights, type(namespace(x)))
    assert fit.fold_weights.shape == (F, 3, x.shape[1])
    assert fit.fold_bias.shape == (F, 3)
    for part, w, b in parts(fit, folds):
        positive, negative = class_means(x[part], y[part]), class_means(x[part], 1 - y[part])
        direction = positive - negative
        np.testing.assert_allclose(w, direction / (direction**2).sum(axis=1, keepdims=True), atol=1e-9)
        np.testing.assert_allclose(np.sum(w * negative, axis=1) + b, 0, atol=1e-6)
        np.testing.assert_allclose(np.sum(w * positive, axis=1) + b, 1, atol=1e-6)


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has")
def test_mean_difference_answers_as_the_nearest_centroid(data):
    x, y, classes, folds = data
    separate = mean_difference(accumulate(ArrayRows(x), y, folds))
    joint = mean_difference(accumulate(ArrayRows(x), classes, folds), per_target=False)
    for part, w, b in parts(separate, folds):
        for t in range(3):
            expected = NearestCentroid().fit(x[part], y[part, t]).predict(x)
            np.testing.assert_array_equal(x @ w[t] + b[t] > 0.5, expected)
    for part, w, b in parts(joint, folds):
        expected = NearestCentroid().fit(x[part], classes[part].argmax(axis=1)).predict(x)
        np.testing.assert_array_equal((x @ w.T + b).argmax(axis=1), expected)


def test_targets_whose_means_are_equal_score_their_share():
    fit = mean_difference(accumulate(ArrayRows(np.ones((9, 2))), np.arange(9) % 3 == 0, np.arange(9) // 3))
    np.testing.assert_array_equal(fit.weights, np.zeros((1, 2)))
    np.testing.assert_allclose(fit.bias, 1 / 3)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_lda_with_little_shrinkage_equals_scikit_learn(tame, namespace):
    x, y, classes, folds = tame
    separate = lda(accumulate(ArrayRows(namespace(x), 64), y, folds), [1e-9])
    joint = lda(accumulate(ArrayRows(namespace(x), 64), classes, folds), [1e-9], per_target=False)
    assert isinstance(separate.fold_weights, type(namespace(x)))
    for part, w, b in parts(separate, folds):
        for t in range(3):
            theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[part], y[part, t])
            np.testing.assert_allclose(x @ w[t] + b[t], theirs.decision_function(x), atol=1e-8)
    for part, w, b in parts(joint, folds):
        theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x[part], classes[part].argmax(axis=1))
        np.testing.assert_allclose(log_softmax(x @ w.T + b, axis=1), theirs.predict_log_proba(x), atol=1e-8)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("alpha", [0.1, 30.0])
def test_lda_with_shrinkage_equals_its_definition(data, standardize, alpha):
    x, y, classes, folds = data
    separate = lda(accumulate(ArrayRows(x), y, folds), [alpha], standardize=standardize)
    joint = lda(accumulate(ArrayRows(x), classes, folds), [alpha], per_target=False, standardize=standardize)
    for part, w, b in parts(separate, folds):
        expected = shrunk_logits(x[part], y[part], alpha, standardize, x, per_target=True)
        np.testing.assert_allclose(x @ w.T + b, expected, rtol=1e-6, atol=1e-6)
    for part, w, b in parts(joint, folds):
        expected = shrunk_logits(x[part], classes[part], alpha, standardize, x, per_target=False)
        ours = log_softmax(x @ w.T + b, axis=1)
        np.testing.assert_allclose(ours, log_softmax(expected, axis=1), rtol=1e-6, atol=1e-6)


def test_two_classes_of_one_question_are_one_target(data):
    x, y, _, folds = data
    both = np.column_stack([1 - y[:, 0], y[:, 0]])
    joint = lda(accumulate(ArrayRows(x), both, folds), ALPHAS, per_target=False)
    single = lda(accumulate(ArrayRows(x), y[:, 0], folds), ALPHAS)
    assert set(joint.alpha) == set(single.alpha)
    np.testing.assert_allclose(joint.weights[1] - joint.weights[0], single.weights[0], rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(joint.bias[1] - joint.bias[0], single.bias[0], rtol=1e-8)


@pytest.mark.parametrize("per_target", [True, False])
def test_lda_takes_the_alpha_of_ridge_whose_direction_it_has(data, per_target):
    x, y, classes, folds = data
    stats = accumulate(ArrayRows(x), y if per_target else classes, folds)
    fit, ridge = lda(stats, ALPHAS, per_target=per_target), ridge_cv(stats, ALPHAS, per_target=per_target)
    np.testing.assert_array_equal(fit.alphas, ALPHAS)
    np.testing.assert_array_equal(fit.alpha, ridge.alpha)
    np.testing.assert_array_equal(fit.cv_error, ridge.cv_error)
    if per_target:
        ratio = fit.weights / np.linalg.norm(fit.weights, axis=1, keepdims=True)
        theirs = ridge.weights / np.linalg.norm(ridge.weights, axis=1, keepdims=True)
        np.testing.assert_allclose(ratio, theirs, rtol=1e-7, atol=1e-12)
    known = lda(stats, ALPHAS, per_target=per_target, bases=ridge_bases(stats))
    np.testing.assert_array_equal(known.fold_weights, fit.fold_weights)
    np.testing.assert_array_equal(known.bias, fit.bias)


@pytest.mark.parametrize(("dtype", "alpha"), [(np.float32, 1e-2), (np.float64, 1e-12)])
def test_separable_classes_have_finite_probes_that_know_every_row(dtype, alpha):
    rng = np.random.default_rng(3)
    classes = np.eye(3)[np.arange(60) % 3]
    x = (5 * classes @ rng.standard_normal((3, 100)) + rng.standard_normal((60, 100))).astype(dtype)
    joint = lda(accumulate(ArrayRows(x), classes, np.arange(60) // 20), [alpha], per_target=False)
    separate = lda(accumulate(ArrayRows(x), classes, np.arange(60) // 20), [alpha])
    for fit in (joint, separate):
        assert all(np.isfinite(a).all() for a in (fit.weights, fit.bias, fit.fold_weights, fit.fold_bias))
        np.testing.assert_array_equal((x @ fit.weights.T + fit.bias).argmax(axis=1), classes.argmax(axis=1))


def test_sample_weights_count_as_repetitions(data):
    x, y, classes, folds = data
    times = np.random.default_rng(4).integers(1, 4, N)
    for target, per_target in ((y, True), (classes, False)):
        weighted = accumulate(ArrayRows(x), target, folds, sample_weight=times)
        repeated = accumulate(ArrayRows(x.repeat(times, axis=0)), target.repeat(times, axis=0), folds.repeat(times))
        for fit in (mean_difference, lambda stats, **how: lda(stats, [10.0], **how)):
            ours, theirs = fit(weighted, per_target=per_target), fit(repeated, per_target=per_target)
            np.testing.assert_allclose(ours.fold_weights, theirs.fold_weights, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_float32_rows_of_huge_mean_give_float32_probes_that_answer_as_float64_ones(namespace):
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((300, 6)) + np.array([1e4, -1e4, 0, 0, 30, 0])).astype(np.float32)
    y = x[:, 2] + x[:, 0] - x[:, 0].mean() + rng.standard_normal(300) > 0
    narrow, wide = (accumulate(ArrayRows(rows, 64), y, np.arange(300) % F) for rows in (namespace(x), np.float64(x)))
    for solve in (mean_difference, lambda stats: lda(stats, [1.0])):
        ours, theirs = solve(narrow), solve(wide)
        assert ours.weights.dtype == ours.fold_bias.dtype == namespace(x).dtype
        scores = x @ np.float64(to_numpy(ours.weights)[0]) + float(ours.bias[0])
        # The bias, of thousands, is rounded to float32's spacing.
        np.testing.assert_allclose(scores, x @ theirs.weights[0] + theirs.bias[0], atol=2e-3)


def test_targets_without_a_direction_have_the_prior_as_logit():
    y = np.arange(40) % 4 == 0
    fit = lda(accumulate(ArrayRows(np.full((40, 3), 2.5)), y, np.arange(40) // 20), [1.0])
    np.testing.assert_allclose(fit.bias, logit(0.25))
    np.testing.assert_array_equal(fit.weights, np.zeros((1, 3)))


@pytest.mark.parametrize("solve", [mean_difference, lambda stats, **how: lda(stats, ALPHAS, **how)])
def test_targets_that_cannot_be_told_apart_are_errors(solve):
    rng = np.random.default_rng(6)
    x, folds = rng.standard_normal((40, 3)), np.arange(40) // 20
    y = np.column_stack([np.arange(40) % 2 == 0, np.arange(40) < 5]).astype(np.float64)
    with pytest.raises(InputError, match="target 1 is the same in all of the rows outside fold 0: drop it"):
        solve(accumulate(ArrayRows(x), y, folds))
    with pytest.raises(InputError, match="target 0 is the same in all of the training rows"):
        solve(accumulate(ArrayRows(x), np.zeros(40), folds))
    with pytest.raises(InputError, match=r"target 1 of mean .* is not all zeros and ones"):
        solve(accumulate(ArrayRows(x), np.column_stack([y[:, 0], x[:, 0]]), folds))
    with pytest.raises(InputError, match=r"the 2 classes have 0\.625 of the weight, not 1"):
        solve(accumulate(ArrayRows(x), y, folds), per_target=False)
    with pytest.raises(InputError, match="at least two"):
        solve(accumulate(ArrayRows(x), y, np.zeros(40, dtype=int)))
