"""A disk that is full stops the writer with the system's error, and nothing half-written exists."""

import errno
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sonde.errors import StoreError
from sonde.store import ArraySpec, Labels, Store


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
    with file_size_limit(n), pytest.raises(OSError) as caught:
        example.commit(example.store.ranges[1])
    assert caught.value.errno == errno.EFBIG
    assert_only_the_first_range_exists(example)
    for range_ in example.reopen().missing:
        example.commit(range_)
    assert example.files() == build(tmp_path / "expected").files()


def test_labels_that_do_not_fit_do_not_exist(example: Any) -> None:
    with file_size_limit(100), pytest.raises(OSError) as caught:
        example.store.write_labels(Labels.from_column("x", [0, 1] * 5))
    assert caught.value.errno == errno.EFBIG
    assert example.reopen().label_names == []


def test_a_store_that_does_not_fit_is_not_created(build: Callable[..., Any], tmp_path: Path) -> None:
    for n in (0, 100, 900):
        with file_size_limit(n), pytest.raises(OSError) as caught:
            build(tmp_path / "run.zarr")
        assert caught.value.errno == errno.EFBIG
        with pytest.raises(StoreError, match="not a sonde store"):
            Store.open(tmp_path / "run.zarr")
    build(tmp_path / "run.zarr")


# Run as root of a new user and mount namespace, where a small disk can be mounted without any right on the machine.
FILL = """
import importlib.util, pathlib, subprocess, sys
disk = pathlib.Path(sys.argv[2])
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], stderr=subprocess.DEVNULL).returncode:
    print("no mount")
    raise SystemExit
spec = importlib.util.spec_from_file_location("conftest", sys.argv[1])
conftest = sys.modules["conftest"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conftest)
arrays = (conftest.ArraySpec("resid_post", "last", (0, 1), 65536),)
example = conftest.build_example(disk / "run.zarr", arrays=arrays, commit=[0])
for range_ in example.store.ranges[1:]:
    try:
        example.commit(range_)
    except OSError as error:
        print(range_.index, error.errno)
"""
