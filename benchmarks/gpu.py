"""All that needs an NVIDIA GPU, unattended and in less than nine minutes of one H100 or H200: tests, then benchmarks.

Each stage is a process of its own with a time limit, so that an error, a broken device or a hang costs that stage
alone; what it had found by then counts. A line of JSON is printed for each result as it comes; at the end stand a
table, what is owed, and the usual last line. Nothing is downloaded: models have the shapes of ``benchmarks/shapes`` and
random weights.

Exit codes: 0 if every stage ended and every test passed, 1 if not, 2 if there is no CUDA device. What is owed and
missed changes none of them.

    python -m benchmarks.gpu [--fast | --tiny] [--folder DIR] [--only STAGE]... [--device cpu]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .result import Owed, conclude

_ROOT = Path(__file__).parents[1]
_LIMITS = {"full": 525.0, "fast": 270.0, "tiny": 525.0}
_COLUMNS = ("stage", "what", "who", "seconds", "32 layers s", "tokens/s", "TFLOP/s", "of ceiling", "of bare", "GB/s")
_COLUMNS += ("peak GiB", "value")


@dataclass(frozen=True, slots=True)
class Stage:
    """A function that measures, by module and name, and the seconds that it may take.

    It is called with what takes its results, an empty folder, the device and the size.
    """

    module: str
    function: str
    seconds: float


STAGES: dict[str, Stage | None] = {
    "tests": None,
    "ceilings": Stage("benchmarks.gpu_ceilings", "measure", 40),
    "text": Stage("benchmarks.gpu_extract", "text", 140),
    "ridge": Stage("benchmarks.gpu_probes", "ridge", 80),
    "logistic": Stage("benchmarks.gpu_probes", "logistic", 110),
    "images": Stage("benchmarks.gpu_extract", "images", 140),
}
_TESTS_SECONDS = 150.0


@dataclass(slots=True)
class Results:
    """What has been found, printed as it comes."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    owed: list[Owed] = field(default_factory=list)
    failed: bool = False

    def add(self, stage: str, item: Mapping[str, Any] | Owed) -> None:
        """Take a row or a promise; a row with an error makes the whole run a failure."""
        if isinstance(item, Owed):
            self.owed.append(item)
            row = {"owed": item.name, "value": item.value, "bound": item.bound, "holds": item.holds}
        else:
            row = {"stage": stage, **item}
            self.rows.append(row)
            self.failed |= "error" in row
        print(json.dumps(row), flush=True)


def main(folder: Path, size: str, device: str, chosen: list[str]) -> int:
    """Run stages and return the exit code."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        why = f"torch {torch.__version__} finds no GPU with a driver that it can use"
        print(f"no CUDA device: {why}; --tiny --device cpu rehearses without one", file=sys.stderr)
        return 2
    results, end, hardware = Results(), time.monotonic() + _LIMITS[size], _hardware(device)
    for name in chosen:
        stage, left = STAGES[name], end - time.monotonic()
        limit = _TESTS_SECONDS if stage is None else stage.seconds
        # A rehearsal says nothing of how long anything takes.
        limit = left if size == "tiny" else min(left, limit)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            if left <= 0:
                results.add(name, {"error": "not begun: the time is up"})
            elif stage is None:
                for row in run_tests(Path(place), limit):
                    results.add(name, row)
            else:
                for item in run_stage(stage, Path(place), device, size, limit):
                    results.add(name, item)
    conclude("gpu", results.rows, results.owed, hardware=hardware, columns=_COLUMNS)
    return int(results.failed)


def run_stage(stage: Stage, folder: Path, device: str, size: str, seconds: float) -> Iterator[dict[str, Any] | Owed]:
    """Run a stage in a process of its own and yield its results, and an error if it does not end well in time."""
    # Forking what has imported torch spares each stage that time, but not where importing may have touched CUDA.
    context = multiprocessing.get_context("forkserver" if device == "cpu" else "spawn")
    if size == "tiny" and device == "cpu":
        context.set_forkserver_preload(["torch", "transformers.modeling_utils", "sonde.probes", "sonde.engine"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, stage, folder, device, size))
    start = time.monotonic()
    process.start()
    sender.close()
    try:
        while receiver.poll(max(0.0, start + seconds - time.monotonic())):
            yield receiver.recv()
        yield {"error": f"stopped after {seconds:.0f} s"}
    except EOFError:
        process.join()
        if process.exitcode:
            yield {"error": f"the process ended with exit code {process.exitcode}"}
        yield {"what": "the whole stage", "seconds": time.monotonic() - start}
    finally:
        process.kill()
        process.join()
        receiver.close()


def _work(sender: Connection, stage: Stage, folder: Path, device: str, size: str) -> None:
    """Run a stage in this process."""
    # The lines of JSON are the parent's alone.
    os.dup2(2, 1)
    if size == "tiny":
        import torch

        torch.set_num_threads(1)
    try:
        measure = getattr(importlib.import_module(stage.module), stage.function)
        measure(sender.send, folder, device, size)
    except Exception as error:  # whatever it is, the other stages go on
        traceback.print_exc()
        sender.send({"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})
    sender.close()


def run_tests(folder: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Run the tests that need CUDA, and yield what failed and how many passed."""
    report, output = folder / "report.xml", folder / "output.txt"
    # A warning that is new with this device, driver or version is told, but is no failure here.
    options = ["-v", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={report}"]
    start = time.monotonic()
    with output.open("w") as file:
        command = [sys.executable, "-m", "pytest", "tests/cuda", *options]
        process = subprocess.Popen(command, cwd=_ROOT, stdout=file, stderr=file)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
    sys.stderr.write(output.read_text())
    if not report.exists():
        last = [line for line in output.read_text().splitlines() if line][-1:]
        ending = f"stopped after {seconds:.0f} s" if code is None else f"pytest ended with exit code {code}"
        yield {"error": f"{ending}: {''.join(last)}"}
        return
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for case in ElementTree.parse(report).iter("testcase"):
        bad = [*case.iter("failure"), *case.iter("error")]
        outcome = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        counts[outcome] += 1
        if bad:
            name = f"{case.get('classname')}::{case.get('name')}"
            yield {"what": name, "error": (bad[0].get("message") or "").strip()[:400]}
    yield {"what": "tests", "seconds": time.monotonic() - start, **counts}


def _hardware(device: str) -> dict[str, Any]:
    import torch

    if device == "cpu":
        return {"gpu": None}
    driver = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()[0]
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpus": torch.cuda.device_count(),
        "gpu memory GiB": properties.total_memory / 2**30,
        "driver": driver,
        "cuda": torch.version.cuda,
    }


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    smaller = parser.add_mutually_exclusive_group()
    sizes = {"fast": "fewer rounds: about half the time", "tiny": "a rehearsal of every step: the numbers mean nothing"}
    for name, help_ in sizes.items():
        smaller.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=help_)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder if left out")
    parser.add_argument("--only", action="append", choices=STAGES, metavar="STAGE", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: for the rehearsal")
    parser.set_defaults(size="full")
    arguments = parser.parse_args()
    if arguments.device == "cpu" and arguments.size != "tiny":
        parser.error("models of billions of parameters need a GPU: --device cpu goes with --tiny")
    return arguments


if __name__ == "__main__":
    parsed = _parsed()
    with tempfile.TemporaryDirectory(dir=parsed.folder) as own:
        sys.exit(main(Path(own), parsed.size, parsed.device, parsed.only or list(STAGES)))
