"""Qwen-VL's published files load whole or in shards, each tensor accounted for, and nothing else does."""

from __future__ import annotations

import fnmatch
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sonde.engine.model import load_model
from sonde.engine.models import find_port
from sonde.engine.models.checkpoint import find_files, read_tensors
from sonde.engine.models.image_text import build
from sonde.engine.models.qwen_vl import model as room
from sonde.engine.models.qwen_vl.config import read_config, read_vision_config
from sonde.engine.models.qwen_vl.model import QwenVLModel, fill_model
from sonde.engine.models.qwen_vl.vision import VisionTower
from sonde.errors import ModelError

from .checkpoints import Code, State, assert_same, parameters, section
from .models.golden import GOLDEN
from .tiny_qwen_vl import write_qwen_vl, write_shards

# The base model has no head, and rotary tables are made anew.
UNUSED = ("lm_head.weight", "*.rotary_emb.inv_freq")


@pytest.fixture(scope="module")
def whole(scratch: Path) -> Path:
    """A checkpoint in three shards, which must not be written to."""
    return write_qwen_vl(scratch / "qwen-vl of checkpoints")


@pytest.fixture
def state(whole: Path) -> State:
    return read_tensors(find_files(whole))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy without weights."""
    return Path(shutil.copytree(whole, tmp_path / "model", ignore=shutil.ignore_patterns("pytorch_model*")))


@pytest.fixture
def sharded(whole: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "sharded"))


def test_a_published_folder_and_its_names_are_found(whole: Path, tmp_path: Path) -> None:
    for name in (str(whole), "Qwen/Qwen-VL", "Qwen/Qwen-VL-Chat"):
        port = find_port(name)
        assert port is not None
        assert port.name == "Qwen-VL"
    # The text model of the same name, and what is none at all.
    for content in ('{"model_type": "qwen"}', '{"model_type": "qwen2_vl", "visual": {}}', "[]", "{"):
        (tmp_path / "config.json").write_text(content)
        assert find_port(str(tmp_path)) is None


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_the_hub_is_asked_for_what_is_read(weights: Any, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import filter_repo_objects

    published = [path.name for path in whole.iterdir()]
    fetched: list[str] = []

    def fetch(name: str, *, revision: str | None, **patterns: Any) -> str:
        assert (name, revision) == ("Qwen/Qwen-VL", "main")
        others = ["README.md", "SimSun.ttf", "modeling_qwen.py"]
        fetched.extend(filter_repo_objects([*published, "generation_config.json", *others], **patterns))
        return str(whole)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    load_model(section(Path("Qwen/Qwen-VL"), weights=weights, revision="main"))
    shards = {path.name for path in find_files(whole)} if weights == "random" else set()
    assert {*fetched} == {*published, "generation_config.json"} - shards


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[[State], None]:
    """Fills a golden model with other tensors than its files'."""
    folder = GOLDEN / "qwen-vl"
    model = build(QwenVLModel, read_config(folder), section(folder, weights="random"))

    def fill(state: State) -> None:
        monkeypatch.setattr(room, "read_tensors", lambda files: state)
        fill_model(model, folder)

    return fill


def golden_state() -> State:
    return read_tensors(find_files(GOLDEN / "qwen-vl"))


def test_golden_tensors_are_each_owed_or_unused(given: Callable[[State], None]) -> None:
    whole = golden_state()
    for key in whole:
        state = {name: x for name, x in whole.items() if name != key}
        if any(fnmatch.fnmatch(key, pattern) for pattern in UNUSED):
            given(state)
        else:
            with pytest.raises(ModelError, match="lacks ") as caught:
                given(state)
            assert repr(key) in str(caught.value)


def test_golden_tensors_of_another_shape_are_named(given: Callable[[State], None]) -> None:
    whole = golden_state()
    for key, x in whole.items():
        if not any(fnmatch.fnmatch(key, pattern) for pattern in UNUSED):
            for changed in (x[..., :-1], torch.cat([x, x])):
                with pytest.raises(ModelError, match="has another shape than the configuration says") as caught:
                    given(whole | {key: changed})
                assert repr(key) in str(caught.value)


@pytest.mark.parametrize("form", ["one file", "legacy", "two shards", "safetensors", "safetensors shards"])
def test_all_forms_of_files_are_the_same(form: str, folder: Path, whole: Path, state: State) -> None:
    match form:
        case "one file" | "legacy":
            torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=form == "one file")
        case "two shards":
            write_shards(folder, state, 2)
        case "safetensors":
            save_file(state, folder / "model.safetensors")
        case _:
            names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
            places = {name: names[i % 2] for i, name in enumerate(state)}
            for name in names:
                save_file({key: x for key, x in state.items() if places[key] == name}, folder / name)
            (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(parameters(folder), parameters(whole))


def test_tables_that_some_versions_saved_are_passed_over(folder: Path, whole: Path, state: State) -> None:
    del state["lm_head.weight"]
    torch.save(state | {"transformer.rotary_emb.inv_freq": torch.zeros(4)}, folder / "pytorch_model.bin")
    assert_same(parameters(folder), parameters(whole))


@pytest.mark.parametrize("key", ["transformer.h.99.ln_1.weight", "transformer.h.0.attn.c_proj.bias", "optimizer"])
def test_a_tensor_too_many_is_named(key: str, folder: Path, state: State) -> None:
    torch.save(state | {key: torch.zeros(2)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=rf"holds the unexpected '{key}'"):
        load_model(section(folder))


def test_a_tensor_that_two_shards_have_is_named(sharded: Path) -> None:
    first, second, _ = find_files(sharded)
    state = torch.load(second, weights_only=True)
    key = next(iter(state))
    torch.save(torch.load(first, weights_only=True) | {key: state[key]}, first)
    with pytest.raises(ModelError, match=rf"holds '{key}', which another file of the checkpoint holds too"):
        load_model(section(sharded))


def test_a_shard_that_is_missing_or_cut_off_is_named(sharded: Path) -> None:
    shard = find_files(sharded)[1]
    content = shard.read_bytes()
    for length in (0, 100, len(content) // 2, len(content) - 1):
        shard.write_bytes(content[:length])
        with pytest.raises(ModelError, match=rf"file .*{shard.name} cannot be read: .*fetch it again"):
            load_model(section(sharded))
    shard.unlink()
    with pytest.raises(ModelError, match=rf"lacks the file .*{shard.name}"):
        load_model(section(sharded))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../a.bin"}}']
)
def test_an_index_of_something_else_is_refused(content: str, sharded: Path) -> None:
    (sharded / "pytorch_model.bin.index.json").write_text(content)
    with pytest.raises(ModelError, match=r"index .*pytorch_model\.bin\.index\.json cannot be read .*fetch it again"):
        load_model(section(sharded))


def test_a_folder_without_weights_says_what_is_looked_for(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no weights: there is no model\.safetensors or pytorch_model\.bin"):
        load_model(section(folder))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_code_in_a_shard_does_not_run(form: str, sharded: Path, tmp_path: Path) -> None:
    shard, mark = find_files(sharded)[1], tmp_path / "ran"
    if form == "bare pickle":
        shard.write_bytes(pickle.dumps(Code(mark), protocol=2))
    else:
        state: Any = torch.load(shard, weights_only=True) | {"code": Code(mark)}
        torch.save(state, shard, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match=rf"{shard.name} cannot be read: "):
        load_model(section(sharded))
    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"epoch": 3}, torch.zeros(2)])
def test_a_file_of_something_else_is_refused(content: Any, folder: Path) -> None:
    torch.save(content, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin holds no state dictionary of tensors"):
        load_model(section(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_to_the_dtype_asked_for(dtype: str, folder: Path, whole: Path, state: State) -> None:
    kind = getattr(torch, dtype)
    wanted = {name: x.to(kind) for name, x in parameters(whole).items()}
    assert_same(parameters(whole, dtype=dtype), wanted)
    torch.save({name: x.to(kind) for name, x in state.items()}, folder / "pytorch_model.bin")
    assert_same(parameters(folder, dtype=dtype), wanted)
    assert_same(parameters(folder), {name: x.float() for name, x in wanted.items()})


def test_random_weights_need_no_checkpoint(folder: Path) -> None:
    first, again, other = (parameters(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    assert_same(first, again)
    for name, x in first.items():
        assert x.isfinite().all(), name
        if x.dim() > 1:
            assert 1e-3 < float(x.std()) < 1.5, name
            assert not x.equal(other[name]), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": None}, r"lacks the setting 'vocab_size'"),
        ({"visual": {}}, r"lacks the setting 'width'"),
        ({"visual": 3}, r"makes no Qwen-VL \("),
        ({"hidden_size": "many"}, r"makes no Qwen-VL \("),
        ({"num_attention_heads": 5}, "a width of 32 is not cut into 5 heads"),
        ({"rotary_pct": 0.5}, "rotary_pct is 0.5, and heads are rotated whole here"),
        ({"hidden_size": 64}, "images become vectors of 32, tokens of 64"),
        ({"visual.heads": 5}, "a width of 24 is not cut into 5 heads"),
        ({"visual.resampler_heads": None}, "a width of 32 is not cut into 0 heads"),
        ({"visual.n_queries": 8}, "8 queries lie in no square"),
        ({"visual.image_start_id": None}, r"lacks the setting 'image_start_id'"),
    ],
)
def test_a_configuration_that_is_not_built_here_is_refused(change: dict[str, Any], message: str, sharded: Path) -> None:
    path = sharded / "config.json"
    content = json.loads(path.read_text())
    for name, value in change.items():
        group = content["visual"] if name.startswith("visual.") else content
        if value is None:
            del group[name.removeprefix("visual.")]
        else:
            group[name.removeprefix("visual.")] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=rf"config\.json .*{message}.*as it was published"):
        load_model(section(sharded))


def test_what_the_published_configuration_leaves_out_is_as_published() -> None:
    visual = {"heads": 16, "image_size": 448, "layers": 48, "mlp_ratio": 4.9231, "output_dim": 4096, "patch_size": 14}
    config = read_vision_config(visual | {"image_start_id": 151857, "width": 1664})
    assert (config.n_queries, config.resampler_heads, config.intermediate_size) == (256, 32, 8192)
    with torch.device("meta"):
        tower = VisionTower(config)
    # Table 1 of the paper: 1.9B of the vision encoder, 0.08B of the adapter.
    adapter = sum(x.numel() for x in tower.resampler.parameters())
    assert 1.85e9 < sum(x.numel() for x in tower.parameters()) - adapter < 1.95e9
    assert 0.07e9 < adapter < 0.085e9
