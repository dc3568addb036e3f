"""The cluster bootstrap draws groups, not rows, and pairs what is compared."""

import numpy as np
import pytest

from sonde.errors import InputError
from sonde.probes.bootstrap import cluster_weights, interval, paired_difference

GROUPS = ["b", "a", "b", "c", "a", "d", "b"]


def test_rows_of_a_group_share_their_weight_and_each_draw_has_as_many_groups_as_there_are() -> None:
    weights = cluster_weights(GROUPS, 200, seed=1)
    assert weights.shape == (200, 7)
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 1], weights[:, 4])
    first_rows = [GROUPS.index(group) for group in "abcd"]
    np.testing.assert_array_equal(weights[:, first_rows].sum(axis=1), 4)
    assert weights.dtype == np.uint8


def test_draws_are_seeded_and_do_not_depend_on_the_order_of_rows() -> None:
    weights = cluster_weights(GROUPS, 50, seed=1)
    np.testing.assert_array_equal(cluster_weights(GROUPS, 50, seed=1), weights)
    np.testing.assert_array_equal(cluster_weights(GROUPS[::-1], 50, seed=1), weights[:, ::-1])
    assert (cluster_weights(GROUPS, 50, seed=2) != weights).any()
    np.testing.assert_array_equal(cluster_weights(GROUPS, 10, seed=1), weights[:10])


def test_interval_of_a_mean_of_clusters_covers_as_often_as_it_says() -> None:
    # 30 clusters of 5 equal rows: an interval blind to clusters would be √5 too narrow and cover about 62 %.
    rng = np.random.default_rng(0)
    groups = [str(i // 5) for i in range(150)]
    covered = 0
    for trial in range(200):
        values = np.repeat(rng.normal(size=30), 5)
        weights = cluster_weights(groups, 300, seed=trial).astype(float)
        low, high = interval(weights @ values / weights.sum(axis=1))
        covered += int(low <= 0 <= high)
    assert 175 <= covered <= 199


def test_interval_equals_numpy_quantiles_and_leaves_out_nan_draws() -> None:
    draws = np.random.default_rng(0).normal(size=(101, 3, 2))
    draws[::4, 1, 0] = np.nan
    draws[:, 2, 1] = np.nan
    low, high = interval(draws, 0.9)
    for i, j in np.ndindex(3, 2):
        column = draws[:, i, j][~np.isnan(draws[:, i, j])]
        expected = np.quantile(column, [0.05, 0.95]) if len(column) else [np.nan, np.nan]
        np.testing.assert_allclose([low[i, j], high[i, j]], expected, rtol=1e-12)


def test_paired_difference_is_the_interval_of_differences_of_draws() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(500, 1))
    ours, theirs = shared + 0.2 + 0.01 * rng.normal(size=(500, 2)), shared
    found = paired_difference(np.array([0.2, 0.2]), 0.0, ours, np.repeat(theirs, 2, axis=1))
    np.testing.assert_allclose(found.value, 0.2)
    assert (found.low > 0.15).all()
    assert (found.high < 0.25).all()
    np.testing.assert_allclose(found.low, np.quantile(ours - theirs, 0.025, axis=0))


def test_the_p_value_is_the_level_at_which_an_end_of_the_interval_reaches_zero() -> None:
    draws = np.random.default_rng(0).normal(1.7, 1.0, size=999)
    p = float(paired_difference(1.7, 0.0, draws, np.zeros(999)).p)
    assert p == 2 * (1 + int((draws <= 0).sum())) / 1000
    # Ten draws to each side of that level, 0 is outside of the interval, and inside.
    for level, outside in ((1 - p - 0.02, True), (1 - p + 0.02, False)):
        low, high = interval(draws, level)
        assert (low > 0 or high < 0) == outside
    assert paired_difference(-1.7, 0.0, -draws, np.zeros(999)).p == p


def test_the_p_value_is_never_zero_and_ties_count_for_both_sides() -> None:
    zeros = np.zeros(99)
    assert paired_difference(1.0, 0.0, zeros + 1, zeros).p == pytest.approx(0.02)
    assert paired_difference(0.0, 0.0, zeros, zeros).p == 1.0
    half = np.where(np.arange(99) < 50, np.nan, 1.0)
    assert paired_difference(1.0, 0.0, half, zeros).p == pytest.approx(2 / 50)
    assert np.isnan(paired_difference(1.0, 0.0, zeros * np.nan, zeros).p)


def test_the_p_value_of_no_difference_is_below_a_level_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    groups = [str(i) for i in range(60)]
    below = 0
    for trial in range(300):
        ours, theirs = rng.normal(size=(2, 60))
        weights = cluster_weights(groups, 199, seed=trial).astype(float) / 60
        below += int(paired_difference(ours.mean(), theirs.mean(), weights @ ours, weights @ theirs).p < 0.1)
    assert 15 <= below <= 48


def test_what_has_no_spread_is_an_error_with_the_way_out() -> None:
    with pytest.raises(InputError, match="finer group column"):
        cluster_weights(["a", "a"], 10, seed=0)
    with pytest.raises(InputError, match="1000 or more"):
        cluster_weights(["a", "b"], 0, seed=0)
    with pytest.raises(InputError, match="between 0 and 1"):
        interval(np.zeros((3, 1)), level=95)
    with pytest.raises(InputError, match="paired"):
        paired_difference(0.0, 0.0, np.zeros((3, 1)), np.zeros((4, 1)))
