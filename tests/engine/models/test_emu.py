"""Emu computes what the published code does, and loads what was published."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, linear

from sonde.engine.config import ModelSection
from sonde.engine.models import find_port
from sonde.engine.models.emu.processor import read_processor
from sonde.engine.models.emu.weights import Weights
from sonde.engine.models.processor import SquareImages

from .golden import GOLDEN, Golden, listening

FOLDER = GOLDEN / "emu"
VARIANTS = [path.stem.removeprefix("Emu-") for path in sorted(FOLDER.glob("Emu-*.pt"))]


@pytest.fixture
def golden() -> Golden:
    return Golden(FOLDER)


@cache
def loaded(variant: str) -> tuple[Any, Any, torch.Tensor]:
    """A variant's model, its processor and its head."""
    port = find_port(str(FOLDER))
    assert port is not None
    assert port.name == "Emu"
    section = ModelSection(name=str(FOLDER), dtype="float32", checkpoint=f"Emu-{variant}.pt")
    found = port.load(FOLDER, section)
    weights = Weights(FOLDER / f"Emu-{variant}.pt")
    head = weights.tensors[weights.language.removesuffix("model.") + "lm_head.weight"]
    return found.module.eval(), found.processor, head


def cases(golden: Golden, variant: str) -> list[str]:
    found = [case for case in golden.cases(".input_ids") if case.startswith(f"{variant}.")]
    assert found
    return found


def pixels_of(golden: Golden, case: str) -> torch.Tensor | None:
    """Pixels of a case's images; a case that differs in its padding alone has those of the other."""
    name = case.partition(".")[2]
    names = (f"pixel_values.{name}", f"pixel_values.{name.partition('_')[0]}")
    return next((golden.inputs[name] for name in names if name in golden.inputs), None)


def run(variant: str, **inputs: Any) -> dict[str, torch.Tensor]:
    """Everything that may be expected of one pass."""
    model, _, head = loaded(variant)
    decoder, former, tower = model.language_model, model.former, model.vision
    places = {
        **{f"decoder.block.{i}": block for i, block in enumerate(decoder.layers)},
        "inputs_embeds.input": decoder.layers[0],
        "decoder.final_norm": decoder.norm,
    }
    if inputs.get("pixel_values") is not None:
        places |= {
            "visual.embeddings": tower.embeddings,
            **{f"visual.block.{i}": block for i, block in enumerate(tower.encoder.layers)},
            "visual.ln_visual": tower.post_layernorm,
            **{f"cformer.block.{i}": block for i, block in enumerate(former.stack.block)},
            "cformer.final_layer_norm": former.stack.final_layer_norm,
            "cformer.projection": former.projection,
        }
    heard: dict[str, torch.Tensor]
    with torch.inference_mode(), listening(places) as heard:
        model(**inputs)
    return heard | {"logits": linear(heard["decoder.final_norm"], head)}


def of_image(name: str) -> bool:
    return name.startswith(("visual.", "cformer."))


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_batches(golden: Golden, variant: str) -> None:
    for case in cases(golden, variant):
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: golden.inputs[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden.inputs}
        valid = inputs["attention_mask"].bool()
        heard = run(variant, **inputs, pixel_values=pixels_of(golden, case))
        golden.compare_all(f"{case}.", {name: x for name, x in heard.items() if of_image(name)})
        golden.compare_all(f"{case}.", {name: x for name, x in heard.items() if not of_image(name)}, valid)
        if f"{case}.llm_loss" in golden.expected:
            golden.compare(f"{case}.llm_loss", loss(variant, inputs["input_ids"], valid, heard["logits"]))
        assert golden.holds(f"{case}.")


def loss(variant: str, ids: torch.Tensor, valid: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token, where that is text."""
    special = loaded(variant)[0].config.special_tokens
    left_out = torch.isin(ids, torch.tensor([special[token] for token in ("[IMG]", "[/IMG]", "<image>")])) | ~valid
    wanted = ids.masked_fill(left_out, -100)[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten()).unsqueeze(0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_rows_one_by_one(golden: Golden, variant: str) -> None:
    token = loaded(variant)[0].config.image_token_id
    per_image = loaded(variant)[0].config.tokens_per_image
    for case in cases(golden, variant):
        pixels, first = pixels_of(golden, case), 0
        for row, valid in enumerate(golden.inputs[f"{case}.attention_mask"].bool()):
            ids = golden.inputs[f"{case}.input_ids"][row, valid].unsqueeze(0)
            n_images = int((ids == token).sum()) // per_image
            mine = slice(first, first + n_images)
            first += n_images
            heard = run(variant, input_ids=ids, pixel_values=pixels[mine] if n_images and pixels is not None else None)
            for name, got in heard.items():
                if f"{case}.{name}" in golden.expected:
                    rows = (mine,) if of_image(name) else (slice(row, row + 1), valid)
                    golden.compare(f"{case}.{name}", got, rows=rows)
        assert golden.holds(*(f"{case}.{name}" for name in ("decoder", "inputs_embeds", "logits")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_greedy_tokens(golden: Golden, variant: str) -> None:
    spoken = [case for case in cases(golden, variant) if f"{case}.greedy_tokens" in golden.inputs]
    assert spoken
    for case in spoken:
        wanted, pixels, first = golden.inputs[f"{case}.greedy_tokens"], pixels_of(golden, case), 0
        model, processor, head = loaded(variant)
        # What is said begins with a token that the model is not given.
        assert wanted[:, 0].tolist() == [processor.tokenizer.bos_token_id] * len(wanted)
        for row, valid in enumerate(golden.inputs[f"{case}.attention_mask"].bool()):
            ids = golden.inputs[f"{case}.input_ids"][row, valid].unsqueeze(0)
            n_images = int((ids == model.config.image_token_id).sum()) // model.config.tokens_per_image
            mine = pixels[first : first + n_images] if n_images and pixels is not None else None
            first += n_images
            embeds = embedded(model, ids, mine)
            said = []
            for _ in range(wanted.shape[1] - 1):
                with torch.inference_mode():
                    hidden = model.language_model(inputs_embeds=embeds).last_hidden_state
                    said.append(int(linear(hidden[0, -1], head).argmax()))
                    embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[said[-1]]]))], dim=1)
            assert said == wanted[row, 1:].tolist(), case


def embedded(model: Any, ids: torch.Tensor, pixels: torch.Tensor | None) -> torch.Tensor:
    with torch.inference_mode(), listening({"x.input": model.language_model.layers[0]}) as heard:
        model(input_ids=ids, pixel_values=pixels)
    return heard["x"]


def test_golden_pixels(golden: Golden) -> None:
    sizes = [name for name in golden.expected if name.startswith("preprocess")]
    assert sizes
    for name in sizes:
        image = Image.fromarray(golden.inputs["image." + name.rpartition(".")[2] + ".raw"].numpy())
        golden.compare(name, SquareImages(golden.expected[name].shape[-1])([image])["pixel_values"][0])
    prepared = {
        name.removeprefix("pixel_values."): x for name, x in golden.inputs.items() if name.startswith("pixel_v")
    }
    raw = [Image.fromarray(x.numpy()) for name, x in sorted(golden.inputs.items()) if name.endswith(".raw")]
    assert prepared
    for pixels in prepared.values():
        ours = SquareImages(pixels.shape[-1])(raw)["pixel_values"]
        for one in pixels:
            assert min(float((one - other).abs().max()) for other in ours) < 1e-6


def test_golden_tensors_all_belong_to_a_case(golden: Golden) -> None:
    known = tuple(f"{case}." for case in golden.cases(".input_ids"))
    assert [name for name in golden.expected if not name.startswith((*known, "preprocess"))] == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", ["tokenizer.json", "tokenizer.model"])
def test_golden_prompts_become_the_golden_ids(golden: Golden, variant: str, source: str, tmp_path: Path) -> None:
    (tmp_path / source).write_bytes((FOLDER / source).read_bytes())
    tokenizer = read_processor(tmp_path, loaded(variant)[0].config).tokenizer
    prompts = json.loads((FOLDER / "tokenization.json").read_text())["tiny_prompts"][variant]
    for case, texts in prompts.items():
        rows = zip(
            [texts] if isinstance(texts, str) else texts,
            golden.inputs[f"{variant}.{case}.input_ids"],
            golden.inputs[f"{variant}.{case}.attention_mask"].bool(),
            strict=True,
        )
        for text, ids, valid in rows:
            assert tokenizer(text).input_ids == ids[valid].tolist(), (case, text)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", ["tokenizer.json", "tokenizer.model"])
def test_special_tokens_in_a_text_are_these_and_take_the_spaces_around_them_away(
    variant: str, source: str, tmp_path: Path
) -> None:
    (tmp_path / source).write_bytes((FOLDER / source).read_bytes())
    config = loaded(variant)[0].config
    tokenizer = read_processor(tmp_path, config).tokenizer
    a, b = (tokenizer(letter, add_special_tokens=False).input_ids for letter in "ab")
    for token, number in {"<unk>": 0, "<s>": 1, "</s>": 2, **config.special_tokens}.items():
        for space in ("", "  "):
            text = f"a{space}{token}{space}b"
            assert tokenizer(text, add_special_tokens=False).input_ids == [*a, number, *b], text
