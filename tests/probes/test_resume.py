"""A run that was cut off goes on where it was, and ends with the tables of one that was not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sonde.callbacks import OnProgress
from sonde.errors import InputError, StoreError
from sonde.probes import Results, load_probes, probe
from sonde.probes.layers import LayerTask

CHOSEN: dict[str, Any] = {"solver": "logistic", "alphas": [1.0, 10.0], "n_draws": 20, "cache": False}


def cut_off(example: Any, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> None:
    """Probe until some layers are done, and be interrupted."""

    def stop(done: int, *rest: Any) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(example.path, "colour", out=folder, callbacks=[OnProgress(stop)], **CHOSEN | chosen)


@pytest.fixture(scope="module")
def whole(example: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Path]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    return probe(example.path, "colour", out=folder, permutations=0, **CHOSEN), folder


def assert_same(found: Results, folder: Path, whole: tuple[Results, Path]) -> None:
    for name in ("rows", "comparisons", "controls", "penalties", "reliability", "draws"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(whole[0], name))
    assert sorted(f.name for f in folder.iterdir()) == sorted(f.name for f in whole[1].iterdir())
    assert (folder / "probes.safetensors").read_bytes() == (whole[1] / "probes.safetensors").read_bytes()
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "scores.parquet") for f in (folder, whole[1])))


def test_layers_that_are_done_are_readable_while_the_run_goes_on(
    example: Any, whole: tuple[Results, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(example, tmp_path / "out", 2, monkeypatch)
    done = pd.read_parquet(tmp_path / "out" / "layers")
    assert len(done[["site", "tokens", "layer"]].drop_duplicates()) == 2
    keys = ["site", "tokens", "layer", "target", "metric", "split"]
    theirs = whole[0].rows.set_index(keys).loc[pd.MultiIndex.from_frame(done[keys])].reset_index()[done.columns]
    pd.testing.assert_frame_equal(done, theirs, check_dtype=False)


def test_a_run_that_goes_on_probes_the_other_layers_only(
    example: Any, whole: tuple[Results, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(example, tmp_path / "out", 2, monkeypatch)
    ran: list[int] = []
    real = LayerTask.run
    monkeypatch.setattr(LayerTask, "run", lambda task, *shared: ran.append(task.layer) or real(task, *shared))
    told: list[tuple[int, int]] = []
    found = probe(
        example.path,
        "colour",
        out=tmp_path / "out",
        resume=True,
        callbacks=[OnProgress(lambda done, total, _: told.append((done, total)))],
        **CHOSEN,
    )
    assert (len(ran), told) == (3, [(2, 5), (3, 5), (4, 5), (5, 5)])
    assert_same(found, tmp_path / "out", whole)
    assert_same(probe(example.path, "colour", out=tmp_path / "out", resume=True, **CHOSEN), tmp_path / "out", whole)
    assert len(ran) == 3


def test_a_run_that_was_killed_goes_on(example: Any, whole: tuple[Results, Path], tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import json, sys, time
        from sonde.callbacks import OnProgress
        from sonde.probes import probe
        store, out, chosen = sys.argv[1:]
        wait = OnProgress(lambda done, *_: time.sleep(60 * (done == 2)))
        probe(store, "colour", out=out, callbacks=[wait], **json.loads(chosen))
        """
    )
    command = [sys.executable, "-c", script, str(example.path), str(tmp_path / "out"), json.dumps(CHOSEN)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, env=environment)
    while len(list(tmp_path.glob("out/layers/*.parquet"))) < 2 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    found = probe(example.path, "colour", out=tmp_path / "out", resume=True, **CHOSEN)
    assert_same(found, tmp_path / "out", whole)
    assert [p.name for p in load_probes(tmp_path / "out")] == [p.name for p in load_probes(whole[1])]


def test_a_layer_whose_files_are_damaged_is_probed_again(
    example: Any, whole: tuple[Results, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(example, tmp_path / "out", 3, monkeypatch)
    table, *_ = sorted(tmp_path.glob("out/layers/*.parquet"))
    table.with_name(f"_{table.stem}.safetensors").write_bytes(b"{}")
    sorted(tmp_path.glob("out/layers/*.parquet"))[1].write_bytes(b"PAR1")
    found = probe(example.path, "colour", out=tmp_path / "out", resume=True, **CHOSEN)
    assert_same(found, tmp_path / "out", whole)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"alphas": [2.0, 10.0]}, "alphas"),
        ({"solver": "lda"}, "solver"),
        ({"seed": 1}, "seed, split"),
        ({"n_draws": 30}, "draws"),
        ({"class_weight": "balanced"}, "class weights"),
    ],
)
def test_other_options_do_not_go_on_with_it(
    other: dict[str, Any], named: str, example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(example, tmp_path / "out", 1, monkeypatch)
    with pytest.raises(StoreError, match=f"was begun with another {named}: give the same, or another --out"):
        probe(example.path, "colour", out=tmp_path / "out", resume=True, **CHOSEN | other)


def test_what_is_in_the_way_is_not_taken_for_a_run(example: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="exists already"):
        probe(example.path, "colour", out=tmp_path / "out", resume=True, **CHOSEN)
    with pytest.raises(InputError, match="nothing to resume"):
        probe(example.path, "colour", resume=True, **CHOSEN)


def test_a_run_that_ends_before_its_first_layer_leaves_nothing(
    example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LayerTask, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        probe(example.path, "colour", out=tmp_path / "out", **CHOSEN)
    assert not (tmp_path / "out").exists()
