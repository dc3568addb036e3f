"""Emu's published files load in every form that they may have, and nothing else does."""

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

from sonde.engine.model import load_model
from sonde.engine.models import find_port
from sonde.engine.models.emu.config import read_config
from sonde.engine.models.emu.model import EmuModel, fill_model
from sonde.engine.models.emu.weights import Weights
from sonde.engine.models.image_text import build
from sonde.errors import ModelError

from .checkpoints import Code, State, assert_same, parameters, section
from .models.golden import GOLDEN
from .tiny_emu import write_emu

CHECKPOINTS = sorted((GOLDEN / "emu").glob("Emu-*.pt"))
VARIANTS = ("instruct", "pretrain")
# No activation depends on these (README of the folder), and the base model has no head.
UNUSED = (
    *("visual.norm.*", "visual.head.*", "cformer.cformer.embed_tokens.weight"),
    *("*.stu_regress_head.weight", "*.rotary_emb.inv_freq", "*.lm_head.weight"),
)

StateOf = Callable[[str], State]


def unused(key: str) -> bool:
    return any(fnmatch.fnmatch(key, pattern) for pattern in UNUSED)


def empty(path: Path) -> Any:
    """A model for a checkpoint."""
    weights = Weights(path)
    config = read_config(path.parent, instructed=weights.instructed, n_tokens=weights.n_tokens)
    return build(EmuModel, config, section(path.parent, weights="random"))


@pytest.fixture(scope="module")
def whole(scratch: Path) -> Path:
    """Both kinds, which must not be written to."""
    return write_emu(scratch / "both kinds of emu", VARIANTS)


@pytest.fixture
def state_of(whole: Path) -> StateOf:
    """Reads a variant's tensors."""
    return lambda variant: torch.load(whole / f"Emu-{variant}.pt", weights_only=True)


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of their folder without checkpoints."""
    return Path(shutil.copytree(whole, tmp_path / "emu", ignore=shutil.ignore_patterns("*.pt")))


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_golden_tensors_are_each_owed_or_unused(path: Path) -> None:
    model = empty(path)
    for key in Weights(path).tensors:
        weights = Weights(path)
        del weights.tensors[key]
        if unused(key):
            fill_model(model, weights)
        else:
            with pytest.raises(ModelError, match=r"Emu-\w+\.pt lacks ") as caught:
                fill_model(model, weights)
            assert repr(key) in str(caught.value)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_golden_tensors_of_another_shape_are_named(path: Path) -> None:
    model = empty(path)
    for key in filter(lambda key: not unused(key), Weights(path).tensors):
        for change in (lambda x: x[..., :-1], lambda x: torch.cat([x, x])):
            weights = Weights(path)
            weights.tensors[key] = change(weights.tensors[key])
            with pytest.raises(ModelError, match="has another shape than the configuration says") as caught:
                fill_model(model, weights)
            assert repr(key) in str(caught.value)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.stem)
def test_golden_tensors_are_let_go_as_they_are_read(path: Path) -> None:
    # A file that cannot be mapped into memory would otherwise stay there beside the model.
    weights = Weights(path)
    fill_model(empty(path), weights)
    assert all(map(unused, weights.tensors))


@pytest.mark.parametrize("key", ["decoder.lm.extra.weight", "visual.blocks.99.attn.qkv.weight", "optimizer"])
def test_a_tensor_too_many_is_named(key: str, folder: Path, state_of: StateOf) -> None:
    torch.save(state_of("pretrain") | {key: torch.zeros(2)}, folder / "Emu-pretrain.pt")
    with pytest.raises(ModelError, match=rf"Emu-pretrain\.pt holds the unexpected '{key}'"):
        load_model(section(folder))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("form", ["zip", "legacy", "module"])
def test_files_of_any_kind_of_torch_save_are_the_same(
    variant: str, form: str, folder: Path, state_of: StateOf, whole: Path
) -> None:
    state: Any = state_of(variant)
    state = {"module": state} if form == "module" else state
    torch.save(state, folder / "Emu-pretrain.pt", _use_new_zipfile_serialization=form != "legacy")
    wanted = parameters(whole, checkpoint=f"Emu-{variant}.pt")
    assert_same(parameters(folder), wanted)


@pytest.mark.parametrize("form", ["peft 0.2", "peft 0.7"])
def test_lora_is_found_under_the_names_of_every_peft(form: str, folder: Path, state_of: StateOf, whole: Path) -> None:
    def renamed(key: str, state: State) -> str:
        if form == "peft 0.2":
            return key.replace(".default.weight", ".weight")
        stem = key.removesuffix(".weight")
        return f"{stem}.base_layer.weight" if f"{stem}.lora_A.default.weight" in state else key

    state = state_of("instruct")
    new = {renamed(key, state): x for key, x in state.items()}
    assert new.keys() != state.keys()
    torch.save(new, folder / "Emu-instruct.pt")
    assert_same(parameters(folder), parameters(whole, checkpoint="Emu-instruct.pt"))


def test_lora_is_added_at_its_scale(folder: Path, state_of: StateOf, whole: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    lora = content["lora_config"]
    lora["lora_alpha"] = 5 * lora["r"]
    (folder / "config.json").write_text(json.dumps(content))
    shutil.copy(whole / "Emu-instruct.pt", folder)
    state, found = state_of("instruct"), parameters(folder)
    bases = [key.removesuffix(".lora_A.default.weight") for key in state if key.endswith(".lora_A.default.weight")]
    assert len(bases) == 4 * content["llama_config"]["num_hidden_layers"]
    for base in bases:
        a, b = (state[f"{base}.lora_{which}.default.weight"].double() for which in "AB")
        wanted = state[f"{base}.weight"].double() + 5 * b @ a
        own = "language_model." + base.partition(".model.model.")[2] + ".weight"
        torch.testing.assert_close(found[own].double(), wanted, rtol=0, atol=1e-6)


def test_lora_of_another_rank_than_the_configuration_says_is_refused(folder: Path, whole: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["lora_config"]["r"] += 1
    (folder / "config.json").write_text(json.dumps(content))
    shutil.copy(whole / "Emu-instruct.pt", folder)
    with pytest.raises(ModelError, match=r"has another shape than the configuration says: .*lora_A\.default\.weight"):
        load_model(section(folder))


def test_lora_where_the_configuration_puts_none_is_refused(folder: Path, whole: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content["lora_config"]["target_modules"] = ["q_proj", "v_proj"]
    (folder / "config.json").write_text(json.dumps(content))
    shutil.copy(whole / "Emu-instruct.pt", folder)
    with pytest.raises(ModelError, match=r"holds the unexpected .*lora_A\.default\.weight"):
        load_model(section(folder))


def test_which_emu_it_is_is_told_by_what_the_file_holds(folder: Path, whole: Path) -> None:
    for variant, name in (("instruct", "Emu-pretrain.pt"), ("pretrain", "Emu-instruct.pt")):
        shutil.copy(whole / f"Emu-{variant}.pt", folder / name)
        model = load_model(section(folder, checkpoint=name))
        assert bool(model.processor.chat_template) == (variant == "instruct")
        assert model.provenance["checkpoint"] == name


def test_one_of_several_checkpoints_has_to_be_chosen(folder: Path, whole: Path) -> None:
    shutil.copy(whole / "Emu-instruct.pt", folder)
    hidden = folder / "pretrain/multimodal_encoder/pytorch_model.bin"
    hidden.parent.mkdir(parents=True)
    shutil.copy(whole / "Emu-pretrain.pt", hidden)
    with pytest.raises(ModelError, match=r"holds Emu-instruct\.pt, pretrain/.*\.bin: choose one by model\.checkpoint"):
        load_model(section(folder))
    with pytest.raises(ModelError, match=r"model\.checkpoint is 'Emu-pretrain\.pt', and the folder .* holds Emu-inst"):
        load_model(section(folder, checkpoint="Emu-pretrain.pt"))
    chosen = parameters(folder, checkpoint="pretrain/multimodal_encoder/pytorch_model.bin")
    assert_same(chosen, parameters(whole, checkpoint="Emu-pretrain.pt"))
    with pytest.raises(ModelError, match=r"'BAAI/Emu' has several checkpoints: choose one by model\.checkpoint"):
        load_model(section(Path("BAAI/Emu")))


def test_a_file_that_is_cut_off_is_named(folder: Path, whole: Path) -> None:
    whole = (whole / "Emu-pretrain.pt").read_bytes()
    for length in (0, 100, len(whole) // 2, len(whole) - 1):
        (folder / "Emu-pretrain.pt").write_bytes(whole[:length])
        with pytest.raises(
            ModelError, match=r"the checkpoint's file .*Emu-pretrain\.pt cannot be read: .*fetch it again"
        ):
            load_model(section(folder))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_code_in_a_file_does_not_run(form: str, folder: Path, tmp_path: Path, state_of: StateOf) -> None:
    path, mark = folder / "Emu-pretrain.pt", tmp_path / "ran"
    state: Any = state_of("pretrain") | {"code": Code(mark)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(Code(mark), protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(ModelError, match=r"Emu-pretrain\.pt cannot be read: "):
        load_model(section(folder))
    assert not mark.exists()


@pytest.mark.parametrize("content", [[torch.zeros(2)], {"module": {"epoch": 3}}, torch.zeros(2)])
def test_a_file_of_something_else_is_refused(content: Any, folder: Path) -> None:
    torch.save(content, folder / "Emu-pretrain.pt")
    with pytest.raises(ModelError, match=r"Emu-pretrain\.pt holds no state dictionary of tensors"):
        load_model(section(folder))


def test_a_state_dictionary_of_another_model_is_refused(folder: Path) -> None:
    torch.save({"model.embed_tokens.weight": torch.zeros(2, 2)}, folder / "Emu-pretrain.pt")
    with pytest.raises(ModelError, match=r"lacks 'decoder\.lm\.model\.embed_tokens\.weight' or "):
        load_model(section(folder))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_once_to_the_dtype_asked_for(
    variant: str, dtype: str, folder: Path, state_of: StateOf, whole: Path
) -> None:
    kind, checkpoint = getattr(torch, dtype), f"Emu-{variant}.pt"
    wanted = {name: x.to(kind) for name, x in parameters(whole, checkpoint=checkpoint).items()}
    assert_same(parameters(whole, checkpoint=checkpoint, dtype=dtype), wanted)
    # As the published files are: rounded already, which LoRA's sum must not be before it is added up.
    half = {name: x.to(torch.float16) for name, x in state_of(variant).items()}
    torch.save(half, folder / checkpoint)
    torch.save({name: x.float() for name, x in half.items()}, folder / "Emu-other.pt")
    found = parameters(folder, dtype=dtype)
    shutil.move(folder / "Emu-other.pt", folder / checkpoint)
    assert_same(found, parameters(folder, dtype=dtype))


@pytest.mark.parametrize("checkpoint", [None, "Emu-instruct.pt"])
def test_random_weights_need_no_checkpoint(checkpoint: str | None, folder: Path) -> None:
    assert find_port(str(folder)) is not None
    settings = {"weights": "random", "checkpoint": checkpoint}
    first, again, other = (parameters(folder, seed=seed, **settings) for seed in (1, 1, 2))
    assert_same(first, again)
    n_pieces = json.loads((folder / "config.json").read_text())["llama_config"]["vocab_size"]
    assert len(first["language_model.embed_tokens.weight"]) == n_pieces + (6 if checkpoint else 4)
    for name, x in first.items():
        assert x.isfinite().all(), name
        if x.dim() > 1:
            # Not the 1e-10 that transformers' Blip2VisionConfig says.
            assert 1e-3 < float(x.std()) < 1.5, name
            assert not x.equal(other[name]), name


def test_what_a_configuration_leaves_out_is_as_published(tmp_path: Path) -> None:
    # The published files are of 28,416,988,239 and 28,469,727,530 bytes (huggingface.co/BAAI/Emu, commit 062dacc), 16
    # bits a value: what the base model has, the heads, LoRA's matrices, and little besides.
    for instructed, published in ((False, 28_416_988_239), (True, 28_469_727_530)):
        config = read_config(tmp_path, instructed=instructed)
        with torch.device("meta"):
            model = EmuModel(config)
        llm, width, tower = config.text_config, config.text_config.hidden_size, config.vision_config
        n = sum(x.numel() for x in model.parameters()) - tower.num_hidden_layers * tower.hidden_size
        n += llm.vocab_size * width + width**2
        n += llm.num_hidden_layers * len(config.lora_targets) * 2 * 16 * width if instructed else 0
        # T5's table of 32,128 tokens, EVA's head to 1,024.
        n += 32_128 * config.former_config.d_model + tower.hidden_size * 1_024
        assert 0 < published - 2 * n < 500_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds a list and no settings"),
        ("{", "cannot be read"),
        ('{"vladapter_cfg": {"n_causal": 4}, "llama_config": 3}', "makes no Emu"),
        ('{"vladapter_cfg": {"n_causal": "many"}}', "makes no Emu"),
        ('{"vision_cfg": {"width": 50, "head_width": 12}, "vladapter_cfg": {}}', "a width of 50 is not cut into heads"),
    ],
)
def test_a_configuration_of_something_else_is_refused(content: str, message: str, folder: Path, whole: Path) -> None:
    shutil.copy(whole / "Emu-pretrain.pt", folder)
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=rf"config\.json .*{message}"):
        load_model(section(folder))


def test_a_configuration_that_says_nothing_of_emu_leaves_it_to_the_next(folder: Path, whole: Path) -> None:
    shutil.copy(whole / "Emu-pretrain.pt", folder)
    shutil.move(folder / "config.json", folder / "Emu-14B.json")
    (folder / "config.json").write_text('{"_class_name": "a pipeline"}')
    assert_same(parameters(folder), parameters(whole, checkpoint="Emu-pretrain.pt"))


def test_a_table_with_too_few_rows_is_refused(folder: Path, state_of: StateOf) -> None:
    state = state_of("pretrain")
    key = "decoder.lm.model.embed_tokens.weight"
    state[key] = state[key][:-1]
    torch.save(state, folder / "Emu-pretrain.pt")
    with pytest.raises(ModelError, match=r"has \d+ token embeddings, and .*config\.json says that <image> is \d+"):
        load_model(section(folder))


def test_a_tokenizer_is_owed_and_has_to_go_with_the_model(folder: Path, whole: Path) -> None:
    shutil.copy(whole / "Emu-pretrain.pt", folder)
    config = folder / "config.json"
    content = json.loads(config.read_text())
    n_pieces = content["llama_config"]["vocab_size"]
    config.write_text(json.dumps(content | {"special_tokens": {"[PAD]": n_pieces + 1, "[IMG]": n_pieces + 1}}))
    with pytest.raises(ModelError, match=r"the tokenizer in .* has \[PAD\] at \d+, and the configuration says \d+"):
        load_model(section(folder))
    config.write_text(json.dumps(content))
    for name in ("tokenizer.json", "tokenizer.model"):
        (folder / name).write_bytes(b"nothing")
        with pytest.raises(ModelError, match=rf"the tokenizer .*{name} cannot be read"):
            load_model(section(folder))
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer: there is neither tokenizer\.model nor tokenizer\.json"):
        load_model(section(folder))
