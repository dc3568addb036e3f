"""Stores of an older schema open as they did; what they cannot do says how to migrate."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import Labels, Store

OLD = Path(__file__).parent / "data" / "v1.zarr"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A store of version 1, the same as ``example`` with sample 5 skipped and two sets of labels."""
    return Path(shutil.copytree(OLD, tmp_path / "old.zarr"))


def test_a_store_of_version_1_opens_whole(old: Path, example: Any) -> None:
    store = Store.open(old)
    assert store.schema.version == 1
    assert store.complete
    assert store.verify() == []
    assert store.skipped == {5: "a broken image"}
    assert store.ids.tolist() == example.store.ids.tolist()
    assert store.groups.tolist() == example.store.groups.tolist()
    assert store.labels("colour").column() == ["red", "blue"] * 5
    assert store.labels("things").column() == [["a"], ["a", "b"]] * 5
    for site, tokens, number, expected in example.layers():
        got = store.layer(site, tokens, number).numpy()
        assert np.delete(got, 5, axis=0).tobytes() == np.delete(expected, 5, axis=0).tobytes()


def test_a_store_of_version_1_can_be_labelled_and_resumed(old: Path, example: Any) -> None:
    store = Store.open(old)
    store.write_labels(Labels.from_column("colour", ["green"] * 10), overwrite=True)
    assert Store.open(old).labels("colour").column() == ["green"] * 10
    store.forget([store.ranges[1]])
    buffers = store.writer().buffers()
    for name, buffer in buffers.items():
        buffer[:, :4] = example.values[name][:, 4:8]
    store.writer().commit(store.missing[0], buffers)
    again = Store.open(old)
    assert (again.complete, again.verify(), again.skipped) == (True, [], {})


def test_a_store_of_version_1_says_how_it_can_grow(old: Path) -> None:
    with pytest.raises(
        StoreError, match=r"schema version 1, which cannot grow: `sonde copy` makes a store of version 2"
    ):
        Store.open(old).append({"id": ["x"], "group": ["x"]})


@pytest.mark.parametrize("version", [0, 3, "2", None, 2.0])
def test_other_versions_are_named(example: Any, version: Any) -> None:
    root = json.loads((example.path / "zarr.json").read_text())
    root["attributes"]["sonde"]["version"] = version
    (example.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match=r"reads versions 1 to 2|damaged"):
        Store.open(example.path)


def test_every_changed_value_of_the_schema_is_found(example: Any) -> None:
    path = example.path / "zarr.json"
    root = json.loads(path.read_text())
    for key in sorted(set(root["attributes"]["sonde"]) - {"version"}):
        changed = json.loads(path.read_text())
        value = changed["attributes"]["sonde"][key]
        changed["attributes"]["sonde"][key] = value + 1 if isinstance(value, int) else [*value][:-1] if value else "x"
        copy = example.path.parent / f"{key}.zarr"
        shutil.copytree(example.path, copy)
        (copy / "zarr.json").write_text(json.dumps(changed))
        with pytest.raises(StoreError):
            Store.open(copy)
    without = json.loads(path.read_text())
    del without["attributes"]["sonde"]["sha256"]
    path.write_text(json.dumps(without))
    with pytest.raises(CorruptStoreError, match="damaged; restore it from a copy"):
        Store.open(example.path)


@pytest.mark.parametrize("key", ["last", "mean", "", "sample", "layer"])
def test_metadata_of_arrays_is_verified_and_repaired(example: Any, key: str) -> None:
    before = example.files()
    path = example.path / "activations/resid_post" / key / "zarr.json"
    whole = path.read_bytes()
    spoilt = [b"", b"{}", whole.replace(b'"layer"', b'"sayer"').replace(b'"group"', b'"array"'), None]
    for data in spoilt:
        if data == whole:
            continue
        path.unlink() if data is None else path.write_bytes(data)
        [damage] = example.reopen().verify()
        assert damage.range is None
        assert f"activations/resid_post/{key}".rstrip("/") in damage.errors[0]
        assert example.reopen().repair([damage]) == []
        assert example.files() == before


@pytest.mark.parametrize("key", ["sample", "layer"])
def test_coordinates_of_arrays_are_verified_and_repaired(example: Any, key: str) -> None:
    before = example.files()
    path = example.path / "activations/resid_post" / key / "c/0"
    path.write_bytes(path.read_bytes()[:-1])
    found = example.reopen().verify()
    assert [f"activations/resid_post/{key}" in error for damage in found for error in damage.errors] == [True]
    assert example.reopen().repair(found) == []
    assert example.files() == before


def test_a_shape_that_hides_samples_from_other_readers_is_found(example: Any) -> None:
    path = example.path / "activations/resid_post/last/zarr.json"
    array = json.loads(path.read_text())
    array["shape"][1] -= 1
    path.write_text(json.dumps(array))
    assert "resid_post/last/zarr.json" in example.reopen().verify()[0].errors[0]
