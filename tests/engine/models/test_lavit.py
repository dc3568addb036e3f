"""LaVIT computes what the published code does, and loads what was published."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import linear

from sonde.engine.config import ModelSection
from sonde.engine.models import find_port
from sonde.engine.models.checkpoint import find_files, read_tensors
from sonde.engine.models.image_text import build
from sonde.engine.models.lavit.config import read_config
from sonde.engine.models.lavit.model import LaVITModel
from sonde.engine.models.lavit.weights import fill_model
from sonde.engine.models.processor import SquareImages

from .golden import GOLDEN, Golden, listening

FOLDER = GOLDEN / "lavit"
# What a variant has besides its layouts.
OF_IMAGES = ("keep", "merger", "visual_tokens", "vit_proj")


@pytest.fixture
def golden() -> Golden:
    return Golden(FOLDER)


@cache
def model() -> Any:
    section = ModelSection(name=str(FOLDER), dtype="float32")
    return build(LaVITModel, read_config(FOLDER), section, lambda empty: fill_model(empty, FOLDER)).eval()


@cache
def head() -> torch.Tensor:
    return read_tensors(find_files(FOLDER / "language_model"))["lm_head.weight"]


def see(pixels: torch.Tensor, noise: torch.Tensor | None) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What may be expected of images: that does not depend on the noise, and that does."""
    tower, merger = model().vision, model().merger
    places = {
        "eva.embeddings": tower.embeddings,
        **{f"eva.block.{i}": block for i, block in enumerate(tower.encoder.layers)},
        "predictor_logits": model().selector,
        "merger.x_origin": merger.ln_vision,
    }
    of_noise = {
        **{f"merger.block.{i}": block for i, block in enumerate(merger.blocks)},
        **{f"merger.block.{i}.causal_attn": block.causal for i, block in enumerate(merger.blocks)},
        **{f"merger.block.{i}.cross_attn": block.cross for i, block in enumerate(merger.blocks)},
        "merger.out": merger,
        "vit_proj": model().projection,
    }
    with torch.inference_mode(), listening(places | of_noise) as heard:
        features, kept = model().choose(pixels, noise)
    heard["encoder_features"] = heard[f"eva.block.{len(tower.encoder.layers) - 1}"][:, 1:]
    fixed = {name: x for name, x in heard.items() if name not in of_noise}
    sampled: dict[str, Any] = {name: x for name, x in heard.items() if name in of_noise} | {"keep": kept.float()}
    tokens = torch.split(features, kept.sum(dim=1).tolist())
    return fixed, sampled | {f"visual_tokens.{row}": own for row, own in enumerate(tokens)}


def noise_of(golden: Golden, case: str, variant: str) -> torch.Tensor | None:
    return golden.inputs.get(f"{case}.{variant}.gumbel")


def variants(golden: Golden, case: str) -> list[str]:
    """Names between a case and ``keep``."""
    names = [name.split(".") for name in golden.expected if name.startswith(f"{case}.") and name.endswith(".keep")]
    return sorted({parts[1] for parts in names})


def layouts(golden: Golden, case: str, variant: str) -> list[str]:
    ends = [name.split(".") for name in golden.expected if name.endswith(".inputs_embeds")]
    return sorted(parts[2] for parts in ends if parts[:2] == [case, variant])


def test_golden_images_together_and_one_by_one(golden: Golden) -> None:
    for case in golden.cases(".pixel_values"):
        pixels = golden.inputs[f"{case}.pixel_values"]
        assert variants(golden, case)
        for variant in variants(golden, case):
            noise = noise_of(golden, case, variant)
            for rows in (slice(None), *(slice(row, row + 1) for row in range(len(pixels)))):
                fixed, sampled = see(pixels[rows], None if noise is None else noise[rows])
                first = rows.start or 0
                for name, got in fixed.items():
                    golden.compare(f"{case}.{name}", got, rows=rows)
                for name, got in sampled.items():
                    if name.startswith("visual_tokens."):
                        row = first + int(name.rpartition(".")[2])
                        golden.compare(f"{case}.{variant}.visual_tokens.{row}", got)
                    else:
                        golden.compare(f"{case}.{variant}.{name}", got, rows=rows)
            assert golden.holds(*(f"{case}.{variant}.{name}" for name in OF_IMAGES))
        assert golden.holds(f"{case}.eva", f"{case}.merger", f"{case}.predictor", f"{case}.encoder")


def joined(
    layout: str, images: list[list[int]], prompts: list[list[int]], pad: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of a layout: where it pads, the published code says."""
    longest = [max(map(len, images), default=0), max(map(len, prompts), default=0)]
    ids, mask = [], []
    for image, prompt in zip(images, prompts, strict=True):
        gaps = [longest[0] - len(image), longest[1] - len(prompt)]
        if layout == "vqa":
            parts = [(pad, gaps[1]), (pad, gaps[0]), image, prompt]
        elif layout == "caption":
            parts = [(pad, gaps[0]), image, (pad, gaps[1]), prompt]
        elif layout == "imageonly":
            parts = [(pad, gaps[0]), image]
        else:
            assert layout == "text"
            parts = [(pad, gaps[1]), prompt]
        filled = [([part[0]] * part[1], 0) if isinstance(part, tuple) else (part, 1) for part in parts]
        ids.append([i for part, _ in filled for i in part])
        mask.append([valid for part, valid in filled for _ in part])
    return torch.tensor(ids), torch.tensor(mask)


def positions(mask: torch.Tensor) -> torch.Tensor:
    """Running count of what counts; 1 where nothing does."""
    return (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 1)


def read(ids: torch.Tensor, features: torch.Tensor | None, **inputs: Any) -> dict[str, torch.Tensor]:
    """What may be expected of one pass through the language model."""
    decoder = model().language_model
    places = {
        "inputs_embeds.input": decoder.layers[0],
        **{f"llm.block.{i}": block for i, block in enumerate(decoder.layers)},
        "llm.final_norm": decoder.norm,
    }
    heard: dict[str, torch.Tensor]
    with torch.inference_mode(), listening(places) as heard:
        model()(ids, image_features=features, **inputs)
    return heard | {"logits": linear(heard["llm.final_norm"], head())}


def prompts_of(golden: Golden, case: str) -> list[list[int]]:
    rows = [name for name in golden.inputs if name.startswith(f"{case}.prompt_ids.")]
    ordered = sorted(rows, key=lambda name: int(name.rpartition(".")[2]))
    return [golden.inputs[name].tolist() for name in ordered]


def segments(kept: torch.Tensor) -> list[list[int]]:
    config = model().config
    start, end, place = config.image_start_token_id, config.image_end_token_id, config.image_token_id
    return [[start, *[place] * n, end] for n in kept.sum(dim=1).int().tolist()]


def test_golden_language_model_in_every_layout(golden: Golden) -> None:
    pad = json.loads((FOLDER / "config.json").read_text())["pad_token_id"]
    for case in golden.cases(".prompt_ids.0"):
        pixels, prompts = golden.inputs.get(f"{case}.pixel_values"), prompts_of(golden, case)
        told = [(v, layout) for v in variants(golden, case) for layout in layouts(golden, case, v)]
        told += [("", name) for name in ("text",) if f"{case}.{name}.inputs_embeds" in golden.expected]
        assert told
        for variant, layout in told:
            name = ".".join(part for part in (case, variant, layout) if part)
            features, images = None, [[] for _ in prompts]
            if variant and pixels is not None:
                with torch.inference_mode():
                    features, kept = model().choose(pixels, noise_of(golden, case, variant))
                images = segments(kept)
            asked = [[] for _ in prompts] if layout == "imageonly" else prompts
            ids, mask = joined(layout, images, asked, pad)
            golden.compare(f"{name}.attention_mask", mask)
            golden.compare(f"{name}.position_ids", positions(mask))
            heard = read(ids, features, attention_mask=mask, position_ids=positions(mask))
            golden.compare(f"{name}.inputs_embeds", heard.pop("inputs_embeds"))
            for inner, got in heard.items():
                golden.compare(f"{name}.{inner}", got, mask.bool())
            assert golden.holds(f"{name}.")


def test_golden_language_model_row_by_row_without_padding(golden: Golden) -> None:
    for case in golden.cases(".prompt_ids.0"):
        pixels, prompts = golden.inputs.get(f"{case}.pixel_values"), prompts_of(golden, case)
        assert prompts
        for variant in variants(golden, case):
            assert pixels is not None
            assert layouts(golden, case, variant)
            noise = noise_of(golden, case, variant)
            for row, prompt in enumerate(prompts):
                with torch.inference_mode():
                    mine = slice(row, row + 1)
                    features, kept = model().choose(pixels[mine], None if noise is None else noise[mine])
                [image] = segments(kept)
                for layout in layouts(golden, case, variant):
                    ids = torch.tensor([image + ([] if layout == "imageonly" else prompt)])
                    valid = golden.expected[f"{case}.{variant}.{layout}.attention_mask"][row].bool()
                    for inner, got in read(ids, features).items():
                        golden.compare(f"{case}.{variant}.{layout}.{inner}", got, rows=(mine, valid))
        if f"{case}.text.inputs_embeds" in golden.expected:
            for row, prompt in enumerate(prompts):
                valid = golden.expected[f"{case}.text.attention_mask"][row].bool()
                for inner, got in read(torch.tensor([prompt]), None).items():
                    golden.compare(f"{case}.text.{inner}", got, rows=(slice(row, row + 1), valid))


def test_golden_pixels(golden: Golden) -> None:
    raw = [Image.fromarray(x.numpy()) for name, x in sorted(golden.inputs.items()) if name.startswith("raw_image")]
    for case in golden.cases(".pixel_values"):
        pixels = golden.inputs[f"{case}.pixel_values"]
        ours = SquareImages(pixels.shape[-1])(raw)["pixel_values"]
        for one in pixels:
            assert min(float((one - other).abs().max()) for other in ours) < 1e-6


def test_golden_tensors_all_belong_to_a_case(golden: Golden) -> None:
    cases = {*golden.cases(".pixel_values"), *golden.cases(".prompt_ids.0")}
    assert {name.partition(".")[0] for name in golden.expected} <= cases
    for case in golden.cases(".pixel_values"):
        for variant in variants(golden, case):
            parts = {name.split(".")[2] for name in golden.expected if name.startswith(f"{case}.{variant}.")}
            assert parts <= {*OF_IMAGES, *layouts(golden, case, variant)}


def test_golden_folder_is_a_lavit() -> None:
    port = find_port(str(FOLDER))
    assert port is not None
    assert port.name == "LaVIT"
