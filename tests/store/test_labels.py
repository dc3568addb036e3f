"""Columns of plain values become labels of the right kind."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.errors import InputError
from sonde.store import Labels

NAN = float("nan")


@pytest.mark.parametrize(
    ("column", "kind", "values", "names"),
    [
        ([True, False, None], "binary", [1, 0, -1], ()),
        ([0, 1, 1], "binary", [0, 1, 1], ()),
        ([0.0, 1.0, NAN], "binary", [0, 1, -1], ()),
        ([True, 0, 1.0], "binary", [1, 0, 1], ()),
        ([np.int64(1), np.bool_(False)], "binary", [1, 0], ()),
        ([1, 1], "binary", [1, 1], ()),
        ([10, 2, None, 2], "multiclass", [1, 0, -1, 0], ("2", "10")),
        ([3.0, NAN, 0.0], "multiclass", [1, -1, 0], ("0", "3")),
        ([np.float32(3), np.float32("nan"), np.float32(5)], "multiclass", [0, -1, 1], ("3", "5")),
        ([-1, 0, 1], "multiclass", [0, 1, 2], ("-1", "0", "1")),
        (["dog", "cat", "", "dog"], "multiclass", [1, 0, -1, 1], ("cat", "dog")),
        (["0", "1"], "multiclass", [0, 1], ("0", "1")),
        ([["b", "a"], [], None, ["b"]], "multilabel", [[1, 1], [0, 0], [-1, -1], [0, 1]], ("a", "b")),
        ([("x",), {"y"}, np.array(["x", "y"])], "multilabel", [[1, 0], [0, 1], [1, 1]], ("x", "y")),
        ([[2, 1], [1]], "multilabel", [[1, 1], [1, 0]], ("1", "2")),
        ([0.5, 2, None, NAN], "regression", [0.5, 2.0, NAN, NAN], ()),
    ],
)
def test_the_kind_is_found_in_the_values(column: Sequence[Any], kind: str, values: Any, names: tuple[str, ...]) -> None:
    labels = Labels.from_column("x", column)
    assert (labels.kind, labels.names) == (kind, names)
    np.testing.assert_array_equal(labels.values, values)
    dtype = {"binary": "int8", "multiclass": "int32", "multilabel": "int8", "regression": "float64"}[kind]
    assert labels.values.dtype == dtype
    missing = [v is None or v == -1 or v != v for v in (row if np.isscalar(row) else row[0] for row in values)]
    if column != [-1, 0, 1]:
        assert labels.present.tolist() == [not m for m in missing]


@pytest.mark.parametrize(
    ("column", "kind", "values", "names"),
    [
        ([0, 1, None], "multiclass", [0, 1, -1], ("0", "1")),
        ([True, False], "multiclass", [1, 0], ("0", "1")),
        ([0, 1, None], "regression", [0.0, 1.0, NAN], ()),
        ([3, 4], "regression", [3.0, 4.0], ()),
        (["0.5", "2"], "regression", [0.5, 2.0], ()),
    ],
)
def test_the_kind_can_be_given(column: Sequence[Any], kind: Any, values: Any, names: tuple[str, ...]) -> None:
    labels = Labels.from_column("x", column, kind=kind)
    assert (labels.kind, labels.names) == (kind, names)
    np.testing.assert_array_equal(labels.values, values)


def test_classes_fix_the_names_and_their_order() -> None:
    labels = Labels.from_column("x", ["dog", None, "ant"], classes=["dog", "cat", "ant"])
    assert labels.names == ("dog", "cat", "ant")
    assert labels.values.tolist() == [0, -1, 2]
    assert labels.counts() == {"dog": 1, "cat": 0, "ant": 1}
    targets = Labels.from_column("x", [["dog"], []], classes=["cat", "dog"])
    assert targets.values.tolist() == [[0, 1], [0, 0]]
    assert targets.counts() == {"cat": 0, "dog": 1}


def test_counts_leave_missing_values_out() -> None:
    assert Labels.from_column("x", [1, 0, 1, None]).counts() == {"0": 1, "1": 2}
    assert Labels.from_column("x", ["b", "a", "b", ""]).counts() == {"a": 1, "b": 2}
    assert Labels.from_column("x", [["a"], None, ["a", "b"]]).counts() == {"a": 2, "b": 1}
    assert Labels.from_column("x", [0.5, None]).counts() == {}


def test_a_multilabel_row_with_a_missing_target_is_not_present() -> None:
    labels = Labels("x", "multilabel", np.array([[1, 0], [1, -1], [-1, -1]], dtype=np.int8), ("a", "b"))
    assert labels.present.tolist() == [True, False, False]
    assert len(labels) == 3


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ([None, "", NAN], {}, "'x': every value is missing"),
        ([], {}, "every value is missing"),
        (["a", 1], {}, "mix int and text"),
        (["a", ["b"]], {}, "mix list and text"),
        ([0.5, "a"], {}, "mix float and text"),
        (["a", "b"], {"classes": ["a", "c"]}, r"'b' is not among the classes \['a', 'c'\]"),
        ([["a"], ["b"]], {"classes": ["a"]}, "'b' is not among the classes"),
        ([0, 2], {"kind": "binary"}, "not all values are binary: 2 is neither 0 nor 1"),
        (["yes"], {"kind": "binary"}, "'yes' is neither 0 nor 1"),
        (["much"], {"kind": "regression"}, "not all values are regression.*much"),
        ([0.5, float("inf")], {}, "not all values are regression: infinity"),
        (["cat", "dog"], {"kind": "multilabel"}, "'cat' is text, not a list"),
        ([1, 2], {"kind": "multilabel"}, "not all values are multilabel"),
        ([1, 0], {"kind": "ordinal"}, "kind must be one of .*'binary'.* got 'ordinal'"),
    ],
)
def test_what_cannot_be_labels_is_named(column: Sequence[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Labels.from_column("x", column, **options)


@pytest.mark.parametrize("name", ["", ".hidden", "..", "_private", "a/b", "/etc", "zarr.json", "a\nb", "a\0b"])
def test_names_that_are_no_folder_of_the_store_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="cannot be the name of labels"):
        Labels.from_column(name, [0, 1])


@given(st.lists(st.none() | st.text(st.characters(codec="utf-8"), min_size=1), min_size=1))
def test_text_is_found_again_by_its_class(column: list[str | None]) -> None:
    if not any(column):
        return
    labels = Labels.from_column("x", column)
    assert [labels.names[v] if v >= 0 else None for v in labels.values] == column
    assert list(labels.names) == sorted(labels.names)
    assert sum(labels.counts().values()) == sum(v is not None for v in column)


@given(st.lists(st.none() | st.integers(-(10**12), 10**12), min_size=1))
def test_integers_are_found_again_by_their_class(column: list[int | None]) -> None:
    if all(value is None for value in column):
        return
    labels = Labels.from_column("x", column, kind="multiclass")
    assert [int(labels.names[v]) if v >= 0 else None for v in labels.values] == column
    assert [int(name) for name in labels.names] == sorted({v for v in column if v is not None})


def test_names_and_classes_may_be_numpy_s_own() -> None:
    names = np.unique(["cat", "dog"])
    labels = Labels("pet", "multiclass", np.array([0, 1], dtype=np.int32), tuple(names))
    assert labels.names == ("cat", "dog")
    assert all(type(name) is str for name in labels.names)
    assert Labels.from_column("pet", ["dog", "cat"], classes=names).values.tolist() == [1, 0]


def test_lists_without_any_name_have_no_targets() -> None:
    with pytest.raises(InputError, match="no sample has any name"):
        Labels.from_column("things", [[], [], None])
