"""A store is created whole, over nothing but its own remains."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec, Part, Schema, Store, ensure_vacant, locate

ARRAYS = (ArraySpec("resid_post", "last", (0, 1), 4),)


def schema(n_samples: int = 3, arrays: tuple[ArraySpec, ...] = ARRAYS, range_size: int = 2) -> Schema:
    return Schema(arrays, n_samples, range_size, {"name": "tiny"}, {"manifest": "m.jsonl"}, {"sites": ["resid_post"]})


def columns(n_samples: int = 3, **more: list[str]) -> dict[str, list[str]]:
    return {"id": [f"s{i}" for i in range(n_samples)], "group": ["g"] * n_samples} | more


def test_a_new_store_says_what_it_was_given(tmp_path: Path) -> None:
    Store.create(tmp_path / "run.zarr", schema(), columns(split=["train", "", "test"]))
    store = Store.open(tmp_path / "run.zarr")
    assert store.schema == schema()
    assert store.ids.tolist() == ["s0", "s1", "s2"]
    assert store.groups.tolist() == ["g"] * 3
    assert store.columns["split"].tolist() == ["train", "", "test"]
    assert store.sites == ("resid_post",)
    assert (store.n_samples, store.complete, store.skipped, store.label_names) == (3, False, {}, [])
    assert not store.valid.any()
    assert store.schema.versions["zarr"] == zarr.__version__


@settings(max_examples=25, deadline=None)
@given(
    ids=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=9, unique=True)
)
def test_any_unique_text_can_be_an_id(scratch: str, ids: list[str]) -> None:
    path = Path(scratch) / "sonde-ids"
    try:
        store = Store.create(path, schema(len(ids)), {"id": ids, "group": ids[::-1]})
        assert store.ids.tolist() == ids
        assert store.groups.tolist() == ids[::-1]
    finally:
        shutil.rmtree(path)


def test_paths_and_file_urls_name_the_same_place(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(example.path.parent)
    (example.path.parent / "a b").mkdir()
    example.path.rename(example.path.parent / "a b" / "run.zarr")
    for url in (example.path.parent / "a b/run.zarr", "a b/run.zarr", f"file://{example.path.parent}/a%20b/run.zarr"):
        assert Store.open(url).complete


def test_a_store_is_never_created_over_another(example: Any) -> None:
    before = example.files()
    for make in (lambda: Store.create(example.path, schema(), columns()), lambda: ensure_vacant(locate(example.path))):
        with pytest.raises(StoreError, match="exists already; go on with it by --resume"):
            make()
    assert example.files() == before


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "src/a.py", ".git/config", "labels/cats.csv", "samples/1.png", "activations/c/1", "commits/x.json"],
)
def test_a_folder_with_anything_else_is_left_alone(tmp_path: Path, name: str) -> None:
    stranger = tmp_path / "out" / name
    stranger.parent.mkdir(parents=True)
    stranger.write_text("precious")
    with pytest.raises(StoreError, match="exists and is not a store; choose another --out"):
        Store.create(tmp_path / "out", schema(), columns())
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == [stranger]
    assert stranger.read_text() == "precious"


def test_a_folder_behind_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/samples").symlink_to(tmp_path / "precious")
    with pytest.raises(StoreError, match="exists and is not a store"):
        Store.create(tmp_path / "out", schema(), columns())


def test_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(StoreError, match="is a file; choose another --out"):
        Store.create(tmp_path / "out", schema(), columns())
    assert (tmp_path / "out").read_text() == "precious"


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    assert Store.create(tmp_path, schema(), columns()).n_samples == 3


def test_committed_activations_that_lost_their_metadata_are_left_alone(example: Any) -> None:
    (example.path / "zarr.json").unlink()
    before = example.files()
    with pytest.raises(StoreError, match="exists and is not a store"):
        Store.create(example.path, schema(), columns())
    assert example.files() == before


def test_a_creation_that_was_cut_off_anywhere_is_no_store_and_can_be_made_again(tmp_path: Path) -> None:
    other = (ArraySpec("embed", "mean", (0,), 6), *ARRAYS)
    first = Store.create(tmp_path / "first", schema(arrays=other), columns(split=["a", "b", "c"]))
    wanted = Store.create(tmp_path / "wanted", schema(), columns())
    files = [p for p in first.location.root.rglob("*") if p.is_file()]
    root = first.location.root / "zarr.json"
    assert root.stat().st_mtime_ns == max(p.stat().st_mtime_ns for p in files)
    written = sorted(files, key=lambda p: (p.stat().st_mtime_ns, p == root))
    expected = {p.relative_to(wanted.location.root): p.read_bytes() for p in wanted.location.root.rglob("*.json")}
    for n in range(len(written)):
        path = tmp_path / str(n)
        for i, file in enumerate(written[: n + 1]):
            copy = path / file.relative_to(first.location.root)
            if i == n and copy == path / "zarr.json":
                copy = path / ".zarr.json.partial"
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes() if i < n else file.read_bytes()[:7])
        with pytest.raises(StoreError, match="not a sonde store"):
            Store.open(path)
        assert Store.create(path, schema(), columns()).columns.keys() == {"id", "group"}
        found = {p.relative_to(path): p.read_bytes() for p in path.rglob("*.json")}
        assert found == expected


@pytest.mark.parametrize(
    ("given_schema", "given_columns", "message"),
    [
        (schema(), columns(2), "3 samples needs columns id and group"),
        (schema(), {"id": ["a", "b", "c"]}, "columns id and group"),
        (schema(), columns(split=["train"]), "of that length"),
        (schema(), {"id": ["a", "b", "a"], "group": ["g"] * 3}, "ids must be unique"),
        (schema(), {"id": ["a", "b", "c\0"], "group": ["g"] * 3}, "NUL"),
        (schema(0), columns(0), "at least one sample"),
        (schema(range_size=0), columns(), "one row a range"),
        (schema(arrays=()), columns(), "one array"),
        (schema(arrays=(*ARRAYS, ArraySpec("resid_post", "mean", (0, 2), 4))), columns(), "'resid_post'.*same layers"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_made(
    tmp_path: Path, given_schema: Schema, given_columns: Mapping[str, list[str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Store.create(tmp_path / "run.zarr", given_schema, given_columns)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere does not exist; make a store with `sonde extract`"):
        Store.open(tmp_path / "nowhere")
    (tmp_path / "file").write_text("{}")
    zarr.create_array(tmp_path / "array", shape=(1,), dtype="int8")
    zarr.create_group(tmp_path / "old", zarr_format=2)
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "array", "old"):
        with pytest.raises(StoreError, match=f"{name} is not a sonde store"):
            Store.open(tmp_path / name)
    zarr.create_group(tmp_path / "foreign", zarr_format=3, attributes={"ome": {}})
    with pytest.raises(StoreError, match="not one that sonde made: its attributes lack 'sonde'"):
        Store.open(tmp_path / "foreign")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(version=3), "schema version 3, but this sonde reads versions 1 to 2"),
        (lambda s: s.clear(), "schema version None"),
        (lambda s: s.pop("range_size"), "damaged.*range_size"),
        (lambda s: s.update(arrays=[{"site": "embed"}]), "damaged.*tokens"),
        (lambda s: s.update(arrays=7), "damaged"),
        (lambda s: s.update(n_samples=-1), "impossible sizes"),
        (lambda s: s.update(range_size=0), "impossible sizes"),
        (lambda s: s.update(n_samples=1.5), "impossible sizes"),
        (lambda s: s.update(dtype="object"), "dtype 'object'.* this sonde reads bfloat16, float16, float32, int8"),
    ],
)
def test_a_schema_of_another_form_is_refused(example: Any, change: Callable[[Any], Any], message: str) -> None:
    path = example.path / "zarr.json"
    root = json.loads(path.read_text())
    change(root["attributes"]["sonde"])
    path.write_text(json.dumps(root))
    with pytest.raises(StoreError, match=message):
        Store.open(example.path)


def test_info_is_ready_for_json(example: Any) -> None:
    example.store.add_labels("colour", ["s1", "s2"], ["red", "blue"])
    info = json.loads(json.dumps(example.store.info()))
    assert info["samples"] == 10
    assert info["ranges"] == {"committed": 3, "planned": 3, "size": 4}
    assert info["arrays"]["vision/resid_post/mean"] == {"layers": [1, 2], "hidden": 5, "dtype": "bfloat16"}
    assert info["labels"] == {"colour": "multiclass"}
    assert info["model"]["name"] == "tiny"
    text = repr(example.store)
    for word in ("tiny", "resid_post/last [3, 10, 8]", "colour", "complete"):
        assert word in text
    assert np.dtype(example.store.layer("resid_post", "last", 0).dtype).name in repr(
        example.store.layer("resid_post", "last", 0)
    )


@pytest.mark.parametrize(
    "broken",
    [
        {"parts": (Part(2), Part(2))},
        {"arrays": (ArraySpec("../resid_post", "last", (0,), 4),)},
        {"arrays": (ArraySpec("resid_post", "last", (0,), 2**50),)},
    ],
)
def test_a_schema_that_could_not_be_opened_is_not_created(tmp_path: Path, broken: Any) -> None:
    with pytest.raises(InputError, match="could not be opened again"):
        Store.create(tmp_path / "run.zarr", replace(schema(), **broken), columns())
    assert list(tmp_path.iterdir()) == []
