"""A store grows by ranges of its own; what was there stays, for those who read it too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sonde.errors import InputError, StoreError
from sonde.store import Labels, Store


def columns(start: int, stop: int) -> dict[str, list[str]]:
    return {"id": [f"s{i}" for i in range(start, stop)], "group": [f"g{i // 2}" for i in range(start, stop)]}


def fill(store: Store, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Commit what is missing with random values and return them by array, ``[layer, sample, hidden]``."""
    draw = np.random.default_rng(seed)
    shapes = {a.name: (len(a.layers), store.n_samples, a.hidden) for a in store.arrays}
    values = {name: draw.normal(size=shape).astype(store.schema.numpy_dtype) for name, shape in shapes.items()}
    for range_ in store.missing:
        buffers = store.writer().buffers()
        for name, buffer in buffers.items():
            buffer[:, : len(range_)] = values[name][:, range_.rows]
        store.writer().commit(range_, buffers)
    store.refresh()
    return values


@pytest.fixture
def grown(example: Any) -> tuple[Any, Store, dict[str, np.ndarray[Any, Any]]]:
    """A store of 10 samples in ranges of 4 that got 7 more and then 1 more, and all that it must hold."""
    store = example.reopen()
    assert store.append(columns(10, 17)) == range(10, 17)
    later = fill(store, 1)
    assert store.append(columns(17, 18)) == range(17, 18)
    last = fill(store, 2)
    values = {
        name: np.concatenate([x, later[name][:, 10:], last[name][:, 17:]], axis=1) for name, x in example.values.items()
    }
    return example, store, values


def test_every_way_of_reading_sees_the_samples_end_to_end(grown: Any) -> None:
    example, _, values = grown
    store = example.reopen()
    assert [(r.start, r.stop) for r in store.ranges] == [(0, 4), (4, 8), (8, 10), (10, 14), (14, 17), (17, 18)]
    assert store.complete
    assert store.verify() == []
    assert store.ids.tolist() == columns(0, 18)["id"]
    assert store.groups.tolist() == columns(0, 18)["group"]
    assert store.valid.tolist() == [True] * 18
    for spec in store.arrays:
        for row, number in enumerate(spec.layers):
            layer, expected = store.layer(spec.site, spec.tokens, number), values[spec.name][row]
            assert layer.shape == expected.shape
            assert layer.numpy().tobytes() == expected.tobytes()
            assert np.concatenate([x for _, x in layer]).tobytes() == expected.tobytes()
            assert [rows for rows, _ in layer] == [r.rows for r in store.ranges]
            picked = [17, 3, 9, 10, 16, 9]
            assert layer.rows(picked).tobytes() == expected[picked].tobytes()


def test_old_readers_go_on_and_no_old_chunk_or_commit_is_touched(example: Any) -> None:
    before = example.reopen()
    kept = {key: data for key, data in example.files().items() if "/c." in key or "commits/0" in key}
    store = example.reopen()
    store.append(columns(10, 17))
    fill(store, 1)
    assert kept.items() <= example.files().items()
    before.refresh()
    assert before.complete
    assert before.ids.tolist() == columns(0, 10)["id"]
    for site, tokens, number, expected in example.layers():
        assert before.layer(site, tokens, number).numpy().tobytes() == expected.tobytes()


def test_a_reader_that_never_looked_at_the_columns_sees_its_own(example: Any) -> None:
    before = example.reopen()
    example.reopen().append(columns(10, 17))
    assert before.ids.tolist() == columns(0, 10)["id"]
    assert before.verify() == []


def test_any_zarr_reader_finds_every_row_at_the_place_that_the_schema_names(grown: Any) -> None:
    example, store, values = grown
    rows = store.schema.rows()
    assert rows.tolist() == [*range(10), *range(12, 19), 20]
    group: Any = zarr.open_group(example.path, mode="r")
    ids = group["samples/id"][:]
    assert ids[rows].tolist() == store.ids.tolist()
    assert [text for i, text in enumerate(ids) if i not in rows] == ["", "", ""]
    for name, expected in values.items():
        array = group[f"activations/{name}"][:]
        assert array.shape[1] == len(ids)
        assert array[:, rows].tobytes() == expected.tobytes()
        others = np.setdiff1d(np.arange(len(ids)), rows)
        assert np.isnan(array[:, others].astype(np.float32)).all()


def test_labels_of_before_hold_and_new_samples_have_none(example: Any) -> None:
    store = example.reopen()
    store.write_labels(Labels.from_column("colour", ["red", "blue"] * 5))
    store.write_labels(Labels.from_column("size", [0.5] * 10))
    store.append(columns(10, 13))
    assert store.labels("colour").column() == ["red", "blue"] * 5 + [None] * 3
    assert store.labels("size").column() == [0.5] * 10 + [None] * 3
    store.add_labels("colour", ["s12", "s0"], ["green", "red"], overwrite=True)
    assert store.labels("colour").column() == ["red"] + [None] * 11 + ["green"]
    store.append(columns(13, 14))
    assert example.reopen().labels("colour").column() == ["red"] + [None] * 11 + ["green", None]
    store.add_labels("things", ["s13", "s1"], [["a"], ["a", "b"]])
    assert store.labels("things").column() == [None, ["a", "b"], *[None] * 11, ["a"]]


def test_the_same_append_again_adds_nothing(example: Any) -> None:
    store = example.reopen()
    assert store.append(columns(10, 12), fingerprint="f") == range(10, 12)
    assert example.reopen().append(columns(10, 12), fingerprint="f") == range(10, 12)
    assert example.reopen().n_samples == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (columns(9, 12), "sample 's9' is in .*already"),
        ({"id": ["a", "a"], "group": ["g", "g"]}, "unique"),
        ({"id": ["a"], "group": []}, "of that length"),
        ({"id": [], "group": []}, "columns id and group"),
        ({"id": ["a"]}, "columns id and group"),
        ({"id": ["a"], "group": ["g"], "split": ["test"]}, r"columns \['group', 'id', 'split'\], the store has"),
        ({"id": ["a\0"], "group": ["g"]}, "NUL"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_store_stays(
    example: Any, given: dict[str, list[str]], message: str
) -> None:
    before = example.files()
    with pytest.raises(InputError, match=message):
        example.store.append(given)
    assert example.files() == before


def test_missing_ranges_of_an_append_are_missing_not_nan(example: Any) -> None:
    store = example.reopen()
    store.append(columns(10, 17))
    assert [r.index for r in store.missing] == [3, 4]
    with pytest.raises(StoreError, match="range 3 of 5 is not committed"):
        store.layer("resid_post", "last", 0).numpy()
    assert (
        store.layer("resid_post", "last", 0).rows([9]).tobytes() == example.values["resid_post/last"][0, [9]].tobytes()
    )


def test_a_damaged_range_of_an_append_is_found_and_refilled(grown: Any) -> None:
    example, store, _ = grown
    chunk = example.chunk("resid_post/last", 1, 4)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    [damage] = store.verify()
    assert damage.range == store.ranges[4]
    assert store.repair([damage]) == []
    assert store.missing == (store.ranges[4],)


def test_a_store_of_many_parts_is_described_in_its_info(grown: Any) -> None:
    _, store, _ = grown
    info = json.loads(json.dumps(store.info()))
    assert (info["samples"], info["parts"]) == (18, [10, 7, 1])


def test_growing_by_single_samples_equals_growing_at_once(build: Callable[..., Any], tmp_path: Path) -> None:
    one, many = build(tmp_path / "one.zarr"), build(tmp_path / "many.zarr")
    a, b = one.reopen(), many.reopen()
    a.append(columns(10, 16))
    for i in range(10, 16):
        b.append(columns(i, i + 1))
    assert a.ids.tolist() == b.ids.tolist()
    assert len(b.ranges) == 9
