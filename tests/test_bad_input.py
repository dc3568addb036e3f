"""Whatever is wrong is one line with the remedy, a code that tells, no traceback, and nothing lost."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sonde


def assert_one_clear_line(answer: Any, *fragments: str) -> None:
    assert (answer.code, answer.out) == (1, "")
    assert answer.err.startswith("sonde: error: ")
    assert answer.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in answer.err


@dataclass(frozen=True, slots=True)
class Mistake:
    """What `sonde extract` is given: settings, lines of a manifest, and what its error must say."""

    says: tuple[str, ...]
    settings: tuple[str, ...] = ()
    manifest: tuple[str, ...] | None = None


MISTAKES = {
    "no such folder": Mistake(
        ("there is no model folder './nowhere'", "give a folder"), settings=("model.name=./nowhere",)
    ),
    "a folder without a model": Mistake(("holds no model: it has no config.json",), settings=("model.name=.",)),
    "a column is missing": Mistake(
        ("has no column 'prompt' or 'messages'", "it has 'id', 'text'", "add the column or rename one"),
        manifest=('{"id": "a", "text": "the cat"}',),
    ),
    "no samples": Mistake(("no samples in", "give at least one row"), manifest=()),
    "an id twice": Mistake(
        ("id 'a' is given to more than one sample",),
        manifest=('{"id": "a", "prompt": "the cat"}', '{"id": "a", "prompt": "the dog"}'),
    ),
    "not JSON": Mistake(("samples.jsonl:1: not JSON",), manifest=("id,prompt",)),
    "no manifest": Mistake(("there is no file", "nowhere.csv"), settings=("data.manifest=nowhere.csv",)),
    "a misspelt key": Mistake(
        ("model.dtpye is not a setting: did you mean 'dtype'?",), settings=("model.dtpye=float32",)
    ),
    "a misspelt section": Mistake(("modle is not a setting: did you mean 'model'?",), settings=("modle.name=x",)),
    "a wrong value": Mistake(("run.token_budget", "got 0"), settings=("run.token_budget=0",)),
    "a setting without a value": Mistake(("write it as section.key=value",), settings=("model.dtype",)),
    "an unknown site": Mistake(
        ("unknown site 'resid_pots'", "there are embed, resid_pre"), settings=('capture.sites=["resid_pots"]',)
    ),
    "no such layer": Mistake(("the model has layers 0 to 2",), settings=("capture.layers=[7]",)),
    "a folder of images beside a manifest": Mistake(
        ("images is for task or hf_dataset", "leave images out"), settings=("data.images=pictures",)
    ),
    "neither true nor false": Mistake(
        ("run.shared_prefix: give true or false, got 'maybe'",), settings=("run.shared_prefix=maybe",)
    ),
    "half a sample": Mistake(("run.range_size: give a whole number, got 1.5",), settings=("run.range_size=1.5",)),
    "labels without a value": Mistake(
        ("labels 'topic': every value is missing",), manifest=('{"id": "a", "prompt": "the cat", "topic": null}',)
    ),
    "a prompt too long": Mistake(
        (
            "sample 'a': its prompt has 70 tokens, but the model has positions for 64",
            "data.truncate",
            'run.on_error = "skip" passes over such samples',
        ),
        manifest=(json.dumps({"id": "a", "prompt": "cat " * 70}),),
    ),
    "an image for a model of text": Mistake(
        ("sample 'a': ", "the model takes text only"),
        manifest=('{"id": "a", "prompt": "the cat", "image": "cat.png"}',),
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_extract_names_the_mistake(
    study: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: Mistake
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "cat.png")
    settings = list(mistake.settings)
    if mistake.manifest is not None:
        (tmp_path / "samples.jsonl").write_text("".join(f"{line}\n" for line in mistake.manifest))
        settings.append("data.manifest=samples.jsonl")
    answer = call("extract", study.config, *(part for setting in settings for part in ("--set", setting)))
    assert_one_clear_line(answer, *mistake.says)
    assert not list(tmp_path.glob("run.zarr/commits/0*"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[model", "is not valid TOML"),
        ("[data]\nmanifest = 's.csv'", "model is missing"),
        ("[model]\nname = 'm'", "run.out is missing"),
        (None, "there is no configuration"),
    ],
)
def test_a_configuration_that_is_none(call: Any, tmp_path: Path, text: str | None, says: str) -> None:
    config = tmp_path / "extract.toml"
    if text is not None:
        config.write_text(text)
    assert_one_clear_line(call("extract", config), says)


def test_an_output_that_exists_is_not_touched(study: Any, store: Path, call: Any, tree: Any, tmp_path: Path) -> None:
    assert_one_clear_line(call("extract", study.config), "exists already; go on with it by --resume, or choose another")
    assert tree(store) == tree(study.store)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("all I have")
    for resume in ([], ["--resume"]):
        for out, says in (
            ("thesis", "exists and is not a store"),
            ("thesis/chapter.tex", "is a file"),
            ("thesis/chapter.tex/run.zarr", "Not a directory"),
        ):
            assert_one_clear_line(call("extract", study.config, "--out", out, *resume), says, "choose another --out")
    assert (tmp_path / "thesis/chapter.tex").read_text() == "all I have"
    assert len(list((tmp_path / "thesis").iterdir())) == 1


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("model.dtype=float32", "another dtype: 'bfloat16' there, 'float32' now"),
        ("data.limit=8", "another n_samples: 192 there, 8 now"),
        ('capture.tokens=["last"]', "another capture tokens"),
        ("run.range_size=8", "begun with range_size 4, now it is 8"),
    ],
)
def test_resume_refuses_another_extraction(
    study: Any, store: Path, call: Any, tree: Any, setting: str, says: str
) -> None:
    (store / "commits/00000005.json").unlink()
    before = tree(store)
    assert_one_clear_line(call("extract", study.config, "--resume", "--set", setting), says)
    assert tree(store) == before


def test_what_is_no_store(call: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign.zarr").mkdir()
    (tmp_path / "foreign.zarr/zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    labels = tmp_path / "labels.csv"
    labels.write_text("id,x\na,1\n")
    cases = {
        "nowhere.zarr": "does not exist; make a store with `sonde extract`",
        "empty": "is not a sonde store",
        "foreign.zarr": "is a Zarr group, but not one that sonde made",
    }
    for name, says in cases.items():
        for command in (["info"], ["verify"], ["probe", "--labels", "x"], ["labels", "add"]):
            file = [labels] if command[0] == "labels" else []
            assert_one_clear_line(call(*command, tmp_path / name, *file), says)
    assert_one_clear_line(call("info", "foo://bucket/run.zarr"), "stores cannot live in foo://; give a path")
    assert_one_clear_line(call("info", f"memory://{tmp_path.name}/run.zarr"), "does not exist; make a store")
    assert_one_clear_line(call("report", tmp_path / "empty"), "no results at", "run `sonde probe`")


def test_labels_that_cannot_be_probed(store: Path, call: Any) -> None:
    probe = ("probe", store, "--labels")
    assert_one_clear_line(call(*probe, "constant"), "labels 'constant' have one class only", "needs two or more")
    assert_one_clear_line(call(*probe, "colour"), "has no labels 'colour': it has constant, share, topic")
    assert_one_clear_line(call(*probe, "share", "--solver", "logistic"), "labels 'share' are numbers", "solver ridge")
    assert_one_clear_line(call(*probe, "topic", "--layer", 9), "has no layer 9: it has [0, 1, 2]")
    assert_one_clear_line(call(*probe, "topic", "--tokens", "all"), "has no tokens 'all': it has ['last', 'mean']")
    assert not store.with_name("run.probes").exists()
    (store / "commits/00000005.json").unlink()
    assert_one_clear_line(call(*probe, "topic"), "1 of 48 ranges are missing", "sonde extract --resume")


def test_results_that_exist_are_not_touched(store: Path, call: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    answer = call("probe", store, "--labels", "topic", "--out", tmp_path / "mine")
    assert_one_clear_line(answer, "exists already; choose another --out")
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,x\ns0,1\n", "needs a column 'id'"),
        ("id\ns0\n", "one or more of labels"),
        ("id,x\n", "no samples in"),
        ("id,x\ns0,1\ns0,2\n", "sample id 's0' is given more than once"),
        ("id,x\ns0,1\n,2\n", "late.csv:3: the row has no id"),
        ("id,x\ns0,1\nghost,2\n", "the first is 'ghost'; correct them or pass --ignore-unknown"),
        ("id,../x\ns0,1\n", "cannot be the name of labels"),
    ],
)
def test_labels_that_cannot_be_joined(store: Path, call: Any, tree: Any, tmp_path: Path, text: str, says: str) -> None:
    before = tree(store)
    (tmp_path / "late.csv").write_text(text)
    assert_one_clear_line(call("labels", "add", store, tmp_path / "late.csv"), says)
    assert tree(store) == before


def test_a_broken_image_fails_the_job_or_is_skipped_and_told(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonde.engine.demo_model import DEMO_MODEL

    monkeypatch.chdir(tmp_path)
    rows = []
    for i in range(12):
        Image.new("RGB", (96, 96), ("red", "blue")[i % 2]).save(tmp_path / f"{i}.png")
        rows.append({"id": f"s{i}", "prompt": "what is it", "image": f"{i}.png", "red": i % 2 == 0})
    (tmp_path / "7.png").write_bytes((tmp_path / "7.png").read_bytes()[:60])
    (tmp_path / "8.png").unlink()
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "extract.toml"
    config.write_text(
        f'[model]\nname = "{DEMO_MODEL}"\n[data]\nmanifest = "samples.jsonl"\n[run]\nout = "run.zarr"\nrange_size = 4\n'
    )
    assert_one_clear_line(call("extract", config), "sample 's7': the image", "7.png cannot be read")
    assert len(sonde.open("run.zarr").commits) == 1
    answer = call("extract", config, "--resume", "--set", "run.on_error=skip")
    assert answer.code == 3
    assert "2 skipped" in answer.out
    assert "skipped row 7: sample 's7': the image" in answer.out
    assert "sonde: skipped sample 's8': there is no image" in answer.err
    assert "Traceback" not in answer.err
    store = sonde.open("run.zarr")
    assert np.flatnonzero(~store.valid).tolist() == [7, 8]
    kept = store.layer("resid_post", "last", 1).numpy().astype(np.float32)
    assert np.flatnonzero(np.isnan(kept).any(axis=1)).tolist() == [7, 8]
    assert json.loads(call("info", "run.zarr", "--json").out)["skipped"] == 2


def test_debug_shows_the_traceback(start: Any, tmp_path: Path) -> None:
    for arguments in (
        ["--debug", "info", "nowhere.zarr"],
        ["info", "nowhere.zarr", "--debug"],
        ["info", "nowhere.zarr"],
    ):
        with start(*arguments, cwd=tmp_path) as process:
            out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (1, "")
        assert ("Traceback" in err) is ("--debug" in arguments)
        assert "nowhere.zarr does not exist; make a store" in err
