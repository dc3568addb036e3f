"""Data is on the disk before the record that vouches for it appears: the order survives a power cut."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.store import Labels


def inode(path: Path) -> int:
    return path.stat().st_ino


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the system is asked to do from here on, in order: (``sync`` or ``publish``, inode of the file or folder)."""
    seen: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def watched_fsync(descriptor: int) -> None:
        fsync(descriptor)
        seen.append(("sync", os.fstat(descriptor).st_ino))

    def watched_replace(source: Any, target: Any, **options: Any) -> None:
        replace(source, target, **options)
        seen.append(("publish", inode(Path(target))))

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    return seen


def synced(events: list[tuple[str, int]]) -> set[int]:
    return {number for what, number in events if what == "sync"}


def assert_vouched_for(
    events: list[tuple[str, int]], root: Path, record: Path, data: set[Path], named: frozenset[int] = frozenset()
) -> None:
    """Every file of ``data`` and its folder is synced before ``record``, and the record's own folder after.

    So is every folder above, where its entries are not among those that were synced when it got them (``named``).
    """
    published = events.index(("publish", inode(record)))
    before = synced(events[:published])
    folders = {folder for path in data for folder in path.parents if folder == root or root in folder.parents}
    assert data
    assert {inode(path) for path in data | {path.parent for path in data}} <= before
    assert {inode(path) for path in folders} <= before | named
    # The record is written under another name and keeps its inode when it gets its own.
    assert inode(record) in before
    assert ("sync", inode(record.parent)) in events[published:]


def test_chunks_come_before_their_commit(
    build: Callable[..., Any], tmp_path: Path, events: list[tuple[str, int]]
) -> None:
    example = build(tmp_path / "run.zarr", commit=[])
    named = frozenset(synced(events))
    events.clear()
    example.commit(example.store.ranges[1])
    assert_vouched_for(events, example.path, example.record(1), set(example.path.rglob("c.*.1.0")), named)


def test_a_store_that_is_opened_again_waits_for_all_its_folders_once(
    build: Callable[..., Any], tmp_path: Path, events: list[tuple[str, int]]
) -> None:
    example = build(tmp_path / "run.zarr", commit=[])
    store, buffers = example.reopen(), example.store.writer().buffers()
    events.clear()
    store.writer().commit(store.ranges[1], buffers)
    assert_vouched_for(events, example.path, example.record(1), set(example.path.rglob("c.*.1.0")))
    assert ("sync", inode(tmp_path)) in events


def test_a_store_comes_after_all_that_it_consists_of(
    build: Callable[..., Any], tmp_path: Path, events: list[tuple[str, int]]
) -> None:
    example = build(tmp_path / "run.zarr", commit=[])
    root = example.path / "zarr.json"
    files = {path for path in example.path.rglob("*") if path.is_file()} - {root}
    assert_vouched_for(events, example.path, root, files)
    assert ("sync", inode(tmp_path)) in events


def test_labels_come_after_their_values(example: Any, events: list[tuple[str, int]]) -> None:
    folder = example.path / "labels/x"
    example.store.write_labels(Labels.from_column("x", [["a"], ["b"]] * 5))
    files = {path for path in folder.rglob("*") if path.is_file()} - {folder / "zarr.json"}
    assert_vouched_for(events, folder, folder / "zarr.json", files)


def test_a_withdrawn_commit_stays_withdrawn(example: Any, events: list[tuple[str, int]]) -> None:
    example.store.forget([example.store.ranges[1]])
    assert ("sync", inode(example.path / "commits")) in events
    assert not example.record(1).exists()
