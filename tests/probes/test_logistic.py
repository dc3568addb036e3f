import warnings

import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.eigenbasis import eigenbases
from sonde.probes.logistic import UnconvergedWarning, logistic_cv, logistic_path
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate
from sonde.probes.tridiagonal import ridge_bases

ALPHAS = np.logspace(3, -1, 5)
NAMESPACES = [np.asarray, torch.from_numpy]


def make_x(rng, n=300, d=8):
    x = rng.standard_normal((n, d)) * np.logspace(0.5, -1, d) @ rng.standard_normal((d, d))
    return x + rng.standard_normal(d) * 5


@pytest.fixture
def data():
    """Three targets of falling prevalence, three classes, four folds."""
    rng = np.random.default_rng(0)
    x = make_x(rng)
    z = (x - x.mean(axis=0)) / x.std(axis=0) @ rng.standard_normal((8, 3)) + rng.logistic(size=(300, 3))
    y = (z > np.quantile(z, [0.5, 0.8, 0.95], axis=0).diagonal()).astype(int)
    return x, y, z.argmax(axis=1), rng.permutation(np.arange(300) % 4)


def sklearn_logistic(x, y, alpha, standardize=True, weight=None):
    """Raw-unit weights [K, D] and bias [K] of scikit-learn, fitted on these rows alone.

    By Newton's method: its lbfgs stops at gradients a hundred times ours whatever `tol` says.
    """
    scaler = StandardScaler(with_mean=True, with_std=standardize).fit(x, sample_weight=weight)
    model = LogisticRegression(C=1 / alpha, tol=1e-10, solver="newton-cholesky", max_iter=1000)
    model.fit(scaler.transform(x), y, sample_weight=weight)
    w = model.coef_ / (scaler.scale_ if standardize else 1.0)
    return w, model.intercept_ - w @ scaler.mean_


def assert_same(ours, theirs, tol=1e-5):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(to_numpy(ours), theirs, rtol=tol, atol=tol * np.abs(theirs).max())


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_target_and_alpha_equals_scikit_learn(data, standardize, namespace):
    x, y, _, _ = data
    path = logistic_path(ArrayRows(namespace(x), 64), y, ALPHAS, standardize=standardize, tol=1e-8)
    assert path.converged.all()
    assert isinstance(path.weights, type(namespace(x)))
    for i, alpha in enumerate(ALPHAS):
        for t in range(3):
            w, b = sklearn_logistic(x, y[:, t], alpha, standardize)
            assert_same(path.weights[i, t], w[0])
            assert_same(path.bias[i, t], b[0])


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_multinomial_equals_scikit_learn(data, standardize, namespace):
    x, _, classes, _ = data
    path = logistic_path(
        ArrayRows(namespace(x), 64), classes, ALPHAS, kind="multinomial", standardize=standardize, tol=1e-8
    )
    assert path.converged.shape == (5, 3)
    for i, alpha in enumerate(ALPHAS):
        w, b = sklearn_logistic(x, classes, alpha, standardize)
        assert_same(path.weights[i], w)
        # The softmax leaves the sum of the biases free: compare what it sees.
        assert_same(path.bias[i] - path.bias[i].mean(), b - b.mean())


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_separable_classes_converge(namespace):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((120, 5))
    x[:60] += 6.0
    y, classes = np.arange(120) < 60, np.arange(120) // 40
    x[classes == 2, 0] -= 20
    for alpha in (1.0, 1e-2):
        path = logistic_path(ArrayRows(namespace(x), 50), y, [alpha], tol=1e-8)
        assert_same(path.weights[0, 0], sklearn_logistic(x, y, alpha)[0][0])
        path = logistic_path(ArrayRows(namespace(x), 50), classes, [alpha], kind="multinomial", tol=1e-8)
        assert_same(path.weights[0], sklearn_logistic(x, classes, alpha)[0])


def test_more_columns_than_rows_constant_columns_and_huge_means_equal_scikit_learn():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 90))
    y = x[:, 0] + rng.logistic(size=60) > 0
    x[:, 5] = 3.7
    x[:, 6] += 1e4
    w, _ = sklearn_logistic(x, y, 1.0)
    path = logistic_path(ArrayRows(x), y, [1.0], tol=1e-8)
    assert_same(path.weights[0, 0], w[0])
    assert abs(path.weights[0, 0, 5]) < 1e-15


@pytest.mark.parametrize("kind", ["multilabel", "multinomial"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_columns_whose_squares_underflow_have_no_weight_and_change_nothing(data, namespace, kind):
    x, y, classes, _ = data
    gone, labels = [2, 5], y if kind == "multilabel" else classes
    x = x.astype(np.float32)
    x[:, gone] = np.float32(1e-33) * np.random.default_rng(4).standard_normal((300, 2))
    ours = logistic_path(ArrayRows(namespace(x), 64), labels, ALPHAS, kind=kind)
    kept = np.delete(x, gone, axis=1)
    theirs = logistic_path(ArrayRows(namespace(kept), 64), labels, ALPHAS, kind=kind)
    assert ours.converged.all()
    assert np.abs(to_numpy(ours.weights)[:, :, gone]).max() < 1e-5 * np.abs(to_numpy(ours.weights)).max()
    assert_same(np.delete(to_numpy(ours.weights), gone, axis=2), to_numpy(theirs.weights), 1e-4)


def brute_force(x, y, folds, alphas):
    """Mean held-out log-loss [A] with scikit-learn, and the fits without each fold {(alpha, fold): (w, b)}."""
    fits = {(a, f): sklearn_logistic(x[folds != f], y[folds != f], a) for a in alphas for f in np.unique(folds)}
    losses = []
    for a in alphas:
        loss = 0.0
        for f in np.unique(folds):
            w, b = fits[a, f]
            z = x[folds == f] @ w.T + b
            z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
            loss -= log_softmax(z, axis=1)[np.arange(len(z)), y[folds == f]].sum()
        losses.append(loss / len(y))
    return np.asarray(losses), fits


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_cross_validation_equals_brute_force(data, namespace):
    x, y, _, folds = data
    rows = ArrayRows(namespace(x), 64)
    fit = logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, tol=1e-8)
    assert fit.converged.all()
    assert fit.fold_converged.all()
    assert isinstance(fit.fold_weights, type(namespace(x)))
    for t in range(3):
        losses, fits = brute_force(x, y[:, t], folds, ALPHAS)
        assert_same(fit.cv_loss[:, t], losses)
        assert fit.alpha[t] == ALPHAS[losses.argmin()]
        w, b = sklearn_logistic(x, y[:, t], fit.alpha[t])
        assert_same(fit.weights[t], w[0])
        assert_same(fit.bias[t], b[0])
        for f in range(4):
            assert_same(fit.fold_weights[f, t], fits[fit.alpha[t], f][0][0])
            assert_same(fit.fold_bias[f, t], fits[fit.alpha[t], f][1][0])


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_multinomial_cross_validation_equals_brute_force(data, namespace):
    x, _, classes, folds = data
    rows = ArrayRows(namespace(x), 64)
    fit = logistic_cv(rows, classes, folds, accumulate(rows, None, folds), ALPHAS, kind="multinomial", tol=1e-8)
    losses, fits = brute_force(x, classes, folds, ALPHAS)
    assert_same(fit.cv_loss[:, 0], losses)
    assert fit.alpha == [ALPHAS[losses.argmin()]]
    assert_same(fit.weights, sklearn_logistic(x, classes, fit.alpha[0])[0])
    for f in range(4):
        assert_same(fit.fold_weights[f], fits[fit.alpha[0], f][0])


def test_one_alpha_for_all_targets_has_the_least_mean_loss(data):
    x, y, _, folds = data
    rows = ArrayRows(x)
    fit = logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, per_target=False)
    losses = np.mean([brute_force(x, y[:, t], folds, ALPHAS)[0] for t in range(3)], axis=0)
    assert set(fit.alpha) == {ALPHAS[losses.argmin()]}


def test_a_target_has_the_same_answer_alone_as_among_others_that_converge_sooner_or_later(data):
    x, y, _, folds = data
    rows = ArrayRows(x, 64)
    stats = accumulate(rows, None, folds)
    together = logistic_cv(rows, y, folds, stats, ALPHAS, tol=1e-9)
    passes = 0
    for t in range(3):
        alone = logistic_cv(rows, y[:, t], folds, stats, ALPHAS, tol=1e-9)
        passes += alone.n_passes
        assert alone.alpha[0] == together.alpha[t]
        assert_same(together.weights[t], alone.weights[0], 1e-7)
        assert_same(together.fold_weights[:, t], alone.fold_weights[:, 0], 1e-7)
        assert_same(together.cv_loss[:, t], alone.cv_loss[:, 0], 1e-9)
    assert together.n_passes < passes
    assert together.n_passes < sum(
        logistic_cv(rows, y[:, t], folds, stats, ALPHAS, tol=1e-9).n_passes for t in range(3)
    )


def test_the_tolerance_is_kept(data):
    x, y, _, _ = data
    exact = logistic_path(ArrayRows(x), y, ALPHAS, tol=1e-11)
    loose = logistic_path(ArrayRows(x), y, ALPHAS, tol=1e-4)
    assert loose.n_passes < exact.n_passes
    assert_same(loose.weights, exact.weights, 1e-2)


@pytest.mark.parametrize(
    "narrow",
    [lambda x: x.astype(ml_dtypes.bfloat16), lambda x: torch.from_numpy(x).to(torch.bfloat16)],
    ids=["ml_dtypes", "torch"],
)
def test_bfloat16_rows_equal_float32_rows_and_come_close_to_float64(data, narrow):
    x, y, _, folds = data
    half = narrow(x.astype(np.float32))
    single = half.to(torch.float32) if isinstance(half, torch.Tensor) else half.astype(np.float32)
    fits = []
    for a in (half, single):
        rows = ArrayRows(a, 64)
        fits.append(logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS))
    np.testing.assert_array_equal(to_numpy(fits[0].weights), to_numpy(fits[1].weights))
    np.testing.assert_array_equal(fits[0].cv_loss, fits[1].cv_loss)
    assert str(fits[0].weights.dtype).endswith("float32")
    assert fits[0].converged.all()
    wide = to_numpy(single).astype(np.float64)
    for t in range(3):
        assert_same(fits[0].weights[t], sklearn_logistic(wide, y[:, t], fits[0].alpha[t])[0][0], 1e-3)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_rows_without_a_fold_change_nothing_whatever_they_hold(data, namespace):
    x, y, _, folds = data
    n = 334
    keep = np.setdiff1d(np.arange(n), np.arange(0, n, 10))[:300]
    dirty_x, dirty_y, dirty_folds = np.full((n, 8), np.nan), np.full((n, 3), -7.0), np.full(n, -1)
    dirty_x[keep], dirty_y[keep], dirty_folds[keep] = x, y, folds
    fits = []
    for a, labels, f in ((x, y, folds), (dirty_x, dirty_y, dirty_folds)):
        rows = ArrayRows(namespace(a), 50)
        fits.append(logistic_cv(rows, labels, f, accumulate(rows, None, f), ALPHAS, tol=1e-9))
    assert_same(fits[1].weights, to_numpy(fits[0].weights), 1e-8)
    assert_same(fits[1].cv_loss, fits[0].cv_loss, 1e-9)


@pytest.mark.parametrize("chunk_size", [1, 37, 300])
def test_chunk_boundaries_do_not_matter(data, chunk_size):
    x, y, _, _ = data
    path = logistic_path(ArrayRows(x, chunk_size), y, [1.0], tol=1e-10)
    assert_same(path.weights, logistic_path(ArrayRows(x, 128), y, [1.0], tol=1e-10).weights, 1e-9)


@pytest.mark.parametrize("kind", ["multilabel", "multinomial"])
def test_sample_weights_equal_scikit_learn(data, kind):
    x, y, classes, _ = data
    labels = y[:, 1] if kind == "multilabel" else classes
    weight = np.random.default_rng(3).uniform(0.2, 3, 300)
    path = logistic_path(ArrayRows(x, 64), labels, [1.0], kind=kind, sample_weight=weight, tol=1e-8)
    assert_same(path.weights[0], sklearn_logistic(x, labels, 1.0, weight=weight)[0])


def test_known_eigenbases_give_the_same_answer(data):
    x, y, _, folds = data
    rows = ArrayRows(x)
    stats = accumulate(rows, None, folds)
    again = logistic_cv(rows, y, folds, stats, ALPHAS, bases=eigenbases(stats), tol=1e-8)
    assert_same(again.weights, logistic_cv(rows, y, folds, stats, ALPHAS, tol=1e-8).weights)
    with pytest.raises(InputError, match="need eigenvectors"):
        logistic_cv(rows, y, folds, stats, ALPHAS, bases=ridge_bases(stats))


def test_cross_validation_over_fewer_rows_than_columns_equals_brute_force():
    rng = np.random.default_rng(5)
    x, folds = rng.standard_normal((60, 70)), np.arange(60) % 3
    y = (x[:, 0] + rng.logistic(size=60) > 0).astype(int)
    rows = ArrayRows(x)
    fit = logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, tol=1e-8)
    losses, fits = brute_force(x, y, folds, ALPHAS)
    assert_same(fit.cv_loss[:, 0], losses)
    for f in range(3):
        assert_same(fit.fold_weights[f], fits[fit.alpha[0], f][0])


def test_fits_that_run_out_of_passes_are_flagged_and_warned_of_once(data):
    x, y, _, folds = data
    rows = ArrayRows(x)
    with pytest.warns(UnconvergedWarning, match="max_passes") as seen:
        fit = logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, max_passes=3)
    assert len(seen) == 1
    assert not fit.fold_converged[-1].all()
    assert not fit.converged.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert logistic_path(rows, y, [1e5]).converged.all()


def test_labels_and_statistics_that_cannot_be_used_are_errors(data):
    x, y, classes, folds = data
    rows = ArrayRows(x)
    stats = accumulate(rows, None, folds)
    y[5, 2] = 2
    with pytest.raises(InputError, match="label 2 of row 5 is 2"):
        logistic_cv(rows, y, folds, stats, ALPHAS)
    y[:, 2] = 0
    with pytest.raises(InputError, match="target 2 is the same in all of the training rows"):
        logistic_path(rows, y, ALPHAS)
    y[folds == 1, 2] = 1
    with pytest.raises(InputError, match="target 2 is the same in all of the rows outside fold 1"):
        logistic_cv(rows, y, folds, stats, ALPHAS)
    with pytest.raises(InputError, match=r"row 0 is 0\.5"):
        logistic_path(rows, classes + 0.5, ALPHAS, kind="multinomial")
    with pytest.raises(InputError, match="exactly one"):
        logistic_path(rows, np.ones((300, 3)), ALPHAS, kind="multinomial")
    with pytest.raises(InputError, match="do not belong"):
        logistic_cv(rows, y, (folds + 1) % 3, stats, ALPHAS)
    with pytest.raises(InputError, match="other sample weights"):
        logistic_path(rows, y[:, 0], ALPHAS, folds=folds, stats=stats, sample_weight=np.full(300, 2.0))
    with pytest.raises(InputError, match="'sigmoid'"):
        logistic_path(rows, y, ALPHAS, kind="sigmoid")
