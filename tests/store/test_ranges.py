"""Ranges tile the samples and keep chunks within their bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.store import plan_range_size, plan_ranges

MIB = 2**20


@given(n_samples=st.integers(1, 5000), range_size=st.integers(1, 6000))
def test_ranges_tile_the_samples_in_order(n_samples: int, range_size: int) -> None:
    ranges = plan_ranges(n_samples, range_size)
    rows = [row for r in ranges for row in range(n_samples)[r.rows]]
    assert rows == list(range(n_samples))
    assert [r.index for r in ranges] == list(range(len(ranges)))
    assert all(len(r) == range_size for r in ranges[:-1])
    assert 0 < len(ranges[-1]) <= range_size


@settings(max_examples=300)
@given(n_samples=st.integers(1, 10**7), row_bytes=st.lists(st.integers(1, 40 * MIB), min_size=1, max_size=4))
def test_chunks_are_bounded_in_rows_and_bytes_and_padding_is_small(n_samples: int, row_bytes: list[int]) -> None:
    size = plan_range_size(n_samples, row_bytes)
    n_ranges = -(-n_samples // size)
    assert 1 <= size <= min(1024, n_samples)
    assert size == 1 or size * max(row_bytes) <= 16 * MIB
    assert n_ranges * size - n_samples < n_ranges


@given(n_samples=st.integers(1, 10**6), row_bytes=st.integers(1, 40 * MIB))
def test_no_fewer_ranges_would_respect_the_bounds(n_samples: int, row_bytes: int) -> None:
    n_ranges = -(-n_samples // plan_range_size(n_samples, [row_bytes]))
    if n_ranges > 1:
        rows = -(-n_samples // (n_ranges - 1))
        assert rows > 1024 or rows * row_bytes > 16 * MIB


def test_the_widest_array_decides_for_all() -> None:
    assert plan_range_size(10**6, [8192, 64 * 1024]) == plan_range_size(10**6, [64 * 1024]) == 256
    assert plan_range_size(100_000, [8192]) == 1021
    assert plan_range_size(10, [8192]) == 10


def test_a_range_without_rows_is_refused() -> None:
    with pytest.raises(InputError, match="range_size must be at least 1, got 0"):
        plan_ranges(10, 0)
