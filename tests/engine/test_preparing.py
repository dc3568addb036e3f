"""Samples prepared in processes of their own are those that threads prepare."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sonde.engine import ImageBytes, ImageUrl, Sample, extract
from sonde.engine.pipeline import by_images
from sonde.errors import WorkerError
from sonde.store import Store

from .runs import configuration, contents, prompt


def samples_of(pictures: list[Path]) -> list[Sample]:
    return [Sample(f"s{i}", prompt=prompt(i, 1 + i), images=(pictures[i // 4],)) for i in range(8)]


def test_the_bytes_are_the_same_and_a_broken_image_is_recorded(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    samples = [*samples_of(pictures), Sample("broken", prompt="a", images=(tmp_path / "broken.png",))]
    for name, encoders in (("threads.zarr", 0), ("processes.zarr", 2)):
        run = {"encoders": encoders, "on_error": "skip"}
        config = configuration(model_folder("qwen2_5_vl"), tmp_path / name, run=run)
        config["model"]["name"] = str(model_folder("qwen2_5_vl"))
        extract(config, samples=samples)
    assert contents(tmp_path / "threads.zarr") == contents(tmp_path / "processes.zarr")
    assert "broken.png cannot be read" in Store.open(tmp_path / "processes.zarr").skipped[8]


def test_neighbours_of_one_image_are_found_without_a_look_at_it() -> None:
    class Unread(ImageBytes):
        def read(self) -> bytes:
            raise AssertionError("read to tell it from its neighbours")

        def identity(self) -> Mapping[str, str]:
            raise AssertionError("hashed to tell it from its neighbours")

    one, other, url = Unread(b"1"), Unread(b"2"), "https://example.org/a.png"
    pictures = [
        (one,),
        (one,),
        (other,),
        (Path("a"),),
        (Path("a"),),
        (),
        (),
        (ImageUrl(url),),
        (ImageUrl(url),),
        (one, other),
    ]
    samples = [Sample(f"s{i}", prompt="a", images=images) for i, images in enumerate(pictures)]
    rows = list(by_images(range(10, 20), samples, 10))
    assert rows == [[10, 11], [12], [13, 14], [15], [16], [17, 18], [19]]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_an_error(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    config = configuration(model_folder("qwen2_5_vl"), tmp_path / "run.zarr", run={"encoders": 1})

    def kill() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        before, until = set(children.read_text().split()), time.monotonic() + 60
        while time.monotonic() < until:
            for path in Path("/proc/self/task").glob("*/children"):
                for pid in set(path.read_text().split()) - before:
                    if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)
                        return
            time.sleep(0.05)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(WorkerError, match=r"a process that prepares samples died: .* run.encoders = 0"):
        extract(config, samples=samples_of(pictures))
    thread.join()
