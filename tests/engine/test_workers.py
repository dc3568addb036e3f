"""Ranges shared by worker processes: the same bytes as one process, whatever becomes of a worker."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import pytest

from sonde.callbacks import OnProgress
from sonde.engine import Sample, extract
from sonde.errors import InputError, ModelError
from sonde.store import Store

from .runs import configuration, contents, text_samples
from .tiny import write_model

CAPTURE = {"sites": ["embed", "resid_post", "z"], "tokens": ["last", "mean", "all"]}


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


@pytest.fixture(scope="module")
def cluster() -> Iterator[distributed.LocalCluster]:
    """A user's own scheduler with two worker processes, each of several threads, as Dask's are by default."""
    options = {"n_workers": 2, "threads_per_worker": 3, "dashboard_address": "127.0.0.1:0"}
    with distributed.LocalCluster(host="127.0.0.1", protocol="tcp", **options) as cluster:
        yield cluster


def samples(n: int = 30) -> list[Sample]:
    return [Sample(s.id, prompt=s.prompt, labels={"odd": i % 2 == 1}) for i, s in enumerate(text_samples(n))]


def test_local_workers_write_the_bytes_of_one_process(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    extract(configuration(llama, tmp_path / "one.zarr", capture=CAPTURE), samples=samples())
    seen: list[tuple[int, int]] = []
    with caplog.at_level(logging.INFO, "sonde"):
        store = extract(
            configuration(llama, tmp_path / "two.zarr", capture=CAPTURE),
            samples=samples(),
            workers=2,
            callbacks=[OnProgress(lambda done, total, _: seen.append((done, total)))],
        )
    assert store.complete
    assert contents(tmp_path / "two.zarr") == contents(tmp_path / "one.zarr")
    assert (len(seen), seen[-1]) == (8, (30, 30))
    assert "dask dashboard: http" in caplog.text
    [log] = (tmp_path / "two.zarr/log").glob("2*.json")
    assert '"samples": 30' in log.read_text()


def test_a_worker_that_is_killed_costs_its_range_only(
    llama: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    extract(configuration(llama, tmp_path / "one.zarr", capture=CAPTURE), samples=samples(120))
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    killed: list[int] = []
    kept: dict[str, bytes] = {}

    def kill_one(done: int, *rest: Any) -> None:
        if not killed and done >= 8:
            kept.update({k: v for k, v in contents(tmp_path / "run.zarr").items() if k.startswith("commits/0")})
            process = next(iter(cluster.workers.values())).process
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    store = extract(config, samples=samples(120), scheduler=cluster.scheduler_address, callbacks=[OnProgress(kill_one)])
    assert killed
    assert store.complete
    assert contents(tmp_path / "run.zarr") == contents(tmp_path / "one.zarr")
    assert kept.items() <= contents(tmp_path / "run.zarr").items()


def test_what_is_missing_is_shared_after_an_interruption(
    llama: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    whole = extract(configuration(llama, tmp_path / "one.zarr", capture=CAPTURE), samples=samples())
    store = extract(config, samples=samples())
    store.forget(store.ranges[2:5])
    resumed = extract(config, samples=samples(), resume=True, scheduler=cluster.scheduler_address)
    assert resumed.complete
    assert contents(tmp_path / "run.zarr") == contents(Path(str(whole.location)))


def test_a_sample_that_a_worker_cannot_use_is_one_clear_error(
    llama: Path, tmp_path: Path, cluster: distributed.LocalCluster
) -> None:
    bad = [*samples(10), Sample("long", prompt=" ".join(["cat"] * 5000), labels={"odd": True})]
    config = configuration(llama, tmp_path / "run.zarr")
    with pytest.raises(InputError, match=r"'long'.*has positions for"):
        extract(config, samples=bad, scheduler=cluster.scheduler_address)
    skipping = configuration(llama, tmp_path / "run.zarr", run={"on_error": "skip"})
    store = extract(skipping, samples=bad, resume=True, scheduler=cluster.scheduler_address)
    assert store.complete
    assert list(store.skipped) == [10]


def test_a_worker_with_other_weights_is_refused(
    tmp_path: Path, cluster: distributed.LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_model("llama", tmp_path / "model")
    store = extract(configuration(folder, tmp_path / "run.zarr"), samples=samples(4))
    store.forget(store.ranges)

    # The checkpoint changes between the start and a worker's loading of it.
    write_model("llama", tmp_path / "other", seed=1)
    module = sys.modules["sonde.engine.distribute"]
    original = module.extract_on_workers

    def swapped(*arguments: Any, **options: Any) -> None:
        for file in (tmp_path / "other").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        original(*arguments, **options)

    monkeypatch.setattr(sys.modules["sonde.engine.extract"], "extract_on_workers", swapped)
    with pytest.raises(ModelError, match="has other weights on this worker"):
        extract(
            configuration(folder, tmp_path / "run.zarr"),
            samples=samples(4),
            resume=True,
            scheduler=cluster.scheduler_address,
        )
    assert Store.open(tmp_path / "run.zarr").missing


def test_workers_and_a_scheduler_together_are_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"workers=2 are local.*give one of the two"):
        extract(configuration(llama, tmp_path / "run.zarr"), samples=samples(4), workers=2, scheduler="tcp://x:1")
    assert not (tmp_path / "run.zarr").exists()
