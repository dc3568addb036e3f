"""A run tells whoever watches it that it starts, how far it is, what came of it, and how it ended."""

import contextlib
import json
import os
import pty
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import sonde
from sonde.callbacks import OnProgress
from sonde.store.copying import copy_store
from sonde.watching import watched

from .recorder import Recorder

EXAMPLES = Path(__file__).parents[1] / "examples"
CHOSEN: dict[str, Any] = {"tokens": ["mean"], "n_draws": 20, "n_folds": 3}


def test_an_extraction_is_told_from_its_start_to_its_end(study: Any, tmp_path: Path) -> None:
    recorder, out = Recorder(), tmp_path / "run.zarr"
    config = sonde.ExtractConfig.load(study.config, [f"run.out={out}"])
    store = sonde.extract(config, callbacks=[recorder])
    progress = ["progress"] * len(recorder.progress)
    assert progress
    assert recorder.calls == ["start", *progress, "result", "end"]
    [facts] = recorder.started
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["run"], facts["unit"], facts["store"]) == ("extract", "samples", str(out))
    assert facts["model"]["name"] == str(study.model)
    assert facts["config"]["capture"]["tokens"] == ["last", "mean"]
    done, total, measures = recorder.progress[-1]
    assert done == total == 192
    assert measures["ranges"] == len(store.ranges)
    info = store.info()
    assert recorder.results == [(192, {name: info[name] for name in ("skipped", "nonfinite", "bytes")})]
    assert recorder.ended == [None]


def test_a_probing_run_tells_the_scores_of_each_layer_in_ascending_order(store: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    results = sonde.probe(store, "topic", out=tmp_path / "out", callbacks=[recorder], **CHOSEN)
    assert recorder.calls == ["start", *["progress"] * 3, *["result"] * 3, "end"]
    [facts] = recorder.started
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["run"], facts["labels"], facts["solver"]) == ("probe", "topic", "ridge")
    assert facts["out"] == str(tmp_path / "out")
    assert [step for step, _ in recorder.results] == [0, 1, 2]
    best = results.best(metric="accuracy")
    scores = dict(recorder.results)[best["layer"]]
    assert scores["resid_post/mean/accuracy/test"] == best["value"]
    assert scores["resid_post/mean/accuracy/cv"] == best["cv_value"]


def test_a_copy_is_told_range_by_range(store: Path, tmp_path: Path) -> None:
    recorder = Recorder()
    copy_store(store, tmp_path / "copy.zarr", callbacks=[recorder])
    assert recorder.started == [{"run": "copy", "unit": "ranges", "store": str(store), "to": f"{tmp_path}/copy.zarr"}]
    assert recorder.progress == [(i, 48, {}) for i in range(1, 49)]


def test_an_error_ends_the_run_and_is_told_to_all(store: Path) -> None:
    def fail(done: int, total: int, measures: Mapping[str, float]) -> None:
        raise RuntimeError("the tracker is gone")

    recorders = Recorder(), Recorder()
    with pytest.raises(RuntimeError, match="the tracker is gone") as raised:
        sonde.probe(store, "topic", callbacks=[recorders[0], OnProgress(fail), recorders[1]], **CHOSEN)
    assert [recorder.ended for recorder in recorders] == [[raised.value]] * 2
    assert recorders[0].results == []


def test_only_who_was_told_of_a_start_is_told_of_the_end() -> None:
    class Unreachable(sonde.Callback):
        def on_start(self, facts: Mapping[str, Any]) -> None:
            raise ConnectionError("no server")

    before, after = Recorder(), Recorder()
    with pytest.raises(ConnectionError), watched([before, Unreachable(), after], {}):
        pass
    assert (before.calls, after.calls) == (["start", "end"], [])


def test_nothing_is_shown_where_nobody_looks(store: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sonde.probe(store, "topic", **CHOSEN)
    assert capfd.readouterr() == ("", "")


def test_the_example_for_tensorboard_writes_scores_by_layer(store: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    example = runpy.run_path(str(EXAMPLES / "log_to_tensorboard.py"))
    results = sonde.probe(store, "topic", callbacks=[example["TensorBoard"](tmp_path / "logs")], **CHOSEN)
    [folder] = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    points = {point.step: point.value for point in events.Scalars("resid_post/mean/accuracy/test")}
    test = results.curves("topic", "accuracy").query("split == 'test'").set_index("layer")["value"]
    assert points == pytest.approx(test.to_dict())


def test_a_bar_is_shown_at_a_terminal_unasked(store: Path) -> None:
    ours, theirs = pty.openpty()
    script = f"import sonde; sonde.probe({str(store)!r}, 'topic', **{CHOSEN!r})"
    environment = os.environ | {"PYTHONPATH": str(Path(sonde.__file__).parents[1]), "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", script], stderr=theirs, stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        # The terminal of a process that is gone is an error, not an end.
        with contextlib.suppress(OSError):
            while piece := os.read(ours, 1 << 16):
                shown += piece
    os.close(ours)
    assert process.returncode == 0
    assert b"3/3" in shown
    assert b"layers" in shown
