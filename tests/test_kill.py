"""An extraction that is killed at any moment, again and again, ends in the same bytes as one that is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sonde

# A start of Python with torch takes seconds: one process makes it once and forks every extraction from itself. It
# computes nothing and starts no thread, so that its children begin as fresh as processes of their own.
NURSERY = """
import json, os, random, shutil, signal, sys, time, traceback
from pathlib import Path

import torch

torch.set_num_threads(1)

import sonde.engine.extract
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlamaModel, PreTrainedTokenizerFast

config, alone, killed = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
draw = random.Random(0)


def fork(work):
    child = os.fork()
    if child:
        return child
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def extraction(folder):
    def work():
        os.chdir(folder)
        sonde.extract(config, resume=True)

    return fork(work)


def finish(child):
    assert os.waitpid(child, 0)[1] == 0


def kill(child):
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def seconds_until(happened, since):
    while not happened():
        assert time.perf_counter() < since + 60, "the extraction does not get there"
        time.sleep(0.0005)
    return time.perf_counter() - since


def modified():
    return (killed / "run.zarr").stat().st_mtime_ns if (killed / "run.zarr").exists() else None


def check():
    if not (killed / "run.zarr/zarr.json").exists():
        try:
            sonde.open(killed / "run.zarr")
        except sonde.StoreError:
            return
        raise AssertionError("half a store opens")
    store, whole = sonde.open(killed / "run.zarr"), sonde.open(alone / "run.zarr")
    assert store.verify() == []
    for spec in store.arrays:
        for number in spec.layers:
            layer, same = (s.layer(spec.site, spec.tokens, number) for s in (store, whole))
            assert all(layer.range(i).tobytes() == same.range(i).tobytes() for i in store.commits)


begun = time.perf_counter()
child = extraction(alone)
started = seconds_until((alone / "run.zarr").exists, begun)
created = seconds_until((alone / "run.zarr/zarr.json").exists, begun)
finish(child)
whole = time.perf_counter() - begun

in_creation = 0
for _ in range(30):
    before = modified()
    child = extraction(killed)
    seconds_until(lambda: modified() != before, time.perf_counter())
    time.sleep(draw.uniform(0, created - started))
    hit = kill(child)
    finish(fork(check))
    if (killed / "run.zarr/zarr.json").exists():
        shutil.rmtree(killed / "run.zarr")
    elif hit:
        in_creation += 1
    if in_creation == 5:
        break

kills, committed = 0, []
while kills < 24:
    child = extraction(killed)
    time.sleep(draw.uniform(0.8 * started, created + 0.12 * (whole - created)))
    kills += kill(child)
    finish(fork(check))
    committed.append(len(list(killed.glob("run.zarr/commits/0*.json"))))
    if committed[-1] == 48:
        shutil.rmtree(killed / "run.zarr")
finish(extraction(killed))
print(json.dumps({"in_creation": in_creation, "kills": kills, "committed": committed}))
"""


@pytest.mark.slow
def test_an_extraction_killed_at_random_moments_ends_in_the_same_bytes(study: Any, tree: Any, tmp_path: Path) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    alone.mkdir()
    killed.mkdir()
    command = [sys.executable, "-c", NURSERY, str(study.config), str(alone), str(killed)]
    environment = os.environ | {"PYTHONPATH": str(Path(sonde.__file__).parents[1])}
    nursery = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert nursery.returncode == 0, nursery.stderr
    seen = json.loads(nursery.stdout)
    assert seen["in_creation"] >= 3
    assert seen["kills"] >= 20
    # The kills came at different stages, most of them with work done and work to do.
    assert len({n for n in seen["committed"] if 0 < n < 48}) >= 5, seen
    assert sonde.open(killed / "run.zarr").complete
    assert tree(killed / "run.zarr") == tree(alone / "run.zarr")
