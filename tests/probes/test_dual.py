import ml_dtypes
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.dual import RowStatistics, accumulate_rows, statistics_for
from sonde.probes.eigenbasis import eigenbases, eigenbasis
from sonde.probes.logistic import logistic_cv, logistic_path
from sonde.probes.ridge import ridge_cv
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

ALPHAS = [300.0, 30.0, 3.0]
NAMESPACES = [np.asarray, torch.from_numpy]


@pytest.fixture
def data():
    """Sixty rows of a hundred columns, one of them constant, with two targets, in three folds of unequal size."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 100)) * np.logspace(-1, 1, 100) + 30 * rng.standard_normal(100)
    x[:, 7] = 4.0
    y = x @ rng.standard_normal((100, 2)) / 40 + rng.standard_normal((60, 2))
    return x, y, np.repeat([0, 1, 2], [10, 20, 30])


def assert_same(ours, theirs, tol=1e-9):
    theirs = to_numpy(theirs)
    np.testing.assert_allclose(to_numpy(ours), theirs, rtol=tol, atol=tol * np.abs(theirs).max())


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_moments_of_every_part_equal_those_of_gram_matrices(data, namespace, weighted):
    x, y, folds = data
    weight = np.random.default_rng(1).integers(0, 3, 60) if weighted else None
    rows = ArrayRows(namespace(x), 7)
    ours, theirs = (make(rows, y, folds, sample_weight=weight) for make in (accumulate_rows, accumulate))
    parts = [(s.total(), s.only(1), *(s.without(f) for f in range(3))) for s in (ours, theirs)]
    for found, expected in zip(*parts, strict=True):
        assert (found.n, found.weight) == (expected.n, expected.weight)
        assert found.sxx is None
        assert_same(found.centred.T @ found.centred, expected.sxx)
        for name in ("mean_x", "mean_y", "sxy", "syy", "scale", "live"):
            assert_same(getattr(found, name), getattr(expected, name))
            assert isinstance(getattr(found, name), type(namespace(x)))
        assert found.live[7] == 0
        assert not to_numpy(found.sxy)[7].any()


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_thin_eigenvectors_are_orthonormal_and_make_up_the_gram_matrix(data, namespace, standardize):
    x, y, folds = data
    stats, whole = (make(ArrayRows(namespace(x)), y, folds) for make in (accumulate_rows, accumulate))
    basis = eigenbasis(stats.without(2), standardize=standardize)
    assert basis.vectors.shape == (100, 30)
    assert_same(basis.vectors.T @ basis.vectors, np.eye(30), 1e-12)
    root = basis.scale[:, None] * basis.vectors * basis.values**0.5
    assert_same(root @ root.T, whole.without(2).sxx, 1e-12)


@pytest.mark.parametrize("kind", ["multilabel", "multinomial"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_logistic_regression_equals_that_of_gram_matrices(data, namespace, kind):
    x, y, folds = data
    classes = np.digitize(y[:, 0], np.quantile(y[:, 0], [0.3, 0.6]))
    labels = (y > y.mean(axis=0)).astype(int) if kind == "multilabel" else classes
    folds = np.random.default_rng(2).permutation(folds)
    rows = ArrayRows(namespace(x), 7)
    fits = [
        logistic_cv(rows, labels, folds, make(rows, None, folds), ALPHAS, kind=kind, tol=1e-9)
        for make in (accumulate_rows, accumulate)
    ]
    np.testing.assert_array_equal(fits[0].alpha, fits[1].alpha)
    for name in ("cv_loss", "weights", "fold_weights"):
        assert_same(getattr(fits[0], name), getattr(fits[1], name), 1e-6)
    assert fits[0].fold_converged.all()


def test_a_logistic_path_equals_scikit_learn(data):
    x, y, folds = data
    rows, label = ArrayRows(x, 7), (y[:, 0] > y[:, 0].mean()).astype(int)
    path = logistic_path(rows, label, ALPHAS, folds=folds, stats=accumulate_rows(rows, None, folds), tol=1e-9)
    scaler = StandardScaler().fit(x)
    for i, alpha in enumerate(ALPHAS):
        model = LogisticRegression(C=1 / alpha, tol=1e-10, solver="newton-cholesky")
        model.fit(scaler.transform(x), label)
        assert_same(path.weights[i], model.coef_ / scaler.scale_, 1e-6)


@pytest.mark.parametrize("make", [accumulate, accumulate_rows])
def test_known_eigenbases_stand_for_what_they_were_made_of_in_logistic_regression_too(data, make):
    x, y, folds = data
    rows, labels = ArrayRows(x), (y > y.mean(axis=0)).astype(int)
    folds = np.random.default_rng(2).permutation(folds)
    stats = make(rows, None, folds)
    fit = logistic_cv(rows, labels, folds, stats, ALPHAS)
    again = logistic_cv(rows, labels, folds, stats.light(), ALPHAS, bases=eigenbases(stats))
    np.testing.assert_array_equal(again.weights, fit.weights)
    np.testing.assert_array_equal(again.cv_loss, fit.cv_loss)


@pytest.mark.parametrize(
    "narrow",
    [
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
        lambda x: x,
        torch.from_numpy,
    ],
    ids=["ml_dtypes.bfloat16", "torch.bfloat16", "numpy.float32", "torch.float32"],
)
def test_narrow_rows_of_huge_mean_keep_their_moments(data, narrow):
    x, y, folds = data
    rows = narrow((x + np.where(np.arange(100) % 3 == 0, 1e4, 0.0)).astype(np.float32))
    wide = rows.to(torch.float64).numpy() if isinstance(rows, torch.Tensor) else rows.astype(np.float64)
    stats = accumulate_rows(ArrayRows(rows, 7), y, folds)
    assert str(stats.rows.dtype).endswith("float32")
    ours, theirs = stats.without(0), accumulate(ArrayRows(wide), y, folds).without(0)
    spread = np.outer(theirs.scale, theirs.scale) * theirs.weight
    assert_same(to_numpy(ours.centred.T @ ours.centred) / spread, theirs.sxx / spread, 1e-6)
    assert_same(ours.mean_x, theirs.mean_x, 1e-9)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_rows_without_a_fold_change_nothing_whatever_they_hold(data, namespace):
    x, y, folds = data
    keep = np.setdiff1d(np.arange(66), np.arange(0, 66, 11))
    dirty_x, dirty_y, dirty_folds = np.full((66, 100), np.nan), np.full((66, 2), np.inf), np.full(66, -1)
    dirty_x[keep], dirty_y[keep], dirty_folds[keep] = x, y, folds
    dirty, clean = (
        ridge_cv(accumulate_rows(ArrayRows(namespace(a), 7), b, f), ALPHAS)
        for a, b, f in ((dirty_x, dirty_y, dirty_folds), (x, y, folds))
    )
    assert_same(dirty.weights, clean.weights)
    assert_same(dirty.cv_error, clean.cv_error)


def test_rows_are_held_where_they_are_fewer_than_columns(data):
    x, y, folds = data
    assert isinstance(statistics_for(ArrayRows(x), y, folds), RowStatistics)
    assert statistics_for(ArrayRows(x[:, :60]), y, folds).gram is not None
    few = np.where(np.arange(60) % 2 == 0, folds, -1)  # rows in use count
    assert isinstance(statistics_for(ArrayRows(x[:, :60]), y, few, sample_weight=np.ones(60)), RowStatistics)
    held = statistics_for(ArrayRows(x.astype(ml_dtypes.bfloat16)), None, folds, n_folds=4, device="cpu")
    assert isinstance(held.sum_x, torch.Tensor)
    assert held.n.tolist() == [10, 20, 30, 0]


def test_activations_that_cannot_be_used_are_errors(data):
    x, y, folds = data
    x[57, 4] = np.inf
    with pytest.raises(InputError, match="row 57, column 4"):
        accumulate_rows(ArrayRows(x, 7), y, folds)
    with pytest.raises(InputError, match="never read"):
        accumulate_rows(ArrayRows(x[:50], 7), y, folds)
