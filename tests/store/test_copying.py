"""A copy has the same bytes as its source, is checked on the way, and goes on where it was cut off."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.callbacks import OnProgress
from sonde.errors import CorruptStoreError, StoreError
from sonde.store import ArraySpec, Labels, Store
from sonde.store.copying import copy_store

V1 = Path(__file__).parent / "data" / "v1.zarr"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def source(example: Any) -> Any:
    example.store.write_labels(Labels.from_column("colour", ["red", "blue"] * 5))
    example.store.write_labels(Labels.from_column("things", [["a"], ["b"]] * 5))
    example.store.location.publish("log/run.json", b"{}")
    return example


def test_a_copy_has_every_byte_of_its_source(source: Any, tmp_path: Path) -> None:
    copied = copy_store(source.path, tmp_path / "copy.zarr")
    assert files(tmp_path / "copy.zarr") == files(source.path)
    assert copied.store.complete
    assert copied.store.verify() == []
    assert (copied.ranges, copied.present, copied.nbytes) == (3, 0, source.store.info()["bytes"])


@pytest.mark.parametrize(("dtype", "codec"), [("int8", "zstd"), ("float16", "lz4+bitshuffle")])
def test_all_tokens_scales_and_compressed_chunks_are_copied(
    build: Callable[..., Any], tmp_path: Path, dtype: str, codec: str
) -> None:
    import numpy as np

    from sonde.store import Schema

    arrays = tuple(ArraySpec("embed", tokens, (0,), 4) for tokens in ("all", "last"))
    schema = Schema(arrays, 3, 2, {"name": "tiny"}, {}, dtype=dtype, codec=codec)
    store = Store.create(tmp_path / "run.zarr", schema, {"id": list("abc"), "group": list("abc")})
    for range_ in store.ranges:
        buffers: dict[str, Any] = store.writer().buffers()
        for row in range(range_.start, range_.stop):
            x = np.ones((1, row + 1, 4), dtype=schema.numpy_dtype)
            buffers["embed/all"].put(row, x, [1] * (row + 1), [0] * (row + 1))
        buffers["embed/last"][:] = 1
        store.writer().commit(range_, buffers)
    store.refresh()
    store.pool("mean")
    copy_store(store, tmp_path / "copy.zarr")
    assert files(tmp_path / "copy.zarr") == files(tmp_path / "run.zarr")


def test_a_copy_that_was_cut_off_anywhere_is_a_store_and_goes_on(source: Any, tmp_path: Path) -> None:
    for n in range(4):
        copy = tmp_path / f"{n}.zarr"

        def stop(done: int, *rest: Any, n: int = n) -> None:
            if done == n:
                raise KeyboardInterrupt

        if n:
            with pytest.raises(KeyboardInterrupt):
                copy_store(source.path, copy, callbacks=[OnProgress(stop)])
            assert len(Store.open(copy).commits) == n
        copied = copy_store(source.path, copy)
        assert (copied.ranges, copied.present) == (3 - n, n)
        assert files(copy) == files(source.path)


def test_a_copy_takes_over_what_the_source_has_got_since(source: Any, tmp_path: Path) -> None:
    copy_store(source.path, tmp_path / "copy.zarr")
    store = source.reopen()
    store.append({"id": ["x", "y"], "group": ["x", "y"]})
    store.writer().commit(store.missing[0], store.writer().buffers())
    store.add_labels("colour", ["x"], ["green"], overwrite=True)
    copied = copy_store(source.path, tmp_path / "copy.zarr")
    assert (copied.ranges, copied.present) == (1, 3)
    assert copied.store.complete
    assert copied.store.ids.tolist() == store.ids.tolist()
    assert copied.store.labels("colour").column() == [None] * 10 + ["green", None]
    assert copied.store.verify() == []


def test_a_range_that_was_extracted_again_is_copied_again(source: Any, tmp_path: Path) -> None:
    copy_store(source.path, tmp_path / "copy.zarr")
    store = source.reopen()
    store.forget([store.ranges[1]])
    store.writer().commit(store.ranges[1], store.writer().buffers())
    copied = copy_store(source.path, tmp_path / "copy.zarr")
    assert (copied.ranges, copied.present) == (1, 2)
    assert copied.store.verify() == []


def test_an_unfinished_store_is_copied_as_far_as_it_is(build: Callable[..., Any], tmp_path: Path) -> None:
    example = build(tmp_path / "run.zarr", commit=[1])
    copied = copy_store(example.path, tmp_path / "copy.zarr")
    assert list(copied.store.commits) == [1]
    assert files(tmp_path / "copy.zarr") == files(example.path)


def test_damage_of_the_source_stops_the_copy_and_costs_no_other_range(source: Any, tmp_path: Path) -> None:
    chunk = source.chunk("resid_post/mean", 2, 1)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CorruptStoreError, match=r"range 1 of resid_post/mean .*c\.2\.1\.0"):
        copy_store(source.path, tmp_path / "copy.zarr")
    assert list(Store.open(tmp_path / "copy.zarr").commits) == [0]


def test_a_store_of_version_1_becomes_one_of_version_2(tmp_path: Path) -> None:
    copied = copy_store(V1, tmp_path / "new.zarr")
    old, new = Store.open(V1), copied.store
    assert (old.schema.version, new.schema.version) == (1, 2)
    assert new.verify() == []
    assert (new.ids.tolist(), new.skipped) == (old.ids.tolist(), old.skipped)
    for name in old.label_names:
        assert new.labels(name).column() == old.labels(name).column()
    for spec in old.arrays:
        for layer in spec.layers:
            there = [store.layer(spec.site, spec.tokens, layer).numpy().tobytes() for store in (old, new)]
            assert there[0] == there[1]
    assert new.append({"id": ["x"], "group": ["x"]}) == range(10, 11)
    assert copy_store(V1, tmp_path / "again.zarr").ranges == 3
    assert copy_store(V1, tmp_path / "again.zarr").ranges == 0


def test_other_stores_and_other_things_are_left_alone(source: Any, build: Callable[..., Any], tmp_path: Path) -> None:
    other = build(tmp_path / "other.zarr", n_samples=12)
    before = other.files()
    with pytest.raises(StoreError, match=r"is no copy of .*choose another destination"):
        copy_store(source.path, other.path)
    assert other.files() == before
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("precious")
    with pytest.raises(StoreError, match="exists and is not a store"):
        copy_store(source.path, tmp_path / "folder")
    with pytest.raises(StoreError, match="cannot be copied to itself"):
        copy_store(source.path, source.path)
    with pytest.raises(StoreError, match="does not exist"):
        copy_store(tmp_path / "nowhere", tmp_path / "copy.zarr")


def test_a_copy_does_not_follow_links(source: Any, tmp_path: Path) -> None:
    chunk = source.chunk("resid_post/last", 0, 0)
    shutil.move(chunk, tmp_path / "moved")
    chunk.symlink_to(tmp_path / "moved")
    with pytest.raises(CorruptStoreError, match="link"):
        copy_store(source.path, tmp_path / "copy.zarr")


def test_a_record_with_keys_that_lead_elsewhere_copies_nothing(source: Any, tmp_path: Path) -> None:
    record = json.loads(source.record(0).read_text())
    record["arrays"]["resid_post/last"]["chunks"][0]["key"] = "../../victim"
    source.record(0).write_text(json.dumps(record))
    with pytest.raises(CorruptStoreError):
        copy_store(source.path, tmp_path / "copy.zarr")
    assert not (tmp_path / "copy.zarr").exists()
