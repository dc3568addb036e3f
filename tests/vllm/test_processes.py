"""Processes that are killed, that share the ranges of a run, or the layers of a model: the same store."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sonde.errors import StoreError
from sonde.store import Store

from ..engine.runs import contents, values
from .runs import require_vllm, run, text_samples

pytestmark = require_vllm()

ROOT = Path(__file__).parents[2]
CAPTURE = {"sites": ["resid_post"], "tokens": ["last", "mean", "all"]}

# An extraction in a process of its own, which tells of its ranges and waits after the second to be killed.
CHILD = """
import importlib, sys, time
from pathlib import Path

from sonde.callbacks import OnProgress

runs = importlib.import_module("tests.vllm.runs")


def tell(done, total, measures):
    if measures["ranges"] == 2:
        print("two", flush=True)
        time.sleep(600)


capture = {"sites": ["resid_post"], "tokens": ["last", "mean", "all"]}
telling = [OnProgress(tell)]
runs.run("vllm", Path(sys.argv[1]), Path(sys.argv[2]), runs.text_samples(), capture=capture, callbacks=telling)
"""


@pytest.fixture
def qwen2(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("qwen2")


@pytest.fixture(scope="module")
def whole(scratch: Path, model_folder: Callable[[str], Path]) -> Path:
    """The store of a run that nobody disturbed."""
    out = scratch / "whole.zarr"
    run("vllm", model_folder("qwen2"), out, text_samples(), capture=CAPTURE)
    return out


def test_a_killed_run_goes_on_to_the_same_bytes(qwen2: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}
    command = [sys.executable, "-c", CHILD, str(qwen2), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT) as child:
        assert child.stdout is not None
        assert any(line == "two\n" for line in child.stdout)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    committed = len(Store.open(out).commits)
    assert 2 <= committed < len(Store.open(whole).commits)
    run("vllm", qwen2, out, text_samples(), capture=CAPTURE, resume=True)
    assert contents(out) == contents(whole)


def test_workers_write_the_bytes_of_one_process(qwen2: Path, whole: Path, tmp_path: Path) -> None:
    run("vllm", qwen2, tmp_path / "run.zarr", text_samples(), capture=CAPTURE, workers=2)
    assert contents(tmp_path / "run.zarr") == contents(whole)


def test_two_processes_that_share_a_model_give_its_states(qwen2: Path, whole: Path, tmp_path: Path) -> None:
    store = run("vllm", qwen2, tmp_path / "run.zarr", text_samples(), capture=CAPTURE, model={"tensor_parallel": 2})
    expected = values(Store.open(whole))
    for key, found in values(store).items():
        assert abs(found - expected[key]).max() <= 1e-5 * abs(expected[key]).max(), key


def test_a_store_of_the_other_backend_is_not_gone_on_with(qwen2: Path, whole: Path) -> None:
    with pytest.raises(StoreError, match="begun with another model"):
        run("transformers", qwen2, whole, text_samples(), capture=CAPTURE, resume=True)
