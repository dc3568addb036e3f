from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.dual import accumulate_rows
from sonde.probes.eigenbasis import Eigenbasis, eigenbases, eigenbasis
from sonde.probes.ridge import ridge_cv, ridge_path
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate
from sonde.probes.tridiagonal import TridiagonalBasis, ridge_bases

ALPHAS = np.logspace(-2, 4, 4)
PARTS = ("cv_error", "alpha", "weights", "bias", "fold_weights", "fold_bias")


def make_x(case, rng):
    if case == "random":
        return rng.standard_normal((80, 12))
    if case == "ill-conditioned":
        return rng.standard_normal((80, 12)) * np.logspace(2, -4, 12) @ rng.standard_normal((12, 12))
    if case == "constant column":
        x = rng.standard_normal((80, 12))
        x[:, 3], x[:, 7] = 5.25, 0.0  # a mean of 5.25 is exact: scikit-learn's weighted variance then is too
        return x
    if case == "huge mean":
        return rng.standard_normal((80, 12)) + np.where(np.arange(12) % 3 == 0, 1e4, 0.0)
    return rng.standard_normal((80, {"more columns than rows": 150, "as many columns as rows": 80}[case]))


CASES = [
    "random",
    "ill-conditioned",
    "constant column",
    "huge mean",
    "more columns than rows",
    "as many columns as rows",
]


@pytest.fixture(params=CASES)
def data(request):
    rng = np.random.default_rng(0)
    x = make_x(request.param, rng)
    y = x @ rng.standard_normal((x.shape[1], 3)) / x.std(axis=0).max() + rng.standard_normal((80, 3)) * [0.1, 2, 9] + 7
    return x, y, rng.permutation(np.arange(80) % 4)


def sklearn_ridge(x, y, alpha, standardize, weight=None):
    """Raw-unit weights and bias of scikit-learn, fitted on these rows alone."""
    ridge = Ridge(alpha, solver="svd")
    if not standardize:
        ridge.fit(x, y, sample_weight=weight)
        return ridge.coef_, ridge.intercept_
    model = make_pipeline(StandardScaler(), ridge)
    model.fit(x, y, **({} if weight is None else {k + "__sample_weight": weight for k in ("standardscaler", "ridge")}))
    w = ridge.coef_ / model[0].scale_
    return w, ridge.intercept_ - w @ model[0].mean_


def assert_same(ours, theirs, tol=1e-6):
    theirs = np.asarray(theirs)
    np.testing.assert_allclose(to_numpy(ours), theirs, rtol=tol, atol=tol * np.abs(theirs).max())


@pytest.fixture(params=[accumulate, accumulate_rows])
def sums(request):
    """Statistics with Gram matrices, and with rows instead."""
    return request.param


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_every_alpha_equals_scikit_learn_on_every_training_part(data, sums, standardize, namespace):
    x, y, folds = data
    stats = sums(ArrayRows(namespace(x), 17), y, folds)
    for fold in (0, 3, None):
        part = np.ones(80, dtype=bool) if fold is None else folds != fold
        path = ridge_path(stats.total() if fold is None else stats.without(fold), ALPHAS, standardize=standardize)
        for i, alpha in enumerate(ALPHAS):
            w, b = sklearn_ridge(x[part], y[part], alpha, standardize)
            assert_same(path.weights[i], w)
            assert_same(to_numpy(path.bias[i]) + x[0] @ to_numpy(path.weights[i]).T, b + w @ x[0])
        assert isinstance(path.weights, type(namespace(x)))


def brute_force(x, y, folds, standardize=True, weight=None):
    """Held-out mean squared error [A, T] with scikit-learn, each fold predicted by the others."""
    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for i, alpha in enumerate(ALPHAS):
        for fold in np.unique(folds):
            train = folds != fold
            w, b = sklearn_ridge(x[train], y[train], alpha, standardize, None if weight is None else weight[train])
            squared = (y[~train] - x[~train] @ w.T - b) ** 2
            errors[i] += squared.sum(axis=0) if weight is None else weight[~train] @ squared
    return errors / (len(y) if weight is None else weight.sum())


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_choice_and_folds_equal_brute_force_cross_validation(data, sums, standardize, namespace):
    x, y, folds = data
    fit = ridge_cv(sums(ArrayRows(namespace(x), 17), y, folds), ALPHAS, standardize=standardize)
    errors = brute_force(x, y, folds, standardize)
    assert_same(fit.cv_error, errors, 1e-6)
    np.testing.assert_array_equal(fit.alpha, ALPHAS[errors.argmin(axis=0)])
    for t in range(3):
        w, b = sklearn_ridge(x, y[:, t], fit.alpha[t], standardize)
        assert_same(fit.weights[t], w)
        assert_same(fit.bias[t], b, 1e-5)
        for fold in range(4):
            part = folds != fold
            assert_same(fit.fold_weights[fold, t], sklearn_ridge(x[part], y[part, t], fit.alpha[t], standardize)[0])
    assert fit.fold_bias.shape == (4, 3)
    assert isinstance(fit.weights, type(namespace(x)))


def test_one_alpha_for_all_targets_has_the_best_mean_r2(data):
    x, y, folds = data
    fit = ridge_cv(accumulate(ArrayRows(x), y, folds), ALPHAS, per_target=False)
    unexplained = brute_force(x, y, folds) / y.var(axis=0)
    assert set(fit.alpha) == {ALPHAS[unexplained.mean(axis=1).argmin()]}


def test_alphas_may_come_in_any_order_and_ties_take_the_strongest(data):
    x, y, folds = data
    stats = accumulate(ArrayRows(x), y, folds)
    up, down = ridge_cv(stats, ALPHAS), ridge_cv(stats, ALPHAS[::-1])
    np.testing.assert_array_equal(up.alpha, down.alpha)
    np.testing.assert_allclose(up.cv_error, down.cv_error[::-1])
    constant = accumulate(ArrayRows(x), np.ones(80), folds)
    assert ridge_cv(constant, ALPHAS).alpha == ALPHAS.max()


@pytest.mark.parametrize("per_target", [True, False])
def test_groups_of_unequal_size_and_weight_equal_scikit_learn(data, sums, per_target):
    x, y, _ = data
    folds = np.repeat([0, 2, 1, 0, 2], [3, 40, 9, 17, 11])  # five groups in three folds
    weight = np.random.default_rng(1).integers(1, 4, 80).astype(np.float64)
    fit = ridge_cv(sums(ArrayRows(x), y, folds, sample_weight=weight), ALPHAS, per_target=per_target)
    errors = brute_force(x, y, folds, weight=weight)
    assert_same(fit.cv_error, errors)
    unexplained = errors / np.average((y - np.average(y, axis=0, weights=weight)) ** 2, axis=0, weights=weight)
    best = errors.argmin(axis=0) if per_target else unexplained.mean(axis=1).argmin()
    np.testing.assert_array_equal(fit.alpha, np.broadcast_to(ALPHAS[best], 3))
    for t in range(3):
        w, b = sklearn_ridge(x, y[:, t], fit.alpha[t], True, weight)
        assert_same(fit.weights[t], w)
        assert_same(to_numpy(fit.bias[t]) + x[0] @ to_numpy(fit.weights[t]), b + w @ x[0])


def test_columns_that_are_constant_in_one_part_only_equal_scikit_learn(sums):
    rng = np.random.default_rng(4)
    x, folds = rng.standard_normal((60, 9)), np.arange(60) % 3
    x[folds != 1, 2] = 0.0  # nothing to learn from without fold 1
    x[folds != 0, 4] = 2.0
    x[folds == 2, 6] = 3.0  # and to hold out in fold 2
    x[:, 8] = [1.0 if i == 5 else 0.0 for i in range(60)]
    y = x @ rng.standard_normal((9, 2)) + rng.standard_normal((60, 2))
    fit = ridge_cv(sums(ArrayRows(x), y, folds), ALPHAS)
    assert_same(fit.cv_error, brute_force(x, y, folds))
    for fold in range(3):
        train = folds != fold
        for t in range(2):
            w, _ = sklearn_ridge(x[train], y[train, t], fit.alpha[t], True)
            assert_same(fit.fold_weights[fold, t], w)


def stored(basis):
    """The basis as it comes back from a file: in arrays of row-major order."""

    def again(x):
        return torch.from_numpy(x.numpy().copy(order="C")) if isinstance(x, torch.Tensor) else x.copy(order="C")

    names = [field.name for field in fields(basis) if field.name != "weight"]
    arrays = {name: again(getattr(basis, name)) for name in names}
    return replace(basis, **arrays)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_known_bases_give_the_same_bits_and_stand_for_what_they_were_made_of(data, sums, standardize, namespace):
    x, y, folds = data
    stats = sums(ArrayRows(namespace(x)), y, folds)
    bases, light = [stored(basis) for basis in ridge_bases(stats, standardize=standardize)], stats.light()
    assert light.gram is None
    fit, again = ridge_cv(stats, ALPHAS, standardize=standardize), ridge_cv(light, ALPHAS, bases=bases)
    for part in PARTS:
        np.testing.assert_array_equal(to_numpy(getattr(again, part)), to_numpy(getattr(fit, part)), err_msg=part)
    path = ridge_path(light.without(1), ALPHAS, basis=bases[1])
    assert_same(path.weights, to_numpy(ridge_path(stats.without(1), ALPHAS, standardize=standardize).weights))
    assert (to_numpy(eigenbasis(stats.total()).values) >= 0).all()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_tridiagonal_and_diagonal_bases_give_the_same_probes(data, standardize, namespace):
    x, y, folds = data
    stats = accumulate(ArrayRows(namespace(x)), y, folds)
    known = ridge_bases(stats, standardize=standardize), eigenbases(stats, standardize=standardize)
    # Gram matrices of 60 rows have no full rank where there are more columns.
    assert isinstance(known[0][0], TridiagonalBasis if x.shape[1] < 60 else Eigenbasis)
    fits = [ridge_cv(stats, ALPHAS, bases=bases) for bases in known]
    for part in PARTS:
        assert_same(getattr(fits[0], part), to_numpy(getattr(fits[1], part)), 1e-8)
    for bases in known:
        root, total = to_numpy(bases[-1].root()), stats.total()
        assert_same(root @ root.T, to_numpy(total.sxx), 1e-10)
        assert bases[-1].greatest >= to_numpy(known[1][-1].values).max()


def test_one_penalty_at_a_time_gives_the_errors_of_all_together(data):
    x, y, folds = data
    stats = accumulate(ArrayRows(x), y, folds)
    # So few penalties and targets are multiplied in another order.
    one_by_one = np.concatenate([ridge_cv(stats, [alpha]).cv_error for alpha in ALPHAS])
    np.testing.assert_allclose(ridge_cv(stats, ALPHAS).cv_error, one_by_one, rtol=1e-9)


def test_float32_rows_give_the_errors_of_float64_ones():
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((400, 30)) @ rng.standard_normal((30, 30)) + 20).astype(np.float32)
    y = x[:, :4] + np.float32([1, 3, 9, 27]) * rng.standard_normal((400, 4))
    errors = [ridge_cv(accumulate(ArrayRows(a), y, np.arange(400) % 5), ALPHAS).cv_error for a in (x, x.astype(float))]
    np.testing.assert_allclose(*errors, rtol=1e-4)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_float32_rows_give_float32_probes_that_predict_as_float64_ones(namespace):
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((300, 8)) + np.array([1e4, -1e4, 0, 0, 0, 0, 0, 30])).astype(np.float32)
    y = x[:, :2].astype(np.float64).sum(axis=1) + rng.standard_normal(300)
    stats = accumulate(ArrayRows(namespace(x), 64), y, np.arange(300) % 3)
    fit = ridge_cv(stats, ALPHAS)
    assert fit.weights.dtype == namespace(x).dtype
    w, b = sklearn_ridge(x.astype(np.float64), y, fit.alpha[0], True)
    ours = x.astype(np.float64) @ to_numpy(fit.weights)[0].astype(np.float64) + float(fit.bias[0])
    # The bias itself, of 1e4, has float32's spacing of 1e-3 to spare.
    np.testing.assert_allclose(ours, x.astype(np.float64) @ w.T + b, atol=2e-3)


def test_options_that_cannot_be_used_are_errors(data):
    x, y, folds = data
    stats = accumulate(ArrayRows(x), y, folds)
    with pytest.raises(InputError, match=r"alpha 0\.0 is not positive"):
        ridge_path(stats.total(), [1.0, 0.0])
    with pytest.raises(InputError, match="at least two"):
        ridge_cv(accumulate(ArrayRows(x), y, np.zeros(80, dtype=int)), ALPHAS)
    with pytest.raises(InputError, match="no Gram matrices: give the bases"):
        ridge_cv(stats.light(), ALPHAS)
    with pytest.raises(InputError, match="fold 4 has no rows"):
        ridge_cv(accumulate(ArrayRows(x), y, folds, n_folds=5), ALPHAS)
