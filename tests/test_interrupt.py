"""Ctrl-C and a full disk in the middle: what is committed stays, and `--resume` ends in the same bytes."""

import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import sonde


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a file appears that a process is about to write."""
    while not path.exists():
        assert process.poll() is None, "the process has ended"
        time.sleep(0.001)


def assert_part_is_committed(path: Path, expected: Path) -> None:
    """A part of the ranges is committed and is what it is in the expected store; there is no other."""
    store, whole = sonde.open(path), sonde.open(expected)
    assert 0 < len(store.commits) < len(store.ranges)
    assert store.verify() == []
    for spec in store.arrays:
        for number in spec.layers:
            layer, same = (s.layer(spec.site, spec.tokens, number) for s in (store, whole))
            assert all(layer.range(i).tobytes() == same.range(i).tobytes() for i in store.commits)


def read_to_the_end(terminal: int) -> str:
    """What a process has shown on a terminal until it closed it."""
    shown = b""
    # A terminal whose other end is closed answers with an error.
    with suppress(OSError):
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    return shown.decode()


@pytest.mark.slow
def test_ctrl_c_at_a_terminal_keeps_what_is_committed_and_resume_goes_on(
    study: Any, start: Any, call: Any, tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terminal, inside = os.openpty()
    with start("extract", study.config, cwd=tmp_path, stderr=inside) as process:
        os.close(inside)
        wait_for(tmp_path / "run.zarr/commits/00000003.json", process)
        process.send_signal(signal.SIGINT)
        shown = read_to_the_end(terminal)
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert "extract" in shown
    assert "samples/s" in shown
    assert "Traceback" not in shown
    last = shown.splitlines()[-1]
    assert last.endswith("sonde: interrupted; what is committed stays, go on with `sonde extract --resume`")
    assert_part_is_committed(tmp_path / "run.zarr", study.store)
    assert call("extract", study.config, "--resume").code == 0
    assert tree(tmp_path / "run.zarr") == tree(study.store)


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Callable[[subprocess.Popen[str]], None], Callable[[], None]]]:
    """A place that an extraction will fill: what to do when it runs, and what to do for more room.

    A disk of 320 KiB; where nobody may mount one, a limit to the size of the process' files, set in the middle.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=320k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, stderr=subprocess.DEVNULL).returncode:
        yield lambda process: forbid_writing(folder / "run.zarr/commits/00000003.json", process), lambda: None
        return
    try:
        grow = ["mount", "-o", "remount,size=16m", str(folder)]
        yield lambda process: None, lambda: subprocess.run(grow, check=True) and None
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def forbid_writing(when: Path, process: subprocess.Popen[str]) -> None:
    wait_for(when, process)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_committed_and_resume_goes_on(
    study: Any, start: Any, call: Any, tree: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk) as (fill, grow):
        with start("extract", study.config, cwd=disk) as process:
            fill(process)
            out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (1, "")
        *warnings, error = err.splitlines()
        assert re.match("sonde: error: (the disk is full|no file may grow this large here)", error)
        assert error.endswith("; make room and go on with --resume: what is committed stays")
        assert all(line.startswith("sonde: the run's log could not be written") for line in warnings)
        assert_part_is_committed(disk / "run.zarr", study.store)
        grow()
        # A disk that is somebody's working directory cannot be taken away.
        with monkeypatch.context() as there:
            there.chdir(disk)
            assert call("extract", study.config, "--resume").code == 0
        assert tree(disk / "run.zarr") == tree(study.store)
