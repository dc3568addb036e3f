"""The founding study in miniature: its four models, both tasks, with cues and without, from one file to one report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sonde
from sonde.engine.scenes import write_scenes
from sonde.errors import InputError, StoreError
from sonde.study import run_study
from sonde.study_config import StudyConfig

from .engine.tiny import write_model

MODELS = ("kosmos-2", "qwen_vl", "emu", "lavit")
N_IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes, and the four models."""
    folder = tmp_path_factory.mktemp("founding")
    write_scenes(folder / "data", n_images=40, size=48)
    for model in MODELS:
        write_model(model, folder / "models" / model)
    return folder


def write_study(folder: Path, out: Path, **sections: Any) -> Path:
    lines = [f'[study]\nout = "{out}"']
    for model in MODELS:
        lines.append(f'[[models]]\nlabel = "{model}"\nname = "{folder / "models" / model}"\ndtype = "float32"')
    lines.append(
        f'[data]\ntask = ["entailment", "recognition"]\ncue = "both"\nprompt = [0, 1]\nlimit = {N_IMAGES}\n'
        f'annotations = "{folder / "data/annotations"}"\nimages = "{folder / "data/images"}"\n'
        'prompt_format = "raw"'
    )
    lines.append('[capture]\ntokens = ["last", "image_mean"]\nlayers = [0, 2]')
    lines.append("[probe]\ndraws = 30\nfolds = 3")
    path = out.parent / f"{out.name}.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def done(folder: Path) -> Any:
    return run_study(write_study(folder, folder / "out"))


def test_every_model_answers_every_question(done: Any) -> None:
    asked = {(answer.model, answer.task, answer.cue) for answer in done.answers}
    assert asked == {(m, t, c) for m in MODELS for t in ("entailment", "recognition") for c in ("no-cue", "cue")}
    assert done.skipped == dict.fromkeys(MODELS, 0)


def test_all_prompts_about_an_image_are_one_store_and_share_what_they_begin_with(done: Any, folder: Path) -> None:
    for model in MODELS:
        store = sonde.open(folder / "out" / f"{model}.zarr")
        # Two captions and one question, with the cue and without, in two paraphrases.
        assert len(store.ids) == N_IMAGES * 3 * 2 * 2
        assert len(set(store.groups.tolist())) == N_IMAGES
        assert {array.tokens for array in store.arrays} == {"last", "image_mean"}
        [log] = (folder / "out" / f"{model}.zarr" / "log").glob("2*.json")
        assert json.loads(log.read_text())["shared_prefix"] == "yes"


def test_the_report_has_the_findings_of_all(done: Any) -> None:
    page = done.report.read_text("utf-8")
    assert len(done.sentences) == 16 + 8 + 16 + 4 * 6
    for sentence in done.sentences:
        assert sentence.replace("'", "&#39;") in page
    assert {row["model"] for row in done.findings.peaks.to_dict("records")} == set(MODELS)
    assert set(done.findings.cues["task"]) == {"entailment", "recognition"}
    assert (done.findings.prompts["n_prompts"] == 2).all()
    assert len(done.findings.models) == 6 * 4


def test_a_study_goes_on_where_it_was_and_needs_no_model_that_is_done(folder: Path, done: Any) -> None:
    again = folder / "again"
    shutil.copytree(folder / "out", again)
    # As if it had been cut off: one model's store, and one of another's answers, are not there.
    shutil.rmtree(again / "lavit.zarr")
    shutil.rmtree(again / "lavit.probes")
    shutil.rmtree(again / "emu.probes" / "entailment-cue")
    (folder / "models" / "kosmos-2").rename(folder / "models" / "moved")
    said: list[str] = []
    try:
        second = run_study(write_study(folder, again), say=said.append)
    finally:
        (folder / "models" / "moved").rename(folder / "models" / "kosmos-2")
    assert said == [
        "emu: probing entailment-cue",
        "lavit: extracting",
        *(f"lavit: probing {task}-{cue}" for task in ("entailment", "recognition") for cue in ("no-cue", "cue")),
        "comparing, and writing the report",
    ]
    assert second.sentences == done.sentences
    pd.testing.assert_frame_equal(second.findings.cues, done.findings.cues)


def test_another_study_does_not_go_on_with_it(folder: Path, done: Any) -> None:
    other = folder / "other"
    shutil.copytree(folder / "out", other)
    path = write_study(folder, other)
    config = StudyConfig.load(path, ["data.seed=5"])
    with pytest.raises(StoreError, match=r"kosmos-2\.zarr"):
        run_study(config)


def test_the_command_line_runs_a_study(folder: Path, done: Any, call: Any) -> None:
    path = folder / "out.toml"
    answer = call("study", path)
    assert answer.code == 0
    assert answer.out.splitlines()[:-1] == done.sentences
    assert answer.out.splitlines()[-1] == f"report: {done.report.absolute()}"
    told = json.loads(call("study", path, "--json").out)
    assert told["sentences"] == done.sentences
    assert len(told["peaks"]) == 16
    plans = json.loads(call("study", path, "--dry-run", "--json").out)
    assert set(plans) == set(MODELS)
    assert all(plan["samples"] == N_IMAGES * 12 for plan in plans.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": [{"label": "a", "name": "m"}, {"label": "a", "name": "n"}]}, "two models have the label 'a'"),
        ({"models": [{"label": "a/b", "name": "m"}]}, r"models\.0\.label"),
        (
            {"models": [{"label": "a", "nmae": "m"}]},
            r"models\.0\.name is missing; models\.0\.nmae is not a setting: did",
        ),
        ({"models": []}, "models: give at least one"),
        ({"data": {"manifest": "a.jsonl"}}, "data.task is missing: a study asks tasks"),
        ({"run": {"out": "x.zarr"}}, "run.out is of one extraction"),
    ],
)
def test_mistakes_in_a_study_name_their_place(change: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {
        "study": {"out": "s"},
        "models": [{"label": "a", "name": "m"}],
        "data": {"task": ["entailment"], "annotations": "a", "images": "i"},
    }
    StudyConfig.load(whole)
    with pytest.raises(InputError, match=message):
        StudyConfig.load(whole | change)


def test_one_task_alone_is_no_study(folder: Path) -> None:
    config = StudyConfig.load(
        write_study(folder, folder / "one"), ["data.task=entailment", "data.cue=false", "data.prompt=0"]
    )
    with pytest.raises(InputError, match="give a study a list of them"):
        run_study(config)


@pytest.mark.parametrize("name", ["study.toml", "study-modern.toml"])
def test_the_studies_that_ship_are_whole_and_their_budget_is_the_scripts(name: str) -> None:
    examples = Path(__file__).parents[1] / "examples"
    config = StudyConfig.load(examples / name)
    for model in config.models:
        assert config.extraction(model).run.out == str(config.study.out / f"{model.label}.zarr")
    script = [sys.executable, "study_budget.py"]
    told = subprocess.run(script, cwd=examples, capture_output=True, text=True, check=True).stdout.splitlines()
    written = [line.removeprefix("#").split() for line in (examples / name).read_text().splitlines()]
    for model in told[2:6] if name == "study.toml" else told[7:]:
        assert model.split() in written
