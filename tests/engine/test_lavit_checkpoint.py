"""LaVIT's published files are read in whatever parts they come, and what is wrong with them is said by name."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sonde.engine.model import Model, load_model
from sonde.engine.models.checkpoint import find_files, read_tensors
from sonde.errors import ModelError

from .checkpoints import Code, State, assert_same, parameters, section
from .tiny_lavit import write_shards

EVA, ENCODER = "visual_tokenizer/eva_vitg_psz14.bin", "visual_tokenizer/tokenizer_encoder.bin"
LATER, SHARD = "language_model/visual_weight.bin", "language_model/pytorch_model-00002-of-00003.bin"
FILES = (EVA, ENCODER, LATER, SHARD)


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A whole checkpoint that may be broken."""
    return Path(shutil.copytree(model_folder("lavit"), tmp_path / "model"))


def load(folder: Path, **settings: Any) -> Model:
    return load_model(section(folder, **settings))


def read(path: Path) -> State:
    # Not mapped: the file is written over.
    tensors: State = torch.load(path, weights_only=True)
    return tensors


def edit(path: Path, change: Callable[[State], None]) -> None:
    tensors = read(path)
    change(tensors)
    torch.save(tensors, path)


# Of EVA, the predictor (in one file alone), what was trained last, and the language model.
KEYS = [
    (EVA, "blocks.1.attn.q_bias"),
    (ENCODER, "token_predictor.out_conv.2.weight"),
    (LATER, "vit_proj.weight"),
    (SHARD, "model.layers.1.mlp.up_proj.weight"),
]


@pytest.mark.parametrize(("file", "key"), KEYS)
def test_a_missing_tensor_is_named(file: str, key: str, folder: Path) -> None:
    edit(folder / file, lambda tensors: tensors.__delitem__(key))
    with pytest.raises(ModelError, match=rf"the checkpoint {folder} lacks '.*:{key}': give the files as they were"):
        load(folder)


@pytest.mark.parametrize("file", FILES)
def test_an_unexpected_tensor_is_named(file: str, folder: Path) -> None:
    edit(folder / file, lambda tensors: tensors.__setitem__("nobody.knows.this", torch.zeros(1)))
    with pytest.raises(ModelError, match=r"holds the unexpected '.*:nobody.knows.this'"):
        load(folder)


@pytest.mark.parametrize(("file", "key"), KEYS)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(file: str, key: str, folder: Path) -> None:
    edit(folder / file, lambda tensors: tensors.__setitem__(key, torch.zeros(7, 3)))
    with pytest.raises(ModelError, match=rf"another shape than the configuration says: .*:{key}' \(7, 3\).* for '"):
        load(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file: str, folder: Path) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelError, match=f"the checkpoint lacks the file {folder / file}"):
        load(folder)


def test_a_language_model_without_weights_is_an_error(folder: Path) -> None:
    for path in (folder / "language_model").glob("pytorch_model*"):
        path.unlink()
    with pytest.raises(ModelError, match=f"the folder {folder / 'language_model'} holds no weights"):
        load(folder)


def test_an_index_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "language_model/pytorch_model.bin.index.json").write_text("{")
    with pytest.raises(ModelError, match=r"the checkpoint's index .*index\.json cannot be read"):
        load(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_was_cut_off_is_named(file: str, folder: Path) -> None:
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match=rf"the checkpoint's file {folder / file} cannot be read: .*; fetch it again"):
        load(folder)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("file", FILES)
def test_code_in_a_file_is_not_run(file: str, zipped: bool, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content: Any = {"weight": Code(trace)}
    if zipped:
        torch.save(content, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ModelError, match=f"the checkpoint's file {folder / file} cannot be read"):
        load(folder)
    assert not trace.exists()
    with (folder / file).open("rb") as opened:
        # It would have run.
        torch.load(opened, weights_only=False) if zipped else pickle.load(opened)
    assert trace.exists()


@pytest.mark.parametrize("layout", ["one .bin", "two .bin", "one .safetensors", "two .safetensors"])
def test_parts_make_the_same_model_as_the_whole(layout: str, folder: Path) -> None:
    want = parameters(folder)
    language = folder / "language_model"
    tensors = {name: x.clone() for name, x in read_tensors(find_files(language)).items()}
    for path in language.glob("pytorch_model*"):
        path.unlink()
    if layout == "one .bin":
        torch.save(tensors, language / "pytorch_model.bin")
    elif layout == "two .bin":
        write_shards(tensors, language, 2)
    elif layout == "one .safetensors":
        save_file(tensors, language / "model.safetensors")
    else:
        places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
        for file in set(places.values()):
            save_file({name: x for name, x in tensors.items() if places[name] == file}, language / file)
        (language / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(parameters(folder), want)


def test_what_was_trained_last_takes_the_place_of_what_the_tokenizer_had(folder: Path) -> None:
    # Any part of it, the predictor too.
    key, other = "causal_encoder.blocks.0.mlp.fc1.weight", "token_predictor.in_conv.1.bias"
    before, trained = read(folder / ENCODER), read(folder / LATER)
    assert not before[key].equal(trained[key])
    model = parameters(folder)
    assert model["merger.blocks.0.fc1.weight"].equal(trained[key])
    assert model["selector.in_conv.1.bias"].equal(before[other])
    torch.save({"vit_proj.weight": trained["vit_proj.weight"], other: before[other] + 1}, folder / LATER)
    edit(folder / ENCODER, lambda tensors: tensors.__setitem__("vit_proj.bias", trained["vit_proj.bias"]))
    model = parameters(folder)
    assert model["merger.blocks.0.fc1.weight"].equal(before[key])
    assert model["selector.in_conv.1.bias"].equal(before[other] + 1)
    assert model["projection.bias"].equal(trained["vit_proj.bias"])


def test_what_nobody_needs_may_be_there_or_not(folder: Path) -> None:
    want = parameters(folder)
    for file in FILES:
        for prefix in ("norm.", "head.", "quantize.", "encode_task_layer.", "lm_head."):
            edit(folder / file, lambda tensors, prefix=prefix: _remove(tensors, prefix))
    table = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit(folder / SHARD, lambda tensors: tensors.update(table))
    index = folder / "language_model/pytorch_model.bin.index.json"
    for path in (folder / "language_model").glob("pytorch_model-*"):
        edit(path, lambda tensors: _remove(tensors, "lm_head."))
    assert index.is_file()
    assert_same(parameters(folder), want)


def _remove(tensors: State, prefix: str) -> None:
    for name in [name for name in tensors if name.startswith(prefix)]:
        del tensors[name]


def test_half_precision_is_the_rounding_of_the_file_but_for_what_chooses_patches(folder: Path) -> None:
    exact, half = parameters(folder), parameters(folder, dtype="bfloat16")
    for name, x in exact.items():
        kept = name.startswith("selector.")
        assert half[name].dtype == (torch.float32 if kept else torch.bfloat16), name
        assert half[name].equal(x.to(half[name].dtype)), name
    for path in FILES:
        edit(folder / path, lambda tensors: tensors.update({k: x.bfloat16() for k, x in tensors.items()}))
    # As published; what the files round is as it is.
    rounded = parameters(folder, dtype="bfloat16")
    assert all(rounded[name].equal(x.bfloat16().to(rounded[name].dtype)) for name, x in exact.items() if ".1." in name)


def test_random_weights_need_no_weights_and_are_those_of_their_seed(folder: Path) -> None:
    for path in folder.rglob("*.bin"):
        path.unlink()
    one, same, other = (parameters(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    assert_same(one, same)
    matrices = [name for name, x in one.items() if x.dim() > 1]
    assert all(torch.isfinite(one[name]).all() for name in one)
    assert all(1e-3 < float(one[name].std()) < 1 for name in matrices if "class_embedding" not in name)
    assert not any(one[name].equal(other[name]) for name in matrices)


def test_a_folder_without_a_tokenizer_says_what_it_looked_for(folder: Path) -> None:
    (folder / "language_model/tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: there is neither tokenizer\.model nor tokenizer\.json"):
        load(folder)


def test_a_tokenizer_of_another_size_is_refused(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_start_id": 250, "image_end_id": 251}))
    with pytest.raises(ModelError, match="has <img> at 256, and the configuration says 250"):
        load(folder)


@pytest.mark.parametrize("file", ["config.json", "language_model/config.json"])
def test_a_configuration_that_cannot_be_read_is_an_error(file: str, folder: Path) -> None:
    (folder / file).write_text("{")
    with pytest.raises(ModelError, match="configuration"):
        load(folder)


def test_another_language_model_is_chosen_by_the_name_of_its_folder(folder: Path) -> None:
    first = parameters(folder)
    shutil.copytree(folder / "language_model", folder / "language_model_sft")
    edit(folder / "language_model_sft/visual_weight.bin", lambda tensors: tensors["vit_proj.bias"].add_(1))
    assert_same(parameters(folder), first)
    tuned = load(folder, checkpoint="language_model_sft")
    assert tuned.provenance["checkpoint"] == "language_model_sft"
    assert tuned.module.projection.bias.equal(first["projection.bias"] + 1)
    with pytest.raises(ModelError, match=r"'other', and .* holds language_model, language_model_sft"):
        load(folder, checkpoint="other")
    shutil.rmtree(folder / "language_model")
    assert_same(parameters(folder), dict(tuned.module.named_parameters()))


def test_without_a_configuration_of_the_whole_it_is_the_published_one(folder: Path) -> None:
    from sonde.engine.models.lavit.config import read_config

    (folder / "config.json").unlink()
    config = read_config(folder)
    vision = config.vision_config
    assert (vision.num_hidden_layers, vision.hidden_size, vision.num_attention_heads) == (40, 1408, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size) == (6144, 224, 14)
    assert (config.merger_layers, config.merger_heads, config.merger_size) == (12, 16, 6144)
    assert (config.image_start_token_id, config.image_end_token_id, config.image_token_id) == (32000, 32001, 32002)
    assert config.tokens_per_image == 256
