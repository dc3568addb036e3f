"""Threads, local processes and a cluster give the same tables, and what fails there is one clear error."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import distributed
import pandas as pd
import pytest

from sonde.callbacks import OnProgress
from sonde.errors import CorruptStoreError, InputError, WorkerError
from sonde.probes import Results, probe
from sonde.probes.schedule import run_tasks

CHOSEN: dict[str, Any] = {"solver": "logistic", "alphas": [1.0, 10.0], "n_draws": 20}


@pytest.fixture(scope="module")
def on_threads(example: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("threads") / "out"
    return probe(example.path, "colour", out=folder, **CHOSEN), folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """A user's own scheduler with two worker processes."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(host="127.0.0.1", protocol="tcp", **options) as cluster:
        yield cluster


def assert_same(found: Results, folder: Path, reference: tuple[Results, Path]) -> None:
    pd.testing.assert_frame_equal(found.rows, reference[0].rows)
    pd.testing.assert_frame_equal(found.comparisons, reference[0].comparisons)
    scores = [pd.read_parquet(path / "scores.parquet") for path in (folder, reference[1])]
    pd.testing.assert_frame_equal(*scores)
    pd.testing.assert_frame_equal(found.draws, reference[0].draws)
    for table in ("controls", "penalties", "reliability"):
        pd.testing.assert_frame_equal(getattr(found, table), getattr(reference[0], table))
    probes = ["probes.json", "probes.safetensors"]
    tables = [
        f"{name}.parquet"
        for name in ("comparisons", "controls", "draws", "penalties", "reliability", "results", "scores")
    ]
    assert sorted(file.name for file in folder.iterdir()) == sorted(probes + tables)
    for name in probes:
        assert (folder / name).read_bytes() == (reference[1] / name).read_bytes()


def test_local_processes_give_the_tables_of_threads(
    example: Any, on_threads: tuple[Results, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(example.path.parent)
    told: list[tuple[int, int]] = []
    found = probe(
        example.path.name,
        "colour",
        workers=2,
        out=tmp_path / "out",
        callbacks=[OnProgress(lambda done, total, _: told.append((done, total)))],
        **CHOSEN,
    )
    assert_same(found, tmp_path / "out", on_threads)
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_scheduler_gives_the_tables_of_threads_though_a_worker_is_killed(
    example: Any, on_threads: tuple[Results, Path], cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    def kill_one(done: int, *rest: Any) -> None:
        if done == 1:
            os.kill(cluster.workers[0].pid, signal.SIGKILL)

    address = cluster.scheduler_address
    watching = [OnProgress(kill_one)]
    found = probe(example.store, "colour", scheduler=address, out=tmp_path / "out", callbacks=watching, **CHOSEN)
    assert_same(found, tmp_path / "out", on_threads)


def test_an_error_on_a_worker_is_the_users_error(
    example: Any, cluster: distributed.LocalCluster, tmp_path: Path
) -> None:
    path = shutil.copytree(example.path, tmp_path / "run.zarr")
    (path / "activations" / "resid_post" / "last" / "c.1.0.0").unlink()
    with pytest.raises(CorruptStoreError, match="range 0 of layer 2 of resid_post/last"):
        probe(path, "size", layers=[2], scheduler=cluster.scheduler_address)


def test_workers_that_keep_dying_are_one_clear_error() -> None:
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(
            WorkerError, match=r"workers died while they probed .*: look at their logs, give them more memory"
        ),
    ):
        list(run_tasks(os._exit, [1], (), workers=1))


def test_a_scheduler_that_does_not_answer_is_one_clear_error(example: Any, tmp_path: Path) -> None:
    with dask.config.set({"distributed.comm.timeouts.connect": "500ms"}):
        for address in ("tcp://127.0.0.1:1", "carrier-pigeon://loft", "nowhere"):
            with pytest.raises(InputError, match=f"no Dask scheduler answers at '{address}' .*check --scheduler"):
                probe(example.store, "size", scheduler=address, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_scheduler_without_workers_is_one_clear_error(example: Any) -> None:
    options = {"n_workers": 0, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1", "protocol": "tcp"}
    with (
        distributed.LocalCluster(**options) as empty,
        dask.config.set({"distributed.comm.timeouts.connect": "500ms"}),
        pytest.raises(InputError, match="has no workers; start some with `dask worker tcp://"),
    ):
        probe(example.store, "size", scheduler=empty.scheduler_address)


def test_workers_are_counted_and_are_either_local_or_the_schedulers(example: Any) -> None:
    with pytest.raises(InputError, match="0 workers cannot do anything"):
        probe(example.store, "size", workers=0)
    with pytest.raises(InputError, match="give one of the two"):
        probe(example.store, "size", workers=2, scheduler="tcp://127.0.0.1:1")


def test_threads_of_several_layers_have_one_blas_thread_each_of_every_library() -> None:
    script = """
import sys
from sonde.probes.schedule import run_tasks
assert "scipy" not in sys.modules

def task(number):
    import scipy.linalg, scipy.special, threadpoolctl
    return [(pool["filepath"], pool["num_threads"]) for pool in threadpoolctl.threadpool_info()]

import dask.system
dask.system.CPU_COUNT = 2
for found in run_tasks(task, [0, 1], ()):
    assert len(found) > 1 and {n for _, n in found} == {1}, found
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"OPENBLAS_NUM_THREADS": "2"})
