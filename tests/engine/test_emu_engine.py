"""What a store holds of Emu's golden checkpoint is what each sample gives alone, whatever it is batched with."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sonde.engine import Sample, extract
from sonde.engine.capture import Capture
from sonde.engine.config import ModelSection
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model, load_model
from sonde.store import Store

from .models.golden import GOLDEN, Golden
from .plain_runs import (
    ALL_SITES,
    ALL_TOKENS,
    TEXT_SITES,
    TOKENS,
    Plain,
    assert_alike,
    assert_plain,
    questions,
    samples_of,
)
from .runs import configuration

FOLDER = GOLDEN / "emu"
VARIANTS = [path.stem.removeprefix("Emu-") for path in sorted(FOLDER.glob("Emu-*.pt"))]
FILLER, THING = "the dogs and a bird", "red roof"
ASKED = ["the bird", "what is on the roof", "a", "three cats and two dogs on the roof", "now count"]


@cache
def model_of(variant: str) -> Model:
    return load_model(ModelSection(name=str(FOLDER), checkpoint=f"Emu-{variant}.pt", dtype="float32", device="cpu"))


@cache
def plain_of(variant: str) -> Plain:
    model = model_of(variant)
    return Plain(model, model.module.vision.encoder.layers, ("[IMG]", "<image>", "[/IMG]"), THING)


def run(variant: str, out: Path, samples: list[Sample], sites: list[str], tokens: list[str], **more: Any) -> Store:
    capture = {"sites": sites, "tokens": tokens}
    model = {"checkpoint": f"Emu-{variant}.pt", "attention": more.pop("attention", None)}
    settings = configuration(FOLDER, out, model=model, data={"prompt_format": "raw"}, capture=capture, run=more)
    return extract(settings, samples=samples)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_checkpoint_through_the_engine(
    variant: str, attention: str, pictures: list[Path], tmp_path: Path
) -> None:
    plain, mixed = plain_of(variant), samples_of(pictures, (0, 1, 2), FILLER, THING)
    store = run(variant, tmp_path / "mixed.zarr", mixed, TEXT_SITES, TOKENS, attention=attention)
    assert_plain(store, mixed, plain, TEXT_SITES, TOKENS)
    with_images = samples_of(pictures, (2, 1), FILLER, THING)
    store = run(variant, tmp_path / "images.zarr", with_images, ALL_SITES, ALL_TOKENS, attention=attention)
    assert_plain(store, with_images, plain, ALL_SITES, ALL_TOKENS)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_checkpoint_with_and_without_a_shared_prefix(variant: str, pictures: list[Path], tmp_path: Path) -> None:
    asked = questions(pictures, ASKED, THING)
    together, apart = (
        run(variant, tmp_path / f"{shared}.zarr", asked, ALL_SITES, ALL_TOKENS, shared_prefix=shared, token_budget=4096)
        for shared in (True, False)
    )
    assert_plain(together, asked, plain_of(variant), ALL_SITES, ALL_TOKENS)
    assert_alike(together, apart)


def encoder(variant: str, prompt_format: Any) -> Encoder:
    model = model_of(variant)
    return Encoder(model, Capture.plan(("embed",), ("last",), "all", model.n_layers), prompt_format)


def messages_of(text: str) -> tuple[dict[str, Any], ...] | None:
    """The chat that a prompt of the published form is made of, if it ends where an answer begins."""
    found = re.fullmatch(r"(?:(.*?) )?\[USER\]: (.*) \[ASSISTANT\]:", text)
    if found is None:
        return None
    system, content = found.groups()
    pieces = re.split(r"(\[IMG\](?:<image>)+\[/IMG\])", content)
    parts = [{"type": "text", "text": x} if i % 2 == 0 else {"type": "image"} for i, x in enumerate(pieces) if x]
    return (*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": parts})


def sample_of(golden: Golden, name: str, pixels: list[torch.Tensor], tmp_path: Path, **content: Any) -> Sample:
    """A sample of the raw images that these pixels were made of."""
    prepare = model_of(VARIANTS[0]).processor.image_processor
    raw = [Image.fromarray(x.numpy()) for key, x in sorted(golden.inputs.items()) if key.endswith(".raw")]
    prepared, paths = prepare(raw)["pixel_values"], []
    for i, one in enumerate(pixels):
        paths.append(tmp_path / f"{name} {i}.png")
        raw[int((prepared - one).abs().amax(dim=(1, 2, 3)).argmin())].save(paths[-1])
    return Sample(name, images=tuple(paths), **content)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prompt_format", ["raw", "auto"])
def test_golden_inputs_are_what_the_engine_makes_of_prompts_messages_and_images(
    variant: str, prompt_format: str, tmp_path: Path
) -> None:
    golden = Golden(FOLDER)
    prompts = json.loads((FOLDER / "tokenization.json").read_text())["tiny_prompts"][variant]
    model, encode = model_of(variant), encoder(variant, prompt_format)
    chat = prompt_format == "auto" and bool(model.processor.chat_template)
    n_vectors, n_seen = model.processor.tokens_per_image, 0
    for case, texts in prompts.items():
        pixels, first = golden.inputs.get(f"pixel_values.{case.partition('_')[0]}", torch.empty(0)), 0
        for row, text in enumerate([texts] if isinstance(texts, str) else texts):
            n_images = text.count("<image>") // n_vectors
            mine = list(pixels[first : first + n_images])
            first += n_images
            written = text.replace("<image>" * n_vectors, "<image>")
            content: dict[str, Any] = {"messages": messages_of(written)} if chat else {"prompt": written}
            if content.get("messages", True) is None:
                continue
            n_seen += 1
            encoded = encode(0, sample_of(golden, f"{case} {row}", mine, tmp_path, **content))
            valid = golden.inputs[f"{variant}.{case}.attention_mask"][row].bool()
            assert encoded.sequence["input_ids"][0].equal(golden.inputs[f"{variant}.{case}.input_ids"][row, valid])
            assert int(encoded.image.sum()) == n_images * n_vectors
            if mine:
                torch.testing.assert_close(encoded.other["pixel_values"], torch.stack(mine), rtol=0, atol=1e-6)
    assert n_seen
