"""Groups never straddle parts, whatever the data."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.probes.splits import split_groups


def names(sizes: list[int]) -> list[str]:
    return [f"image-{i}" for i, size in enumerate(sizes) for _ in range(size)]


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=8, max_size=60),
    n_folds=st.integers(2, 6),
    test_size=st.floats(0.05, 0.9),
    seed=st.integers(0, 2**40),
    data=st.data(),
)
def test_no_group_straddles_and_every_used_row_has_one_part(
    sizes: list[int], n_folds: int, test_size: float, seed: int, data: st.DataObject
) -> None:
    groups = names(sizes)
    order = data.draw(st.permutations(range(len(groups))))
    shuffled = [groups[i] for i in order]
    split = split_groups(shuffled, test_size=test_size, n_folds=n_folds, seed=seed)
    parts = {(group, bool(t), int(f)) for group, t, f in zip(shuffled, split.test, split.folds, strict=True)}
    assert len(parts) == len(sizes)
    np.testing.assert_array_equal(split.test, split.folds == -1)
    assert set(split.folds[~split.test].tolist()) == set(range(n_folds))
    assert split.test.any()
    ordered = split_groups(groups, test_size=test_size, n_folds=n_folds, seed=seed)
    np.testing.assert_array_equal(ordered.test[order], split.test)
    np.testing.assert_array_equal(ordered.folds[order], split.folds)


def test_sizes_are_what_was_asked_and_folds_are_balanced_by_rows() -> None:
    sizes = [int(s) for s in np.random.default_rng(0).integers(1, 12, size=400)]
    split = split_groups(names(sizes), test_size=0.2, n_folds=5, seed=0)
    assert abs(split.test.mean() - 0.2) < 12 / sum(sizes)
    rows = np.bincount(split.folds[~split.test])
    assert rows.max() - rows.min() <= 1


def test_the_seed_changes_the_parts_and_the_hash_tells_them_apart() -> None:
    groups = names([2] * 50)
    first, again, other = (split_groups(groups, seed=seed) for seed in (0, 0, 1))
    assert first.hash == again.hash != other.hash
    assert (first.test != other.test).any()
    int(first.hash, 16)


def test_the_parts_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    groups = "[f'g{i % 30}' for i in range(90)]"
    code = f"from sonde.probes.splits import split_groups; print(split_groups({groups}).hash)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1


def test_a_given_split_wins_and_validation_counts_as_training() -> None:
    groups = names([2] * 8)
    column: list[str | None] = ["train"] * 4 + ["validation"] * 2 + ["VAL", "dev"] + ["test"] * 6 + ["", None]
    split = split_groups(groups, n_folds=2, split=column)
    np.testing.assert_array_equal(split.test, [False] * 8 + [True] * 6 + [False] * 2)
    assert (split.folds[:8] >= 0).all()
    assert (split.folds[8:] == -1).all()


def test_rows_that_are_not_used_have_no_part_and_no_weight_in_the_balance() -> None:
    groups = names([3] * 20)
    used = np.arange(60) % 3 != 0
    split = split_groups(groups, n_folds=3, used=used)
    assert not split.test[~used].any()
    assert (split.folds[~used] == -1).all()
    assert (split.test | (split.folds >= 0))[used].all()
    column = ["test" if i < 12 else "train" for i in range(60)]
    given_split = split_groups(groups, n_folds=3, split=column, used=used)
    np.testing.assert_array_equal(given_split.test, (np.arange(60) < 12) & used)


def test_a_group_on_both_sides_of_a_given_split_is_named() -> None:
    column = ["train"] * 7 + ["test"]
    with pytest.raises(InputError, match="'image-3' has rows in train and in test"):
        split_groups(names([2] * 4), n_folds=2, split=column)
    np.testing.assert_array_equal(
        split_groups(names([2] * 5), n_folds=2, split=[*column, "test", "test"], used=np.arange(10) != 6).test,
        np.arange(10) >= 7,
    )


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        (
            ["a", "b", "c"],
            {"n_folds": 2},
            "3 group.* too few for 2 test groups and 2 folds: ask for fewer folds",
        ),
        ([], {}, "0 group.* too few"),
        (
            ["a", "b", "c"],
            {"n_folds": 3, "split": ["train", "train", "test"]},
            "2 training group.* at most 2 folds",
        ),
        (["a", "b"], {"n_folds": 2, "split": ["train", "train"]}, "mark rows as 'test'"),
        (["a", "b"], {"n_folds": 2, "split": ["train", "tset"]}, "row 1 has the unknown split 'tset'"),
        (["a", "b"], {"n_folds": 2, "split": ["train"]}, "1 values of 'split' for 2 rows"),
        (["a", "b"], {"n_folds": 1}, "2 or more"),
        (["a", "b"], {"test_size": 25.0}, "between 0 and 1"),
    ],
)
def test_what_cannot_be_split_is_an_error_with_the_way_out(
    groups: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        split_groups(groups, **options)
