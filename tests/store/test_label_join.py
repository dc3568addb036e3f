"""Labels join a store by sample id, at any time, and come back as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec, Labels, Schema, Store

COLUMNS: dict[str, list[Any]] = {
    "binary": [True, False, None, True, False, True, True, None, False, False],
    "multiclass": ["cat", "Öl", "dog", "", "cat", "日本", "cat", "dog", "dog", "cat"],
    "multilabel": [["a"], ["b", "a"], [], None, ["c"], [], ["a"], ["a"], ["b"], ["a", "b", "c"]],
    "regression": [0.1, -1e300, 5e-324, None, 3, float("nan"), 1 / 3, 0, 1e10, -0.0],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_every_kind_comes_back_as_it_was(example: Any, kind: Any) -> None:
    labels = Labels.from_column("x", COLUMNS[kind])
    assert labels.kind == kind
    example.store.write_labels(labels)
    back = example.reopen().labels("x")
    assert (back.name, back.kind, back.names) == ("x", kind, labels.names)
    assert back.values.dtype == labels.values.dtype
    assert back.values.tobytes() == labels.values.tobytes()
    np.testing.assert_array_equal(back.present, labels.present)


def test_values_join_by_id_in_any_order_and_the_rest_is_masked(example: Any) -> None:
    returned = example.store.add_labels("colour", ["s7", "s0", "s3"], ["red", "blue", None])
    stored = example.reopen().labels("colour")
    for labels in (returned, stored):
        assert labels.names == ("blue", "red")
        assert labels.values.tolist() == [0, -1, -1, -1, -1, -1, -1, 1, -1, -1]
        assert np.flatnonzero(labels.present).tolist() == [0, 7]


def test_ids_need_not_be_text(tmp_path: Path) -> None:
    schema = Schema((ArraySpec("embed", "mean", (0,), 2),), 2, 2, {}, {})
    store = Store.create(tmp_path / "run.zarr", schema, {"id": ["17", "4"], "group": ["", ""]})
    numbers: Any = [4, 17]
    assert store.add_labels("x", numbers, [0, 1]).values.tolist() == [1, 0]


def test_unknown_ids_are_refused_unless_ignored(example: Any) -> None:
    with pytest.raises(InputError, match=r"2 ids are not in the store, the first is 'S1'.*--ignore-unknown"):
        example.store.add_labels("x", ["S1", "s1", "s99"], [1, 0, 1])
    assert example.store.label_names == []
    labels = example.store.add_labels("x", ["S1", "s1", "s99"], [1, 0, 1], ignore_unknown=True)
    assert labels.values.tolist() == [-1, 0] + [-1] * 8


def test_labels_for_no_sample_at_all_are_refused(example: Any) -> None:
    with pytest.raises(InputError, match="every value is missing"):
        example.store.add_labels("x", ["S1"], [1], ignore_unknown=True)


def test_an_id_given_twice_is_refused(example: Any) -> None:
    with pytest.raises(InputError, match="'s4' is given more than once"):
        example.store.add_labels("x", ["s1", "s4", "s2", "s4"], [1, 0, 1, 1])


def test_ids_and_values_must_be_as_many(example: Any) -> None:
    with pytest.raises(InputError, match="2 sample ids, but 1 values"):
        example.store.add_labels("x", ["s1", "s2"], [1])


def test_labels_of_another_length_are_refused(example: Any) -> None:
    with pytest.raises(InputError, match="'x' have 2 rows for 10 samples"):
        example.store.write_labels(Labels.from_column("x", [0, 1]))


def test_labels_are_replaced_only_when_asked(example: Any) -> None:
    example.store.write_labels(Labels.from_column("x", [0, 1] * 5))
    with pytest.raises(StoreError, match="has labels 'x' already; replace them with --overwrite"):
        example.store.add_labels("x", ["s0"], ["red"])
    assert example.store.labels("x").kind == "binary"
    example.store.add_labels("x", ["s0"], ["red"], overwrite=True)
    assert example.store.labels("x").counts() == {"red": 1}


@pytest.mark.parametrize("before", COLUMNS)
@pytest.mark.parametrize("after", COLUMNS)
def test_any_kind_replaces_any_other_without_a_trace(example: Any, before: str, after: str) -> None:
    new = Labels.from_column("x", COLUMNS[after])
    example.store.write_labels(new)
    expected = example.files()
    example.store.write_labels(Labels.from_column("x", COLUMNS[before]), overwrite=True)
    example.store.write_labels(new, overwrite=True)
    assert example.files() == expected


@pytest.mark.parametrize("kind", COLUMNS)
def test_labels_cut_off_while_written_are_not_there_and_can_be_written(example: Any, kind: str) -> None:
    example.store.write_labels(Labels.from_column("x", COLUMNS["multilabel"]))
    (example.path / "labels/x/zarr.json").unlink()
    assert example.reopen().label_names == []
    example.store.write_labels(Labels.from_column("x", COLUMNS[kind]))
    assert example.reopen().labels("x").kind == kind


def test_unknown_labels_are_named_with_those_there(example: Any) -> None:
    with pytest.raises(StoreError, match=r"no labels 'colour': it has none yet; add some with `sonde labels add`"):
        example.store.labels("colour")
    for name in ("size", "area"):
        example.store.write_labels(Labels.from_column(name, [0, 1] * 5))
    assert example.store.label_names == ["area", "size"]
    with pytest.raises(StoreError, match=r"no labels 'colour': it has area, size;"):
        example.store.labels("colour")


def test_labels_leave_the_activations_and_commits_alone(example: Any) -> None:
    before = example.files()
    example.store.write_labels(Labels.from_column("x", [0, 1] * 5))
    after = example.files()
    assert {key for key in after if before.get(key) != after[key]} == {
        "labels/x/zarr.json",
        "labels/x/values/zarr.json",
        "labels/x/values/c/0",
    }


def test_labels_can_be_joined_without_writing_them(example: Any) -> None:
    before = example.files()
    labels = example.store.join_labels("x", ["s9", "s0"], ["b", "a"])
    assert labels.values.tolist() == [0] + [-1] * 8 + [1]
    with pytest.raises(InputError, match="'s10'"):
        example.store.join_labels("x", ["s10"], [1])
    assert example.files() == before
