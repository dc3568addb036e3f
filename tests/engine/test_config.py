"""Configurations: what is read, and how every mistake is told."""

from pathlib import Path
from typing import Any

import pytest

from sonde.engine import ExtractConfig
from sonde.errors import InputError

FULL = """
[model]
name = "org/model"
revision = "main"
dtype = "float16"
attention = "eager"
device = "cpu"
weights = "random"
seed = 3
trust_remote_code = true
checkpoint = "a.pt"
visual_tokens = "argmax"

[data]
task = "entailment"
annotations = "coco/annotations"
images = "coco/val2017"
name = "val2017"
cue = true
prompt = 1
negatives = "random"
balance = true
limit = 100
seed = 4
prompt_format = "raw"
truncate = 64

[capture]
sites = ["resid_pre", "final_norm"]
tokens = ["last", "image_mean"]
layers = [0, 8]
dtype = "float32"

[run]
out = "run.zarr"
token_budget = 1024
range_size = 16
on_error = "skip"
"""
MODEL = {"model": {"name": "m"}}


def test_every_section_of_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "extract.toml"
    path.write_text(FULL)
    config = ExtractConfig.load(path)
    assert config.model.model_dump() == {
        "name": "org/model",
        "revision": "main",
        "dtype": "float16",
        "backend": "transformers",
        "attention": "eager",
        "device": "cpu",
        "weights": "random",
        "seed": 3,
        "trust_remote_code": True,
        "checkpoint": "a.pt",
        "visual_tokens": "argmax",
        "tensor_parallel": None,
        "memory": None,
    }
    assert config.data is not None
    assert config.data.model_dump() == {
        "task": "entailment",
        "annotations": Path("coco/annotations"),
        "images": Path("coco/val2017"),
        "name": "val2017",
        "cue": True,
        "prompt": 1,
        "asked_per_image": 2,
        "prompts_file": None,
        "negatives": "random",
        "balance": True,
        "manifest": None,
        "image_folder": None,
        "prompts": None,
        "hf_dataset": None,
        "hf_config": None,
        "hf_split": None,
        "hf_revision": None,
        "columns": None,
        "remote_images": False,
        "limit": 100,
        "seed": 4,
        "prompt_format": "raw",
        "truncate": 64,
    }
    assert config.capture.model_dump() == {
        "sites": ("resid_pre", "final_norm"),
        "tokens": ("last", "image_mean"),
        "layers": (0, 8),
        "dtype": "float32",
        "codec": None,
    }
    assert config.run.model_dump() == {
        "out": "run.zarr",
        "token_budget": 1024,
        "range_size": 16,
        "encoders": 0,
        "shared_prefix": True,
        "fsync": True,
        "on_error": "skip",
    }
    assert ExtractConfig.load(str(path)) == config
    assert ExtractConfig.load(config) == config


def test_one_task_or_several_with_cues_and_prompts() -> None:
    section = {"annotations": "a", "images": "i"}
    several = {"task": ["entailment"], "cue": [True, "asked"], "prompt": [0, 2]}
    asked = ExtractConfig.load(MODEL | {"data": section | several}).data
    assert asked is not None
    assert (asked.task, asked.cue, asked.prompt) == (("entailment",), (True, "asked"), (0, 2))
    assert ExtractConfig.load(MODEL | {"data": section | {"task": "recognition", "cue": "asked"}}).data
    with pytest.raises(InputError, match=r"data: prompt says several, which a list of tasks is asked with"):
        ExtractConfig.load(MODEL | {"data": section | {"task": "entailment", "prompt": "all"}})
    with pytest.raises(InputError, match=r"data.cue: .*'asked'.*, got 'maybe'"):
        ExtractConfig.load(MODEL | {"data": section | {"task": "entailment", "cue": "maybe"}})
    with pytest.raises(InputError, match=r"data.prompt: .*greater than or equal to 0.*, got"):
        ExtractConfig.load(MODEL | {"data": section | {"task": ["entailment"], "prompt": [-1]}})


def test_what_is_left_out_has_a_default() -> None:
    config = ExtractConfig.load(MODEL)
    assert (config.model.dtype, config.model.weights, config.data) == ("bfloat16", "pretrained", None)
    assert (config.capture.sites, config.capture.tokens, config.capture.layers) == (("resid_post",), ("last",), "all")
    assert (config.run.out, config.run.on_error) == (None, "fail")


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("model.dtype=float32", "model", "dtype", "float32"),
        ('model.dtype="float32"', "model", "dtype", "float32"),
        ("model.dtype='float32'", "model", "dtype", "float32"),
        (" model.name = org/other-7b ", "model", "name", "org/other-7b"),
        ("model.name=a=b", "model", "name", "a=b"),
        ("model.seed=12", "model", "seed", 12),
        ("model.trust_remote_code=true", "model", "trust_remote_code", True),
        ("run.out=runs/a b.zarr", "run", "out", "runs/a b.zarr"),
        ("capture.layers=[0, 3]", "capture", "layers", (0, 3)),
        ("capture.layers=all", "capture", "layers", "all"),
        ('capture.tokens=["first", "mean"]', "capture", "tokens", ("first", "mean")),
    ],
)
def test_overrides_take_toml_values_and_bare_text(override: str, section: str, key: str, value: object) -> None:
    config = ExtractConfig.load({"model": {"name": "m", "dtype": "bfloat16"}}, [override])
    assert getattr(getattr(config, section), key) == value


def test_later_overrides_win_and_the_source_is_left_alone() -> None:
    source = {"model": {"name": "m"}}
    config = ExtractConfig.load(source, ["model.seed=1", "model.seed=2", "data.manifest=m.jsonl"])
    assert config.model.seed == 2
    assert config.data is not None
    assert config.data.manifest == Path("m.jsonl")
    assert source == {"model": {"name": "m"}}


@pytest.mark.parametrize("override", ["model", "seed=1", "a.b.c=1", "model.=1", "=1", ".=1"])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    with pytest.raises(InputError, match=r"section\.key=value"):
        ExtractConfig.load(MODEL, [override])


def test_an_override_of_something_that_is_no_section_is_refused() -> None:
    with pytest.raises(InputError, match="'model' is no section"):
        ExtractConfig.load({"model": "m"}, ["model.name=m"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"modle": {"name": "m"}}, "modle is not a setting: did you mean 'model'"),
        ({"model": {"nmae": "m"}}, r"model\.nmae is not a setting: did you mean 'name'"),
        (MODEL | {"data": {"manifset": "m"}}, r"data\.manifset is not a setting: did you mean 'manifest'"),
        (MODEL | {"capture": {"token": ["last"]}}, r"capture\.token is not a setting: did you mean 'tokens'"),
        (MODEL | {"run": {"token_budgt": 1}}, r"run\.token_budgt is not a setting: did you mean 'token_budget'"),
        (
            MODEL | {"run": {"zzz": 1}},
            r"run\.zzz is not a setting; there are out, token_budget, range_size, encoders, shared_prefix, fsync",
        ),
        ({}, "model is missing"),
        ({"model": {}}, r"model\.name is missing"),
        ({"model": "m"}, "model: give a table of settings, got 'm'"),
        ({"model": {"name": 7}}, r"model\.name: give text in quotes, got 7"),
        ({"model": {"name": "m", "dtype": "int8"}}, r"model\.dtype: .*'bfloat16'.*got 'int8'"),
        ({"model": {"name": "m", "seed": "x"}}, r"model\.seed: give a whole number, got 'x'"),
        (MODEL | {"run": {"token_budget": 0}}, r"run\.token_budget: .*greater than or equal to 1.*got 0"),
        (MODEL | {"capture": {"sites": "embed"}}, r"capture\.sites: give a list.*got 'embed'"),
        (MODEL | {"capture": {"sites": []}}, r"capture\.sites: give at least one"),
        (MODEL | {"capture": {"layers": "most"}}, r"capture\.layers: give \"all\", a list.*got 'most'"),
        (MODEL | {"capture": {"layers": [0, 1.5]}}, r"capture\.layers: give \"all\", a list.*got \[0, 1\.5\]"),
        (MODEL | {"data": {"task": "poetry"}}, r"data\.task: .*'entailment' or 'recognition'.*got 'poetry'"),
        (MODEL | {"data": {"task": "recognition"}}, "data: the task 'recognition' needs both annotations and images"),
        (
            MODEL | {"data": {"task": "recognition", "annotations": "a", "images": "i", "manifest": "m"}},
            "data: give either task or manifest, not both",
        ),
        (
            MODEL | {"data": {"image_folder": "photos", "prompts": "?", "hf_dataset": "user/name"}},
            "data: give either image_folder or hf_dataset, not both",
        ),
        (
            MODEL | {"data": {"manifest": "m", "prompts": ["?"]}},
            "data: prompts is for image_folder or hf_dataset: name one, or leave prompts out",
        ),
        (MODEL | {"data": {"manifest": "m", "hf_split": "test"}}, "data: hf_split is for hf_dataset"),
        (MODEL | {"data": {"manifest": "m", "annotations": "a"}}, "data: annotations is for task: name one, or leave"),
        (MODEL | {"data": {"image_folder": "photos", "prompts": []}}, r"data\.prompts: give at least one"),
        (
            MODEL | {"data": {"hf_dataset": "user/name", "columns": {"question": "prompt"}}},
            r"data\.columns\.question.*'id', 'prompt', .*got 'question'",
        ),
    ],
)
def test_every_mistake_names_its_place_and_the_way_out(source: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExtractConfig.load(source)


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        ExtractConfig.load({"model": {"nmae": "m"}, "run": {"on_error": "ignore"}})
    assert all(part in str(caught.value) for part in ("model.name is missing", "model.nmae", "run.on_error"))


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "extract.toml"
    path.write_text("[model]\nname = 3\n")
    with pytest.raises(InputError, match=r"extract\.toml: model\.name"):
        ExtractConfig.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[model\nname = 1", r"extract\.toml is not valid TOML: .*line 1"),
        (b"[model]\nname = '\xff'", r"extract\.toml cannot be read"),
    ],
)
def test_a_file_that_is_no_toml_is_an_input_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "extract.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        ExtractConfig.load(path)


def test_a_file_that_is_not_there_or_a_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no configuration .*none\.toml"):
        ExtractConfig.load(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        ExtractConfig.load(tmp_path)
