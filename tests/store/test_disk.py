"""A disk that is full stops the writer with the system's error, and nothing half-written exists."""

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest

from sonde.errors import StoreError
from sonde.store import ArraySpec, Labels, Schema, Store

FULL = f"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EFBIG)}"


@contextmanager
def file_size_limit(n: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``n`` bytes: writes fail as they do on a full disk (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_only_the_first_range_exists(example: Any) -> None:
    store = example.reopen()
    assert list(store.commits) == [0]
    assert store.verify() == []
    assert not list(example.path.rglob(".*"))
    for site, tokens, number, values in example.layers():
        layer = store.layer(site, tokens, number)
        assert layer.range(0).tobytes() == values[:4].tobytes()
        with pytest.raises(StoreError, match="range 1 of 3 is not committed"):
            layer.numpy()


@pytest.mark.parametrize("n", [0, 30, 200], ids=["no chunk", "part of a chunk", "all chunks, part of the record"])
def test_a_commit_that_does_not_fit_does_not_exist(build: Callable[..., Any], tmp_path: Path, n: int) -> None:
    example = build(tmp_path / "run.zarr", commit=[0])
    with file_size_limit(n), pytest.raises(OSError, match=FULL):
        example.commit(example.store.ranges[1])
    assert_only_the_first_range_exists(example)
    for range_ in example.reopen().missing:
        example.commit(range_)
    assert example.files() == build(tmp_path / "expected").files()


def test_labels_that_do_not_fit_do_not_exist(example: Any) -> None:
    with file_size_limit(100), pytest.raises(OSError, match=FULL):
        example.store.write_labels(Labels.from_column("x", [0, 1] * 5))
    assert example.reopen().label_names == []


def test_a_store_that_does_not_fit_is_not_created(build: Callable[..., Any], tmp_path: Path) -> None:
    for n in (0, 100, 900):
        with file_size_limit(n), pytest.raises(OSError, match=FULL):
            build(tmp_path / "run.zarr")
        with pytest.raises(StoreError, match="not a sonde store"):
            Store.open(tmp_path / "run.zarr")
    build(tmp_path / "run.zarr")


def test_a_store_whose_columns_do_not_fit_is_not_created(tmp_path: Path) -> None:
    schema = Schema((ArraySpec("embed", "mean", (0,), 4),), 10, 4, {}, {})
    columns = {"id": [Random(i).randbytes(4000).hex() for i in range(10)], "group": ["g"] * 10}
    with file_size_limit(20_000), pytest.raises(OSError, match=FULL):
        Store.create(tmp_path / "run.zarr", schema, columns)
    assert not (tmp_path / "run.zarr/zarr.json").exists()
    assert Store.create(tmp_path / "run.zarr", schema, columns).ids.tolist() == columns["id"]


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """Mount a disk of 512 KiB and yield what fills it up; where nobody may mount, limit the size of files instead."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        yield lambda: file_size_limit(0)
        return
    try:
        yield lambda: filled(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    try:
        yield
    finally:
        filler.unlink()


def test_a_full_disk_costs_the_range_that_did_not_fit(build: Callable[..., Any], tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as fill:
        example = build(tmp_path / "disk/run.zarr", commit=[0])
        with fill(), pytest.raises(OSError, match=FULL):
            example.commit(example.store.ranges[1])
        assert_only_the_first_range_exists(example)
        for range_ in example.reopen().missing:
            example.commit(range_)
        assert example.files() == build(tmp_path / "expected").files()
