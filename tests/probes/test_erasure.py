import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.erasure import leace
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

N = 120
CASES = ["random", "huge mean", "other scales", "constant column", "dependent columns", "more columns than rows"]


def make_x(case, rng):
    x = rng.standard_normal((N, 200 if case == "more columns than rows" else 8))
    x[:, :8] = x[:, :8] @ rng.standard_normal((8, 8))
    if case == "huge mean":
        x[:, ::3] += 1e4
    if case == "other scales":
        x *= np.logspace(-3, 3, 8)
    if case == "constant column":
        x[:, 2] = 5.25
    if case == "dependent columns":
        x[:, 5:] = x[:, :5] @ rng.standard_normal((5, 3))
    return x


@pytest.fixture(params=CASES)
def data(request):
    """Rows, and by kind of question: targets of their own, one-hot classes (which are dependent) and real values."""
    rng = np.random.default_rng(0)
    x = make_x(request.param, rng)
    hidden = (x[:, :3] - x[:, :3].mean(axis=0)) / np.maximum(x[:, :3].std(axis=0), 1e-9) + rng.standard_normal((N, 3))
    y = {"targets": (hidden > 0.3).astype(float), "classes": np.eye(3)[hidden.argmax(axis=1)], "values": hidden + 50}
    return x, y


def moments_of(x, y, chunk_size=1024, weight=None):
    return accumulate(ArrayRows(x, chunk_size), y, np.arange(len(x)) % 2, sample_weight=weight).total()


def correlations(x, y):
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    norm = np.linalg.norm(x, axis=0)[:, None] * np.linalg.norm(y, axis=0)
    return (x.T @ y) / np.where(norm > 0, norm, 1)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("kind", ["targets", "classes", "values"])
def test_erased_rows_have_no_covariance_with_the_targets(data, kind, namespace):
    x, y = data[0], data[1][kind]
    erased = leace(moments_of(namespace(x), y)).apply(namespace(x))
    assert isinstance(erased, type(namespace(x)))
    assert np.abs(correlations(x, y)).max() > 0.3
    assert np.abs(correlations(to_numpy(erased), y)).max() < 1e-8
    np.testing.assert_allclose(to_numpy(erased).mean(axis=0), x.mean(axis=0), atol=1e-9 * np.abs(x).max())


def test_a_logistic_probe_of_erased_rows_knows_the_prior_alone(data):
    x, y = data
    for answers in (*y["targets"].T, y["classes"].argmax(axis=1)):
        erased = leace(moments_of(x, np.eye(3)[answers.astype(int)])).apply(x)
        fitted = []
        for rows in (x, erased):
            rows = StandardScaler().fit_transform(rows)
            probe = LogisticRegression(C=10, max_iter=2000, tol=1e-8).fit(rows, answers)
            fitted.append(log_loss(answers, probe.predict_proba(rows)))
        share = np.bincount(answers.astype(int)) / N
        prior = -(share * np.log(np.where(share > 0, share, 1))).sum()
        assert fitted[0] < prior - 0.005
        assert fitted[1] == pytest.approx(prior, abs=1e-6)


def test_rows_are_moved_less_than_by_orthogonal_projection_in_every_norm(data):
    x, y = data[0], data[1]["targets"]
    change = leace(moments_of(x, y)).apply(x) - x
    covariance = (x - x.mean(axis=0)).T @ (y - y.mean(axis=0))
    for inner in (np.ones(x.shape[1]), 1 / np.where(x.std(axis=0) > 0, x.std(axis=0), 1)):
        basis = np.linalg.qr(covariance * inner[:, None])[0]
        orthogonal = (x - x.mean(axis=0)) * inner @ basis @ basis.T
        assert np.square(change * inner).sum() < 0.95 * np.square(orthogonal).sum()


def test_the_map_is_that_of_the_theorem():
    rng = np.random.default_rng(1)
    x = make_x("random", rng)
    y = x[:, :2] + rng.standard_normal((N, 2))
    centred = x - x.mean(axis=0)
    whitening = np.linalg.inv(np.real(sqrtm(centred.T @ centred / N)))
    white = whitening @ centred.T @ (y - y.mean(axis=0))
    projection = np.linalg.inv(whitening) @ white @ np.linalg.pinv(white) @ whitening
    eraser, other = leace(moments_of(x, y)), rng.standard_normal((5, 7, 8))
    np.testing.assert_allclose(eraser.left @ eraser.right.T, projection, atol=1e-9)
    np.testing.assert_allclose(eraser.apply(other), other - (other - x.mean(axis=0)) @ projection.T, atol=1e-9)


def test_streamed_rows_give_the_map_of_the_whole_batch(data):
    x, y = data[0], data[1]["classes"]
    streamed, whole = leace(moments_of(x, y, chunk_size=7)), leace(moments_of(x, y))
    np.testing.assert_allclose(streamed.apply(x), whole.apply(x), rtol=1e-9, atol=1e-9 * x.std())


def test_weighted_rows_have_no_weighted_covariance(data):
    x, y = data[0], data[1]["targets"]
    times = np.random.default_rng(2).integers(1, 4, N)
    erased = leace(moments_of(x, y, weight=times)).apply(x)
    assert np.abs(correlations(erased.repeat(times, axis=0), y.repeat(times, axis=0))).max() < 1e-8


def test_constant_columns_are_neither_changed_nor_read():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((20, 40))
    x[:, [4, 9]] = 5.25
    eraser = leace(moments_of(x, x[:, 0] > 0))
    np.testing.assert_array_equal(eraser.apply(x)[:, [4, 9]], x[:, [4, 9]])
    other = x.copy()
    other[:, 9] = rng.standard_normal(20)
    np.testing.assert_array_equal(eraser.apply(other)[:, :9], eraser.apply(x)[:, :9])
    np.testing.assert_array_equal(eraser.apply(other)[:, 9], other[:, 9])


def test_where_nothing_is_known_nothing_is_changed(data):
    x, y = data[0], data[1]["classes"]
    erased = leace(moments_of(x, y)).apply(x)
    again = leace(moments_of(erased, y), tol=1e-6)
    assert again.left.shape == (x.shape[1], 0)
    np.testing.assert_array_equal(again.apply(erased), erased)
    constant = leace(moments_of(np.ones((4, 3)), [0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_array_equal(constant.apply(np.eye(3)), np.eye(3))
    np.testing.assert_array_equal(leace(moments_of(x, np.ones(N))).apply(x), x)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_rows_of_less_precision_come_back_as_float32_without_covariance(case, dtype):
    rng = np.random.default_rng(4)
    x = make_x(case, rng)
    y = x[:, :2] - x[:, :2].mean(axis=0) + rng.standard_normal((N, 2)) > 0
    x = x.astype(dtype)
    erased = leace(moments_of(x, y)).apply(x)
    assert erased.dtype == np.float32
    # float32 keeps the variation about a mean of 1e4 to 1e-3; covariances of its rounding grow in columns that are
    # dependent but for that of bfloat16.
    assert np.abs(correlations(erased.astype(np.float64), y)).max() < 1e-4


def test_an_eraser_serves_rows_of_another_namespace():
    x = np.random.default_rng(5).standard_normal((N, 6))
    eraser = leace(moments_of(x, x[:, :1] > 0))
    erased = eraser.apply(torch.from_numpy(x))
    assert isinstance(erased, torch.Tensor)
    np.testing.assert_allclose(erased, eraser.apply(x), atol=1e-12)
    assert eraser.apply(torch.ones(2, 3, 6, dtype=torch.bfloat16)).shape == (2, 3, 6)


def test_what_cannot_be_used_is_an_error():
    x = np.random.default_rng(6).standard_normal((N, 6))
    moments = moments_of(x, x[:, :1] > 0)
    with pytest.raises(InputError, match=r"activations of shape \(2, 5\) do not fit an eraser of 6 columns"):
        leace(moments).apply(np.ones((2, 5)))
    with pytest.raises(InputError, match=r"tol 0\.0 is not positive"):
        leace(moments, tol=0.0)
