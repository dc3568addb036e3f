import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.dual import accumulate_rows
from sonde.probes.eigenbasis import eigenbases
from sonde.probes.leave_one_out import ridge_gcv, ridge_loo
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

ALPHAS = np.logspace(-1, 3, 5)
N = 50


def make_x(case, rng):
    x = rng.standard_normal((N, {"more columns than rows": 90, "as many columns as rows": N}.get(case, 9)))
    if case == "ill-conditioned":
        return x * np.logspace(2, -3, 9) @ rng.standard_normal((9, 9))
    if case == "constant column":
        x[:, 3] = 5.25
    return x + (np.where(np.arange(9) % 3 == 0, 1e4, 0.0) if case == "huge mean" else 0.0)


@pytest.fixture(
    params=[
        "random",
        "ill-conditioned",
        "constant column",
        "huge mean",
        "more columns than rows",
        "as many columns as rows",
    ]
)
def data(request):
    """Rows, three targets whose best penalties differ, and folds, which do not matter."""
    rng = np.random.default_rng(0)
    x = make_x(request.param, rng)
    y = x @ rng.standard_normal((x.shape[1], 3)) / x.std(axis=0).max() + rng.standard_normal((N, 3)) * [0.1, 2, 9] + 7
    return x, y, rng.integers(0, 3, N)


@pytest.fixture(params=[accumulate, accumulate_rows])
def sums(request):
    """Statistics with Gram matrices, and with rows instead."""
    return request.param


def assert_same(ours, theirs, tol=1e-6):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(to_numpy(ours), theirs, rtol=tol, atol=tol * np.abs(theirs).max())


def fit_sklearn(last, x, y, standardize=True, weight=None):
    """Fit `last`, after a StandardScaler if asked, and return raw-unit weights."""
    if not standardize:
        return last.fit(x, y, sample_weight=weight).coef_
    model = make_pipeline(StandardScaler(), last)
    model.fit(x, y, **{f"{step}__sample_weight": weight for step in model.named_steps})
    return last.coef_ / model[0].scale_


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_errors_choice_and_weights_equal_ridge_cv_of_scikit_learn(data, sums, standardize, namespace):
    x, y, folds = data
    rows = ArrayRows(namespace(x), 17)
    fit = ridge_loo(rows, y, folds, sums(rows, y, folds), ALPHAS, standardize=standardize)
    theirs = RidgeCV(ALPHAS, alpha_per_target=True, store_cv_results=True)
    weights = fit_sklearn(theirs, x, y, standardize)
    assert_same(fit.cv_error, theirs.cv_results_.mean(axis=0).T)
    np.testing.assert_array_equal(fit.alpha, theirs.alpha_)
    assert_same(fit.weights, weights)
    assert_same(fit.bias + fit.weights @ namespace(x).mean(0), y.mean(axis=0))
    assert isinstance(fit.weights, type(namespace(x)))


@pytest.mark.parametrize("per_target", [True, False])
def test_sample_weights_and_one_alpha_for_all_targets_equal_scikit_learn(data, sums, per_target):
    x, y, folds = data
    weight = np.random.default_rng(1).integers(1, 4, N).astype(np.float64)
    y = (y - np.average(y, axis=0, weights=weight)) / 10
    y /= np.sqrt(np.average(y**2, axis=0, weights=weight))  # else it means R² otherwise over targets than we do
    stats = sums(ArrayRows(x), y, folds, sample_weight=weight)
    fit = ridge_loo(ArrayRows(x), y, folds, stats, ALPHAS, per_target=per_target, sample_weight=weight)
    theirs = RidgeCV(ALPHAS, alpha_per_target=per_target, store_cv_results=True)
    weights = fit_sklearn(theirs, x, y, weight=weight)
    assert_same(fit.cv_error, theirs.cv_results_.sum(axis=0).T / weight.sum())
    np.testing.assert_array_equal(fit.alpha, np.broadcast_to(theirs.alpha_, 3))
    assert_same(fit.weights, weights)


def test_rows_without_a_fold_take_no_part(data, sums):
    x, y, folds = data
    dirty_x, dirty_y, dirty_folds = (
        np.insert(a, [0, 20, N], v, axis=0) for a, v in ((x, np.nan), (y, np.inf), (folds, -1))
    )
    dirty, clean = (
        ridge_loo(ArrayRows(a, 7), b, f, sums(ArrayRows(a, 7), b, f), ALPHAS)
        for a, b, f in ((dirty_x, dirty_y, dirty_folds), (x, y, folds))
    )
    assert_same(dirty.cv_error, clean.cv_error)
    assert_same(dirty.weights, clean.weights)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_generalised_errors_have_the_mean_leverage_of_the_hat_matrix(data, sums, weighted, namespace):
    x, y, folds = data
    weight = np.random.default_rng(1).uniform(0.5, 3, N) if weighted else np.ones(N)
    stats = sums(ArrayRows(namespace(x)), y, folds, sample_weight=weight)
    fit = ridge_gcv(stats, ALPHAS)
    scaled = StandardScaler().fit(x, sample_weight=weight).transform(x)
    errors = []
    for alpha in ALPHAS:
        hat = Ridge(alpha, solver="svd").fit(scaled, np.eye(N), sample_weight=weight).predict(scaled)
        errors.append(weight @ (y - hat @ y) ** 2 / weight.sum() / (1 - np.trace(hat) / N) ** 2)
    assert_same(fit.cv_error, errors)
    np.testing.assert_array_equal(fit.alpha, ALPHAS[np.argmin(errors, axis=0)])
    for t in range(3):
        assert_same(fit.weights[t], fit_sklearn(Ridge(fit.alpha[t], solver="svd"), x, y[:, t], weight=weight))


def test_a_known_eigenbasis_stands_for_what_it_was_made_of(data, sums):
    x, y, folds = data
    rows, stats = ArrayRows(x, 17), sums(ArrayRows(x), y, folds)
    light, basis = stats.light(), eigenbases(stats)[-1]
    for fit, again in (
        (ridge_loo(rows, y, folds, stats, ALPHAS), ridge_loo(rows, y, folds, light, ALPHAS, basis=basis)),
        (ridge_gcv(stats, ALPHAS), ridge_gcv(light, ALPHAS, basis=basis)),
    ):
        np.testing.assert_array_equal(again.cv_error, fit.cv_error)
        np.testing.assert_array_equal(again.weights, fit.weights)


def test_statistics_of_other_rows_are_an_error(data):
    x, y, folds = data
    stats = accumulate(ArrayRows(x), y, folds)
    with pytest.raises(InputError, match="do not belong"):
        ridge_loo(ArrayRows(x), y, (folds + 1) % 3, stats, ALPHAS)
    with pytest.raises(InputError, match="3 targets do not belong to 2"):
        ridge_loo(ArrayRows(x), y[:, :2], folds, stats, ALPHAS)
    with pytest.raises(InputError, match="other sample weights"):
        ridge_loo(ArrayRows(x), y, folds, stats, ALPHAS, sample_weight=np.full(N, 2.0))
    with pytest.raises(InputError, match=r"alpha -1\.0 is not positive"):
        ridge_gcv(stats, [-1.0])
