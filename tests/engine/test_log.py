"""What a run says of itself: its log, and the trace of its stages."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sonde.engine import Sample, extract
from sonde.errors import InputError

from .runs import configuration, prompt, text_samples

SCHEMA = Path(__file__).parents[2] / "docs/schema.md"


def log_of(store: Path) -> dict[str, Any]:
    [path] = (store / "log").glob("*-*.json")
    log: dict[str, Any] = json.loads(path.read_bytes())
    return log


def test_a_log_has_what_the_page_of_the_schema_shows(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    extract(configuration(model_folder("gpt2"), tmp_path / "run.zarr"), samples=text_samples(10))
    section = SCHEMA.read_text(encoding="utf-8").partition("\n## log/\n")[2]
    shown = json.loads(re.findall(r"```json\n(.*?)```", section, flags=re.DOTALL)[0])
    log = log_of(tmp_path / "run.zarr")
    assert log.keys() == shown.keys()
    assert log["processor"].keys() == shown["processor"].keys()
    assert log["versions"]["torch"] == torch.__version__
    assert log["config"]["run"]["token_budget"] == log["token_budget"]


def test_a_log_has_the_seconds_of_every_range_and_the_settings_of_the_pictures(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [Sample(f"s{i}", prompt=prompt(i, 3), images=(pictures[i % 3],)) for i in range(10)]
    extract(configuration(model_folder("llava"), tmp_path / "run.zarr"), samples=samples)
    log = log_of(tmp_path / "run.zarr")
    assert log["ranges"].keys() == {"0", "1", "2"}
    ends = [end for times in log["ranges"].values() for end in times]
    assert all(0 <= end <= log["seconds"] + 1e-3 for end in ends)
    assert [full for full, _ in log["ranges"].values()] == sorted(full for full, _ in log["ranges"].values())
    assert log["processor"]["images"]["size"] == {"height": 32, "width": 32}
    assert log["shared_prefix"] == "yes"


def test_a_trace_shows_every_stage_on_its_thread(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration(model_folder("llama"), tmp_path / "run.zarr")
    extract(config, samples=text_samples(30), profile=tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    threads: dict[str, set[str]] = {}
    for span in spans:
        assert span["dur"] >= 0 <= span["ts"]
        threads.setdefault(span["name"], set()).add(span["args"]["thread"].rpartition("_")[0] or span["args"]["thread"])
    assert threads == {
        "prepare": {"sonde-encode"},
        "collate": {"sonde-prefetch"},
        "forward": {"MainThread"},
        "copy out": {"sonde-place"},
        "place": {"sonde-place"},
        "write": {"sonde-write"},
    }
    written = [span["args"]["range"] for span in spans if span["name"] == "write"]
    assert written == list(range(8))
    named = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert named.keys() == {span["tid"] for span in spans}


def test_a_trace_is_written_where_a_run_fails(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = [*text_samples(6), Sample("long", prompt=prompt(0, 400))]
    with pytest.raises(InputError, match="'long'"):
        extract(
            configuration(model_folder("gpt2"), tmp_path / "run.zarr"), samples=samples, profile=tmp_path / "trace.json"
        )
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_processes_that_prepare_samples_are_in_the_trace(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [Sample(f"s{i}", prompt=prompt(i, 3), images=(pictures[i % 3],)) for i in range(6)]
    config = configuration(model_folder("llava"), tmp_path / "run.zarr", run={"encoders": 1})
    extract(config, samples=samples, profile=tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    prepared = [event for event in events if event["name"] == "prepare"]
    [forward, *_] = [event for event in events if event["name"] == "forward"]
    assert sum(event["args"]["samples"] for event in prepared) == 6
    assert {event["pid"] for event in prepared}.isdisjoint({os.getpid()})
    assert all(event["args"]["thread"] == f"sonde-encoder-{event['pid']}" for event in prepared)
    # Both clocks are one.
    assert 0 <= prepared[0]["ts"] + prepared[0]["dur"] <= forward["ts"]


def test_a_profile_that_cannot_be_written_is_refused_at_once(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration(model_folder("gpt2"), tmp_path / "run.zarr")
    for place in (tmp_path, tmp_path / "nowhere/trace.json"):
        with pytest.raises(InputError, match="give a file in a folder that exists"):
            extract(config, samples=text_samples(2), profile=place)
    assert not (tmp_path / "run.zarr").exists()


def test_a_profile_is_of_one_process(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    config = configuration(model_folder("gpt2"), tmp_path / "run.zarr")
    with pytest.raises(InputError, match=r"'trace.json' is of one process: leave workers and scheduler out"):
        extract(config, samples=text_samples(2), workers=2, profile="trace.json")
