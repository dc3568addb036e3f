"""One writer at a time, and a writer that is killed costs the range it was at, no more."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sonde
from sonde.errors import StoreError
from sonde.store import ArraySpec

HOLD = """
import sys, time
from sonde.store import locate
with locate(sys.argv[1]).lock():
    print("held", flush=True)
    time.sleep(60)
"""

# A process that forks writers of all missing ranges and kills each after a moment, until one comes to the end.
KILL = """
import os, random, signal, sys, time
import numpy as np
from sonde.store import Store

store, kills, whole = Store.open(sys.argv[1]), 0, True
random.seed(int(sys.argv[2]))
while not store.complete:
    writer = os.fork()
    if not writer:
        with store.location.lock():
            for range_ in store.missing:
                buffers = store.writer().buffers()
                for x in buffers.values():
                    x[:, : len(range_)] = np.arange(range_.start, range_.stop)[:, None]
                store.writer().commit(range_, buffers)
        os._exit(0)
    if kills < 20:
        time.sleep(random.uniform(0, 0.01))
        os.kill(writer, signal.SIGKILL)
    kills += os.waitpid(writer, 0)[1] == signal.SIGKILL
    store.refresh()
    whole = whole and not store.verify()
print(kills, whole)
"""


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(sonde.__file__).parents[1])}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_second_writer_is_refused_and_a_killed_one_leaves_the_store_free(example: Any) -> None:
    with python(HOLD, str(example.path)) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(StoreError, match="another process is writing to this store; wait for it or stop it"),
                example.store.location.lock(),
            ):
                raise AssertionError("two writers at once")
            # Readers need no lock.
            assert example.reopen().verify() == []
        finally:
            holder.kill()
    with example.store.location.lock():
        pass


def test_the_lock_is_released_when_the_writer_fails(example: Any) -> None:
    with pytest.raises(ZeroDivisionError), example.store.location.lock():
        raise ZeroDivisionError
    with example.store.location.lock():
        pass


def test_a_writer_killed_at_any_moment_leaves_only_whole_ranges(build: Callable[..., Any], tmp_path: Path) -> None:
    arrays = (ArraySpec("resid_post", "last", (0, 1, 2, 3), 64),)
    options: dict[str, Any] = {"n_samples": 239, "range_size": 2, "arrays": arrays}
    expected = build(tmp_path / "expected", **options, commit=[])
    for values in expected.values.values():
        values[:] = np.arange(239)[:, None]
    for range_ in expected.store.ranges:
        expected.commit(range_)
    killed = build(tmp_path / "killed", **options, commit=[])
    with python(KILL, str(killed.path), "0") as nursery:
        out, _ = nursery.communicate(timeout=60)
    kills, whole = out.split()
    assert whole == "True"
    assert int(kills) >= 5
    assert killed.files() == expected.files()
