"""Labels become questions: who is asked, what is left out and why, and who is tested."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError, StoreError
from sonde.probes import Problem
from sonde.store import Labels, Store

N = 60
GROUPS = [f"g{i // 3}" for i in range(N)]


@pytest.fixture
def store_of(make_store: Any, tmp_path: Path) -> Callable[..., Store]:
    """Makes a store of 60 samples in groups of three with one column of labels."""

    def make(column: Any, *, split: Any = None, skipped: Any = None, **options: Any) -> Store:
        values = {"resid_post/last": np.zeros((1, N, 2), dtype=np.float32)}
        store: Store = make_store(
            tmp_path / "run.zarr", values, {"resid_post": (0,)}, GROUPS, split=split, skipped=skipped, range_size=16
        )
        store.write_labels(Labels.from_column("asked", column, **options))
        return store

    return make


def in_groups(problem: Problem) -> dict[str, set[int]]:
    """The parts (-2 test, -1 not used, else the fold) that the rows of each group are in."""
    parts = np.where(problem.split.test, -2, problem.split.folds)
    return {group: set(parts[problem.groups == group].tolist()) for group in set(GROUPS)}


def test_every_kind_of_labels_becomes_columns_of_numbers(example: Any) -> None:
    for labels, kind, targets in (
        ("entailment", "binary", ("entailment",)),
        ("colour", "multiclass", ("blue", "green", "red")),
        ("objects", "multilabel", ("cat", "dog", "owl")),
        ("size", "regression", ("size",)),
    ):
        problem, truth = Problem.of(example.store, labels), example.truth[labels]
        assert (problem.labels, problem.kind, problem.targets) == (labels, kind, targets)
        np.testing.assert_array_equal(problem.y, np.where(example.used[:, None], truth, 0))
        train = problem.split.folds >= 0
        np.testing.assert_allclose(problem.prior(), truth[train].mean(axis=0))
        given = truth[train].argmax(axis=1) if kind == "multiclass" else truth[train]
        np.testing.assert_array_equal(problem.truth(train), given)
        assert problem.per_target == (kind != "multiclass")


def test_samples_without_labels_or_activations_are_in_no_part(example: Any) -> None:
    problem = Problem.of(example.store, "colour")
    np.testing.assert_array_equal(problem.split.test | (problem.split.folds >= 0), example.used)
    assert not (problem.split.test & (problem.split.folds >= 0)).any()


def test_a_row_that_lacks_one_of_several_targets_is_not_used(store_of: Any) -> None:
    store = store_of([i % 2 for i in range(N)])
    table = np.random.default_rng(0).integers(0, 2, size=(N, 2)).astype(np.int8)
    table[5] = (1, -1)
    store.write_labels(Labels("both", "multilabel", table, ("a", "b")))
    problem = Problem.of(store, "both")
    assert np.flatnonzero(~problem.split.test & (problem.split.folds < 0)).tolist() == [5]


def test_groups_never_straddle_and_seed_and_sizes_decide(store_of: Any) -> None:
    store = store_of([i % 2 for i in range(N)])
    problem = Problem.of(store, "asked", test_size=0.4, n_folds=3, seed=1)
    assert all(len(parts) == 1 for parts in in_groups(problem).values())
    assert set.union(*in_groups(problem).values()) == {-2, 0, 1, 2}
    assert problem.split.test.mean() == pytest.approx(0.4)
    assert Problem.of(store, "asked", test_size=0.4, n_folds=3, seed=1).split.hash == problem.split.hash
    assert Problem.of(store, "asked", test_size=0.4, n_folds=3, seed=2).split.hash != problem.split.hash


def test_the_stores_split_decides_what_is_tested(store_of: Any) -> None:
    split = np.array(["test", "train", "val", "", "train"]).repeat(12)
    problem = Problem.of(store_of([i % 2 for i in range(N)], split=split.tolist(), skipped={2: "broken"}), "asked")
    assert np.flatnonzero(problem.split.test).tolist() == [0, 1, *range(3, 12)]
    assert np.flatnonzero(problem.split.folds >= 0).tolist() == [*range(12, 36), *range(48, 60)]
    assert all(len(parts - {-1}) <= 1 for parts in in_groups(problem).values())


def test_targets_that_cannot_be_learned_are_left_out_with_a_warning(
    store_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def column(i: int) -> list[str]:
        return ["everywhere"] + ["even"] * (i % 2) + ["one group"] * (GROUPS[i] == "g7") + ["odd"] * (i % 5 > 2)

    store = store_of([column(i) for i in range(N)], classes=["everywhere", "even", "nowhere", "odd", "one group"])
    with caplog.at_level(logging.WARNING, logger="sonde.probes"):
        problem = Problem.of(store, "asked")
    assert problem.targets == ("even", "odd")
    np.testing.assert_array_equal(problem.y[:, 0], np.arange(N) % 2)
    assert list(problem.left_out) == ["everywhere", "nowhere", "one group"]
    [record] = caplog.records
    assert "labels 'asked': 3 of 5 targets are left out, such as 'everywhere'" in record.getMessage()


def test_labels_of_which_no_target_can_be_learned_are_refused(store_of: Any) -> None:
    with pytest.raises(InputError, match="'asked' have no target with both positives and negatives in a training part"):
        Problem.of(store_of([["all of them"]] * N), "asked")


def test_a_class_that_no_sample_has_is_no_target(store_of: Any) -> None:
    problem = Problem.of(store_of(["a", "c"] * (N // 2), classes=["a", "b", "c"]), "asked")
    assert problem.targets == ("a", "c")
    assert problem.left_out == {"b": "no sample has it"}
    np.testing.assert_array_equal(problem.truth(problem.split.test), np.arange(N)[problem.split.test] % 2)


@pytest.mark.parametrize(
    ("column", "options", "text"),
    [
        ([1] * N, {"kind": "binary"}, "'asked' have one class only, '1': a probe needs two or more"),
        (["a"] * N, {}, "'asked' have one class only, 'a': a probe needs two or more"),
        ([0.5] * N, {}, "'asked' have one value only in a training part"),
    ],
)
def test_labels_of_one_value_are_refused(store_of: Any, column: Any, options: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        Problem.of(store_of(column, **options), "asked")


@pytest.mark.parametrize(
    ("common", "rare"), [("a", "zebra"), (0, 1), (1, 0)], ids=["multiclass", "rare positive", "rare negative"]
)
def test_a_class_in_too_few_groups_is_refused_by_name(store_of: Any, common: Any, rare: Any) -> None:
    others = [common, "b"] if common == "a" else [common]
    column = [rare if GROUPS[i] == "g4" else others[i % len(others)] for i in range(N)]
    with pytest.raises(
        InputError, match=rf"the class '{rare}' is missing from a training part: it is in too few groups"
    ):
        Problem.of(store_of(column), "asked")


def test_labels_that_no_usable_sample_has_and_labels_that_are_not_there_are_refused(store_of: Any) -> None:
    skipped = dict.fromkeys(range(6), "broken")
    store = store_of([i % 2 if i < 6 else None for i in range(N)], skipped=skipped)
    with pytest.raises(InputError, match="'asked': no sample has both labels and activations"):
        Problem.of(store, "asked")
    with pytest.raises(StoreError, match="no labels 'mood': it has asked"):
        Problem.of(store, "mood")


def test_too_few_groups_are_refused(store_of: Any) -> None:
    store = store_of([i % 2 if i < 12 else None for i in range(N)])
    with pytest.raises(InputError, match=r"4 group\(s\) are too few for 2 test groups and 5 folds"):
        Problem.of(store, "asked")


def test_a_target_cannot_have_the_name_of_all(store_of: Any) -> None:
    store = store_of([["all", "other"][: i % 3] for i in range(N)])
    with pytest.raises(InputError, match="'all' stands for all targets together"):
        Problem.of(store, "asked")


def test_only_samples_of_which_all_conditions_say_so_are_asked(store_of: Any) -> None:
    store = store_of([i % 2 for i in range(N)])
    store.write_labels(Labels.from_column("task", [None if i < 6 else ("a", "b")[i % 3 == 0] for i in range(N)]))
    store.write_labels(Labels.from_column("cue", ["yes" if i % 6 < 4 else "no" for i in range(N)]))
    problem = Problem.of(store, "asked", where={"task": "a", "cue": "yes"})
    wanted = [i >= 6 and i % 3 != 0 and i % 6 < 4 for i in range(N)]
    assert (problem.split.test | (problem.split.folds >= 0)).tolist() == wanted
    assert problem.labels == "asked, task=a, cue=yes"
    assert Problem.of(store, "asked", where={"task": "a"}, title="of a").labels == "of a"
    with pytest.raises(InputError, match=r"no sample where task is 'c'; it is '', 'a', 'b'"):
        Problem.of(store, "asked", where={"task": "c"})
    with pytest.raises(StoreError, match="'taks'"):
        Problem.of(store, "asked", where={"taks": "a"})
