import array_api_compat
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.probes.backend import gram, to_numpy
from sonde.probes.ridge import ridge_cv
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate, with_targets


def reference(x, y, weight):
    """Centred sums, from their definition in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = weight @ x / weight.sum(), weight @ y / weight.sum()
    x, y = x - mean_x, y - mean_y
    return (
        mean_x,
        mean_y,
        x.T @ (weight[:, None] * x),
        x.T @ (weight[:, None] * y),
        (weight[:, None] * y**2).sum(axis=0),
    )


def assert_moments(moments, x, y, weight=None, tol=1e-10):
    weight = np.ones(len(x)) if weight is None else weight
    found = (moments.mean_x, moments.mean_y, moments.sxx, moments.sxy, moments.syy)
    assert moments.n == len(x)
    assert moments.weight == pytest.approx(weight.sum())
    for ours, theirs in zip(found, reference(x, y, weight), strict=True):
        np.testing.assert_allclose(to_numpy(ours), theirs, rtol=tol, atol=tol * max(1.0, np.abs(theirs).max()))


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 7)) * np.logspace(0, 2, 7) + rng.standard_normal(7) * 30
    y = rng.standard_normal((90, 3)) + 2000.0
    return x, y, rng.integers(0, 4, 90)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_moments_of_every_part_equal_their_definition(data, namespace):
    x, y, folds = data
    stats = accumulate(ArrayRows(namespace(x), 13), y, folds)
    assert_moments(stats.total(), x, y)
    for fold in range(4):
        assert_moments(stats.only(fold), x[folds == fold], y[folds == fold])
        assert_moments(stats.without(fold), x[folds != fold], y[folds != fold])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    far=st.floats(-1e6, 1e6),
    weighted=st.booleans(),
)
def test_streaming_equals_the_whole_batch_wherever_chunks_end(sizes, seed, far, weighted):
    rng = np.random.default_rng(seed)
    n = sum(sizes)
    x, y = rng.standard_normal((n, 4)), rng.standard_normal((n, 2))
    x[:, 1] += far
    x[n // 2 :, 2] -= far  # drifts, so that the shift has to follow
    folds = rng.integers(-1, 3, n)
    folds[0] = 0
    weight = rng.uniform(0.1, 2, n)
    ends = np.cumsum(sizes)

    class Uneven:
        hidden_size = 4

        def __iter__(self):
            for start, end in zip(np.r_[0, ends[:-1]].tolist(), ends.tolist(), strict=True):
                yield slice(start, end), x[start:end]

    stats = accumulate(Uneven(), y, folds, n_folds=3, sample_weight=weight if weighted else None)
    used = folds >= 0
    scale = max(1.0, np.abs(far)) ** 2 if x[used].shape[0] > 1 else 1.0
    for ours, theirs in zip(
        (stats.total().sxx, stats.total().sxy),
        reference(x[used], y[used], weight[used] if weighted else np.ones(used.sum()))[2:4],
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-12 * scale * n)


def test_more_rows_than_a_block_are_all_counted():
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((5000, 3)), rng.standard_normal((5000, 1))
    stats = accumulate(ArrayRows(x, 1700), y, np.zeros(5000, dtype=int))
    assert_moments(stats.total(), x, y)


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("late", [False, True], ids=["from the start", "after a quiet first chunk"])
def test_float32_columns_of_huge_mean_keep_their_correlations(namespace, late):
    rng = np.random.default_rng(2)
    n = 4000
    z = rng.standard_normal((n, 6)) @ rng.standard_normal((6, 6))
    x = (z / z.std(axis=0) + np.array([1e4, 1e4, -1e4, 0, 0, 1e4])).astype(np.float32)
    folds = rng.integers(0, 5, n)
    if late:
        folds[:256] = -1  # the first chunk in use is another one
        x[256:300, 3] += 50
    stats = accumulate(ArrayRows(namespace(x), 256), x[:, 3:4], folds)
    for fold in range(5):
        ours = to_numpy(stats.without(fold).sxx)
        d = np.sqrt(np.diag(ours))
        theirs = np.corrcoef(x[(folds != fold) & (folds >= 0)].astype(np.float64).T)
        np.testing.assert_allclose(ours / np.outer(d, d), theirs, atol=1e-5)


def test_weights_count_as_repetitions(data):
    x, y, folds = data
    times = np.random.default_rng(3).integers(1, 4, len(x))
    weighted = accumulate(ArrayRows(x, 16), y, folds, sample_weight=times).without(1)
    repeated = accumulate(
        ArrayRows(np.repeat(x, times, axis=0), 16), np.repeat(y, times, axis=0), np.repeat(folds, times)
    )
    np.testing.assert_allclose(weighted.sxx, repeated.without(1).sxx, rtol=1e-9)
    np.testing.assert_allclose(weighted.sxy, repeated.without(1).sxy, rtol=1e-9, atol=1e-9)
    assert weighted.weight == repeated.without(1).weight


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_targets_that_come_later_have_the_sums_of_targets_that_came_at_once(data, namespace, weighted):
    x, y, folds = data
    x[:, 2] += 1e5
    folds[::7] = -1
    weight = np.random.default_rng(4).uniform(0.1, 2, len(x)) if weighted else None
    rows = ArrayRows(namespace(x), 13)
    at_once = accumulate(rows, y, folds, sample_weight=weight)
    later = with_targets(accumulate(rows, None, folds, sample_weight=weight), rows, y, folds, sample_weight=weight)
    for fold in range(4):
        used = (folds != fold) & (folds >= 0)
        assert_moments(later.without(fold), x[used], y[used], None if weight is None else weight[used])
    for name in ("shift_y", "sum_y", "square_y", "cross"):
        ours, theirs = to_numpy(getattr(later, name)), to_numpy(getattr(at_once, name))
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
        assert array_api_compat.device(getattr(later, name)) == array_api_compat.device(later.gram)


def test_targets_of_other_folds_are_refused(data):
    x, y, folds = data
    stats = accumulate(ArrayRows(x), None, folds)
    with pytest.raises(InputError, match="are not of these folds"):
        with_targets(stats, ArrayRows(x), y, np.where(np.arange(len(x)) == 5, -1, folds))


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_rows_without_a_fold_change_nothing_whatever_they_hold(data, namespace):
    x, y, folds = data
    clean = accumulate(ArrayRows(namespace(x), 13), y, folds).total()
    n = len(x) + 11
    keep = np.setdiff1d(np.arange(n), np.arange(0, n, 10))
    dirty_x, dirty_y, dirty_folds = np.full((n, 7), np.nan), np.full((n, 3), np.inf), np.full(n, -1)
    dirty_x[keep], dirty_y[keep], dirty_folds[keep] = x, y, folds
    dirty = accumulate(ArrayRows(namespace(dirty_x), 13), dirty_y, dirty_folds).total()
    np.testing.assert_allclose(to_numpy(dirty.sxx), to_numpy(clean.sxx), rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(to_numpy(dirty.sxy), to_numpy(clean.sxy), rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize(
    "narrow",
    [
        lambda x: x.astype(ml_dtypes.bfloat16),
        lambda x: torch.from_numpy(x).to(torch.bfloat16),
        lambda x: x.astype(np.float16),
        lambda x: torch.from_numpy(x).to(torch.float16),
    ],
    ids=["ml_dtypes.bfloat16", "torch.bfloat16", "numpy.float16", "torch.float16"],
)
def test_half_precision_rows_equal_float32_rows_of_the_same_values(data, narrow):
    x, y, folds = data
    half = narrow(x.astype(np.float32))
    single = half.to(torch.float32) if isinstance(half, torch.Tensor) else half.astype(np.float32)
    ours, theirs = (accumulate(ArrayRows(a, 13), y, folds).total() for a in (half, single))
    np.testing.assert_array_equal(to_numpy(ours.sxx), to_numpy(theirs.sxx))
    np.testing.assert_array_equal(to_numpy(ours.mean_x), to_numpy(theirs.mean_x))
    assert isinstance(ours.sxx, type(theirs.sxx))
    assert str(ours.dtype).endswith("float32")


def test_bfloat16_from_numpy_can_be_computed_with_torch(data):
    x, y, folds = data
    half = x.astype(ml_dtypes.bfloat16)
    ours = accumulate(ArrayRows(half, 13), y, folds, device="cpu").total()
    assert isinstance(ours.sxx, torch.Tensor)
    np.testing.assert_allclose(ours.sxx, accumulate(ArrayRows(half, 13), y, folds).total().sxx, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gram_is_the_product_with_its_transpose(make, dtype):
    x = np.random.default_rng(4).standard_normal((20, 9)).astype(dtype)
    ours = gram(make(x))
    assert array_api_compat.array_namespace(ours) is array_api_compat.array_namespace(make(x))
    np.testing.assert_allclose(to_numpy(ours), x.T @ x, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-5)


def test_constant_columns_are_exactly_zero_and_have_scale_one():
    x = np.random.default_rng(5).standard_normal((50, 3)).astype(np.float32)
    x[:, 1] = 12345.678
    moments = accumulate(ArrayRows(x, 7), x[:, :1], np.zeros(50, dtype=int)).total()
    assert not moments.sxx[1].any()
    assert not moments.sxx[:, 1].any()
    assert not moments.sxy[1].any()
    assert moments.scale[1] == 1.0


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize("standardize", [True, False])
def test_columns_whose_squares_underflow_count_as_constant(namespace, standardize):
    rng = np.random.default_rng(6)
    x = rng.standard_normal((200, 6)).astype(np.float32)
    y, folds, gone = x[:, :2] + rng.standard_normal((200, 2)), np.arange(200) % 4, [1, 4]
    # What a trained LayerNorm leaves of columns that it has turned off.
    x[:, gone] = np.float32(1e-33) * rng.standard_normal((200, 2)) + np.float32([0, 1e-32])
    kept = np.setdiff1d(np.arange(6), gone)
    stats, without = (accumulate(ArrayRows(namespace(a), 64), y, folds) for a in (x, x[:, kept]))
    for fold in range(4):
        moments = stats.without(fold)
        assert not to_numpy(moments.sxx)[gone].any()
        assert not to_numpy(moments.sxy)[gone].any()
        assert (to_numpy(moments.scale)[gone] == 1).all()
    ours, theirs = (ridge_cv(s, np.logspace(-2, 4, 7), standardize=standardize) for s in (stats, without))
    np.testing.assert_array_equal(ours.alpha, theirs.alpha)
    assert np.abs(to_numpy(ours.weights)[:, gone]).max() < 1e-12  # what rounding leaves in the eigenvectors
    np.testing.assert_allclose(to_numpy(ours.weights)[:, kept], to_numpy(theirs.weights), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(to_numpy(ours.bias), to_numpy(theirs.bias), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_a_value_in_use_that_is_not_finite_is_an_error_naming_its_row(data, value, namespace):
    x, y, folds = data
    x[57, 4] = value
    with pytest.raises(InputError, match="row 57, column 4"):
        accumulate(ArrayRows(namespace(x), 13), y, folds)


def test_values_too_large_for_float32_products_are_an_error(data):
    x, y, folds = data
    x = x.astype(np.float32)
    x[57, 4] = 1e30
    with pytest.raises(InputError, match="float64"):
        accumulate(ArrayRows(x, 13), y, folds)


def test_targets_folds_and_weights_that_cannot_be_used_are_errors(data):
    x, y, folds = data
    rows = ArrayRows(x, 13)
    y[8, 1] = np.nan
    with pytest.raises(InputError, match="target 1 of row 8"):
        accumulate(rows, y, folds)
    y[8, 1] = 0.0
    with pytest.raises(InputError, match="no sample has a fold"):
        accumulate(rows, y, np.full(90, -1))
    with pytest.raises(InputError, match="one integer per sample"):
        accumulate(rows, y, folds.astype(float))
    with pytest.raises(InputError, match="n_folds=2"):
        accumulate(rows, y, folds, n_folds=2)
    with pytest.raises(InputError, match="row 3 is -1"):
        accumulate(rows, y, folds, sample_weight=np.where(np.arange(90) == 3, -1, 1))
    with pytest.raises(InputError, match="89 samples"):
        accumulate(rows, y, folds[:-1])
    with pytest.raises(InputError, match="never read"):
        accumulate(ArrayRows(x[:50], 13), y, folds)
    with pytest.raises(InputError, match="int64"):
        accumulate(ArrayRows(x.astype(np.int64)), y, folds)
