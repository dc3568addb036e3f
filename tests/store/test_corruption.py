"""A chunk that is not what was committed is an error that names it, never data."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError

ARRAY, ROW, LAYER, INDEX = "resid_post/last", 1, 3, 1
PAYLOAD = 4 * 8 * 2


def flip(position: int, bit: int = 0) -> Callable[[Any, Path], None]:
    def damage(example: Any, chunk: Path) -> None:
        data = bytearray(chunk.read_bytes())
        data[position] ^= 1 << bit
        chunk.write_bytes(data)

    return damage


def replace_by(array: str, row: int, index: int) -> Callable[[Any, Path], None]:
    def damage(example: Any, chunk: Path) -> None:
        shutil.copyfile(example.chunk(array, row, index), chunk)

    return damage


def forge(example: Any, chunk: Path) -> None:
    zeros = bytes(PAYLOAD)
    chunk.write_bytes(zeros + google_crc32c.value(zeros).to_bytes(4, "little"))


def link_to_itself_elsewhere(example: Any, chunk: Path) -> None:
    chunk.rename(example.path.parent / "moved")
    chunk.symlink_to(example.path.parent / "moved")


def link_the_folder(example: Any, chunk: Path) -> None:
    chunk.parent.rename(example.path.parent / "moved")
    chunk.parent.symlink_to(example.path.parent / "moved")


def become_a_folder(example: Any, chunk: Path) -> None:
    chunk.unlink()
    chunk.mkdir()


DAMAGES: dict[str, Callable[[Any, Path], None]] = {
    "missing": lambda example, chunk: chunk.unlink(),
    "empty": lambda example, chunk: chunk.write_bytes(b""),
    "one byte short": lambda example, chunk: os.truncate(chunk, PAYLOAD + 3),
    "without its checksum": lambda example, chunk: os.truncate(chunk, PAYLOAD),
    "half": lambda example, chunk: os.truncate(chunk, PAYLOAD // 2),
    "one byte long": lambda example, chunk: chunk.write_bytes(chunk.read_bytes() + b"\0"),
    "twice": lambda example, chunk: chunk.write_bytes(chunk.read_bytes() * 2),
    "all zeros": lambda example, chunk: chunk.write_bytes(bytes(PAYLOAD + 4)),
    "another layer's": replace_by(ARRAY, 0, INDEX),
    "another range's": replace_by(ARRAY, ROW, 0),
    "another array's": replace_by("resid_post/mean", ROW, INDEX),
    "sound but forged": forge,
    "a folder": become_a_folder,
    "a link": link_to_itself_elsewhere,
} | {
    f"bit flipped in byte {i}": flip(i, i % 8) for i in (0, 1, PAYLOAD // 2, PAYLOAD - 1, *range(PAYLOAD, PAYLOAD + 4))
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_chunk_is_named_on_every_way_of_reading(example: Any, damage: Callable[[Any, Path], None]) -> None:
    damage(example, example.chunk(ARRAY, ROW, INDEX))
    store = example.reopen()
    layer = store.layer("resid_post", "last", LAYER)
    name = re.escape(f"range {INDEX} of layer {LAYER} of {ARRAY}")
    for read in (
        layer.numpy,
        layer.torch,
        lambda: layer.range(INDEX),
        lambda: layer.rows([0, 5]),
        lambda: list(layer),
    ):
        with pytest.raises(CorruptStoreError, match=name):
            read()
    [found] = store.verify()
    assert found.range == store.ranges[INDEX]
    assert len(found.errors) == 1
    assert re.search(name, found.errors[0])
    # What is whole can still be read.
    np.testing.assert_array_equal(layer.rows([9, 0]), example.values[ARRAY][ROW][[9, 0]])
    np.testing.assert_array_equal(store.layer("resid_post", "last", 0).numpy(), example.values[ARRAY][0])


def test_swapped_chunks_are_both_found(example: Any) -> None:
    one, other = example.chunk(ARRAY, 0, 0), example.chunk(ARRAY, 2, 0)
    one_data, other_data = one.read_bytes(), other.read_bytes()
    one.write_bytes(other_data)
    other.write_bytes(one_data)
    [found] = example.reopen().verify()
    for error, layer in zip(found.errors, (0, 7), strict=True):
        assert f"range 0 of layer {layer} of {ARRAY}" in error


def test_a_linked_folder_of_chunks_is_refused(example: Any) -> None:
    link_the_folder(example, example.chunk(ARRAY, ROW, INDEX))
    with pytest.raises(CorruptStoreError, match="symbolic link"):
        example.reopen().layer("resid_post", "last", LAYER).numpy()


def test_a_linked_chunk_is_not_written_through(example: Any) -> None:
    victim = example.path.parent / "victim"
    victim.write_text("precious")
    chunk = example.chunk(ARRAY, ROW, INDEX)
    chunk.unlink()
    chunk.symlink_to(victim)
    with pytest.raises(StoreError, match="symbolic link"):
        example.commit(example.store.ranges[INDEX])
    assert victim.read_text() == "precious"


def test_verify_finds_nothing_in_a_sound_store(example: Any) -> None:
    assert example.reopen().verify() == []


def test_verify_looks_at_every_byte_of_every_chunk(example: Any) -> None:
    for chunk in sorted(example.path.rglob("c.*")):
        whole = chunk.read_bytes()
        for position in range(0, len(whole), 5):
            data = bytearray(whole)
            data[position] ^= 0x80
            chunk.write_bytes(data)
            assert len(example.store.verify()) == 1, (chunk, position)
        chunk.write_bytes(whole)
    assert example.store.verify() == []


def test_damage_in_several_ranges_is_reported_by_range(example: Any) -> None:
    for row, index in ((0, 2), (2, 0), (1, 2)):
        example.chunk(ARRAY, row, index).unlink()
    assert [(d.range.index, len(d.errors)) for d in example.store.verify()] == [(0, 1), (2, 2)]


def test_a_forgotten_range_is_missing_and_can_be_written_again(example: Any) -> None:
    before = example.files()
    flip(3)(example, example.chunk(ARRAY, ROW, INDEX))
    example.chunk(ARRAY, 0, INDEX).unlink()
    store = example.reopen()
    damaged = [d.range for d in store.verify()]
    store.forget(damaged)
    assert store.missing == tuple(damaged) == (store.ranges[INDEX],)
    assert store.verify() == []
    assert example.reopen().missing == store.missing
    with pytest.raises(StoreError, match="range 1 of 3 is not committed"):
        store.layer("resid_post", "last", LAYER).numpy()
    store.forget(damaged)
    for range_ in store.missing:
        example.commit(range_)
    assert example.files() == before
    assert example.reopen().complete


@pytest.mark.parametrize("part", ["samples", "labels/colour"])
def test_any_damage_to_columns_and_labels_is_found(example: Any, part: str) -> None:
    example.store.add_labels("colour", example.store.ids.tolist(), ["red", "blue"] * 5)
    ids, values = example.store.ids.tolist(), example.store.labels("colour").values.tolist()
    outcomes = set()
    for path in sorted(p for p in (example.path / part).rglob("*") if p.is_file()):
        whole = path.read_bytes()
        step = max(1, len(whole) // 12)
        spoilt = [whole[:i] + bytes([whole[i] ^ 0x04]) + whole[i + 1 :] for i in range(0, len(whole), step)]
        for data in (*spoilt, whole[:-1], b"", b"null", b"[]"):
            path.write_bytes(data)
            try:
                store = example.reopen()
                assert store.ids.tolist() == ids
                assert store.labels("colour").values.tolist() == values
                outcomes.add("harmless")
            except CorruptStoreError:
                outcomes.add("found")
        path.unlink()
        if path != example.path / part / "zarr.json" or part == "samples":
            with pytest.raises(CorruptStoreError):
                _ = example.reopen().ids, example.reopen().labels("colour")
        path.write_bytes(whole)
    assert "found" in outcomes
    assert example.reopen().ids.tolist() == ids


@pytest.mark.parametrize(
    "key", ["samples/id/c/0", "samples/id", "samples", "labels/colour/values/c/0", "labels/colour/values"]
)
def test_columns_and_labels_behind_links_are_refused(example: Any, key: str) -> None:
    example.store.add_labels("colour", example.store.ids.tolist(), ["red", "blue"] * 5)
    outside = example.path.parent / "outside"
    (example.path / key).rename(outside)
    (example.path / key).symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="link"):
        _ = example.reopen().ids, example.reopen().labels("colour")


def test_labels_of_a_longer_store_are_refused(build: Callable[..., Any], tmp_path: Path, example: Any) -> None:
    other = build(tmp_path / "other.zarr", n_samples=12)
    other.store.add_labels("colour", other.store.ids.tolist(), ["red", "blue"] * 6)
    shutil.copytree(other.path / "labels/colour", example.path / "labels/colour")
    with pytest.raises(CorruptStoreError, match="'colour' have 12 rows for 10 samples"):
        example.reopen().labels("colour")
