"""A benchmark ends with one line of JSON of a form that does not depend on its size."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark of the store says of arrays too small for its numbers to mean anything."""
    folder = tmp_path_factory.mktemp("benchmark")
    command = [sys.executable, "-m", "benchmarks.store", "--tiny", "--folder", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert list(folder.iterdir()) == []
    summary: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return summary


def test_a_summary_says_what_ran_where(store: dict[str, Any]) -> None:
    assert store.keys() == {"benchmark", "hardware", "versions", "results", "owed"}
    assert store["benchmark"] == "store"
    assert {"cpu", "cores", "system", "file system"} <= store["hardware"].keys()
    assert {"python", "sonde", "numpy", "zarr", "zarrs", "tensorstore", "safetensors"} <= store["versions"].keys()


def test_every_question_about_the_array_is_put_to_every_peer(store: dict[str, Any]) -> None:
    asked: dict[str, set[str]] = {}
    for row in store["results"]:
        asked.setdefault(row["what"], set()).add(row["who"])
    peers = {
        *("raw files, 1 thread", "raw files, 4 threads", "sonde", "zarr-python", "zarr-python, uncompressed"),
        *("zarrs, uncompressed", "TensorStore", "safetensors shards", "np.memmap"),
        *(".npy per sample", "torch.save per sample"),
    }
    for what in ("create the array durably", "write the array durably", "write the array to the page cache"):
        assert asked[what] == peers
    assert asked["read a layer"] == peers
    assert asked["read 256 random rows"] == peers - {"raw files, 4 threads"}
    assert {"raw files, 1 thread", "sonde"} <= asked["read a layer into a buffer"]
    assert {"safetensors per sample", "sonde"} <= asked["write all tokens durably"] & asked[
        "read all tokens of a layer"
    ]


def test_each_question_has_one_floor_that_speeds_are_given_of(store: dict[str, Any]) -> None:
    timed = [row for row in store["results"] if "seconds" in row]
    for what in {row["what"] for row in timed}:
        rows = [row for row in timed if row["what"] == what]
        (floor,) = [row for row in rows if row["note"] == "the floor"]
        for row in rows:
            assert row["of raw"] == pytest.approx(floor["seconds"] / row["seconds"])


def test_a_promise_is_its_value_its_bound_and_whether_it_holds(store: dict[str, Any]) -> None:
    assert [promise.keys() == {"name", "value", "bound", "holds"} for promise in store["owed"]] == [True] * 8
    named = {promise["name"]: promise for promise in store["owed"]}
    lowest = [promise for name, promise in named.items() if "of raw files" in name or "zarr-python" in name]
    assert len(lowest) == 6
    assert all(promise["holds"] == (promise["value"] >= promise["bound"]) for promise in lowest)
    highest = [promise for name, promise in named.items() if "seconds to open" in name or "peak memory" in name]
    assert len(highest) == 2
    assert all(promise["holds"] == (promise["value"] <= promise["bound"]) for promise in highest)
