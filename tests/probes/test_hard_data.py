"""Logistic probes of rare, separable, correlated and far-off data: their objective against scikit-learn's lbfgs."""

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.probes.backend import to_numpy
from sonde.probes.logistic import UnconvergedWarning, logistic_cv, logistic_path
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

ALPHAS = [100.0, 1.0, 0.01]
PREVALENCES = [0.003, 0.01, 0.05, 0.2, 0.5]
N_ROWS = 1000


def plain(rng):
    return rng.standard_normal((N_ROWS, 12))


def correlated(rng):
    """Columns that differ by a ten-thousandth of what they share, and of scales that differ by a million."""
    shared = rng.standard_normal((N_ROWS, 3)) @ rng.standard_normal((3, 12))
    return (shared + 1e-4 * rng.standard_normal((N_ROWS, 12))) * np.logspace(-3, 3, 12)


def far(rng):
    """Means of up to a million standard deviations."""
    return rng.standard_normal((N_ROWS, 12)) + np.r_[np.zeros(4), np.logspace(1, 6, 8)]


def labels_of(x, rng):
    """One target for each prevalence, known to the columns but not quite."""
    z = StandardScaler().fit_transform(x) @ rng.standard_normal((12, 5))
    z = z / z.std(axis=0) * 2 + rng.logistic(size=z.shape)
    return (z > np.quantile(z, 1 - np.array(PREVALENCES), axis=0).diagonal()).astype(int)


def objective(x, classes, alpha, weights, bias):
    """What the module promises to minimise, standard deviations taken out, for one target."""
    center, scale = x.mean(axis=0), x.std(axis=0)
    z = (x - center) / scale @ (weights * scale).T + (bias + weights @ center)
    z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
    loss = logsumexp(z, axis=1) - z[np.arange(len(z)), classes]
    return loss.sum() + 0.5 * alpha * ((weights * scale) ** 2).sum()


def least(x, classes, alpha):
    """scikit-learn's objective where its lbfgs ends."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=100_000).fit(scaler.transform(x), classes)
    weights = model.coef_ / scaler.scale_
    return objective(x, classes, alpha, weights, model.intercept_ - weights @ scaler.mean_)


@pytest.mark.parametrize("make", [plain, correlated, far])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_objectives_of_every_prevalence_equal_scikit_learns(make, namespace):
    rng = np.random.default_rng(0)
    x = make(rng)
    y = labels_of(x, rng)
    path = logistic_path(ArrayRows(namespace(x)), y, ALPHAS, max_passes=500)
    assert path.converged.all()
    for i, alpha in enumerate(ALPHAS):
        for t in range(5):
            weights, bias = to_numpy(path.weights[i, t : t + 1]), to_numpy(path.bias[i, t : t + 1])
            ours, theirs = objective(x, y[:, t], alpha, weights, bias), least(x, y[:, t], alpha)
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=f"{PREVALENCES[t]}, alpha {alpha}")


@pytest.mark.parametrize("make", [plain, correlated, far])
def test_objectives_of_rare_classes_of_a_softmax_equal_scikit_learns(make):
    rng = np.random.default_rng(1)
    x = make(rng)
    scores = StandardScaler().fit_transform(x) @ rng.standard_normal((12, 4)) + rng.gumbel(size=(N_ROWS, 4))
    classes = (scores + np.array([0, -1, -5, -9])).argmax(axis=1)
    assert 0 < np.bincount(classes, minlength=4).min() < 0.02 * N_ROWS
    path = logistic_path(ArrayRows(x), classes, ALPHAS, kind="multinomial", max_passes=500)
    assert path.converged.all()
    for i, alpha in enumerate(ALPHAS):
        ours = objective(x, classes, alpha, path.weights[i], path.bias[i])
        np.testing.assert_allclose(ours, least(x, classes, alpha), rtol=1e-6)


@pytest.mark.parametrize("make", [plain, correlated, far])
def test_objectives_of_separable_classes_equal_scikit_learns(make):
    x = make(np.random.default_rng(2))
    direction = StandardScaler().fit_transform(x)[:, 5]
    for classes in ((direction > 0.3).astype(int), np.digitize(direction, [-0.5, 0.8])):
        kind = "multinomial" if classes.max() > 1 else "multilabel"
        path = logistic_path(ArrayRows(x), classes, ALPHAS, kind=kind, max_passes=500)
        assert path.converged.all()
        for i, alpha in enumerate(ALPHAS):
            ours = objective(x, classes, alpha, path.weights[i], path.bias[i])
            np.testing.assert_allclose(ours, least(x, classes, alpha), rtol=1e-6)


def test_rare_labels_that_run_out_of_passes_are_flagged_by_fit_and_the_rest_are_not():
    rng = np.random.default_rng(3)
    x = plain(rng)
    y = labels_of(x, rng)
    folds = np.empty(N_ROWS, dtype=int)
    folds[np.argsort(-y[:, 0], kind="stable")] = np.arange(N_ROWS) % 3  # every fold has rare ones
    rows = ArrayRows(x)
    with pytest.warns(UnconvergedWarning, match="logistic fits did not reach"):
        fit = logistic_cv(rows, y, folds, accumulate(rows, None, folds), [1e4, 1e-4], max_passes=12)
    assert fit.fold_converged[0].all()
    assert not fit.fold_converged[1, :, 0].any()
