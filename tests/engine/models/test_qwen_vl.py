"""Qwen-VL computes what the published code does, and loads what was published."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import linear

from sonde.engine.config import ModelSection
from sonde.engine.models import find_port
from sonde.engine.models.checkpoint import Filling, find_files, read_tensors
from sonde.engine.models.image_text import build
from sonde.engine.models.processor import SquareImages
from sonde.engine.models.qwen_vl.config import read_config, read_vision_config
from sonde.engine.models.qwen_vl.model import QwenVLModel, fill_model, fill_vision
from sonde.engine.models.qwen_vl.vision import VisionTower

from .golden import GOLDEN, Golden, listening

FOLDER = GOLDEN / "qwen-vl"
SECTION = ModelSection(name=str(FOLDER), dtype="float32")


@pytest.fixture
def golden() -> Golden:
    return Golden(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    config = read_config(FOLDER)
    return build(QwenVLModel, config, SECTION, lambda empty: fill_model(empty, FOLDER)).eval()


def vision_places(tower: Any) -> dict[str, Any]:
    return {
        "vision.embed": tower.ln_pre,
        "vision.ln_pre": tower.ln_pre,
        "vision.resampler": tower.resampler,
        "vision.ln_post": tower.ln_post,
        "image_features": tower,
        **{f"vision.block.{i}": block for i, block in enumerate(tower.blocks)},
    }


def run(model: Any, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything that may be expected of one pass."""
    decoder = model.language_model
    places = {
        **(vision_places(model.vision) if "pixel_values" in inputs else {}),
        **{f"block.{i}": block for i, block in enumerate(decoder.layers)},
        "inputs_embeds.input": decoder.layers[0],
        "final_norm": decoder.norm,
    }
    if "vision.embed" in places:
        places["vision.embed.input"] = places.pop("vision.embed")
    head = read_tensors(find_files(FOLDER))["lm_head.weight"]
    with torch.inference_mode(), listening(places) as heard:
        model(**inputs)
    return heard | {"logits": linear(heard["final_norm"], head)}


def test_golden_batches(golden: Golden, model: Any) -> None:
    for case in golden.cases(".input_ids"):
        names = ("input_ids", "attention_mask", "position_ids", "pixel_values")
        inputs = {name: golden.inputs[f"{case}.{name}"] for name in names if f"{case}.{name}" in golden.inputs}
        heard = run(model, **inputs)
        valid = inputs["attention_mask"].bool()
        of_text = {name: x for name, x in heard.items() if x.shape[:2] == valid.shape and not name.startswith("vision")}
        golden.compare_all(f"{case}.", {name: x for name, x in heard.items() if name not in of_text})
        golden.compare_all(f"{case}.", of_text, valid)
        assert golden.holds(f"{case}.")


def test_golden_rows_one_by_one(golden: Golden, model: Any) -> None:
    for case in golden.cases(".input_ids"):
        spans = golden.inputs.get(f"{case}.image_spans", torch.empty(0, 3, dtype=torch.int64))
        mask = golden.inputs[f"{case}.attention_mask"].bool()
        for row, valid in enumerate(mask):
            mine = spans[:, 0] == row
            inputs = {"input_ids": golden.inputs[f"{case}.input_ids"][row, valid].unsqueeze(0)}
            if mine.any():
                inputs["pixel_values"] = golden.inputs[f"{case}.pixel_values"][mine]
            heard = run(model, **inputs)
            for name, got in heard.items():
                of_image = name.startswith("vision") or name == "image_features"
                if f"{case}.{name}" in golden.expected:
                    rows = (mine,) if of_image else (slice(row, row + 1), valid)
                    golden.compare(f"{case}.{name}", got, rows=rows)
        assert golden.holds(f"{case}.")


def towers(golden: Golden) -> list[str]:
    """Cases of a vision tower by itself, each with a folder of its name."""
    found = sorted({*golden.cases(".pixel_values")} - {*golden.cases(".input_ids")})
    assert found
    return found


def test_golden_vision_alone(golden: Golden) -> None:
    for case in towers(golden):
        folder = FOLDER / case
        config = read_vision_config(json.loads((folder / "config.json").read_text())["visual"])
        tower = VisionTower(config).eval()
        fill = Filling(tower, read_tensors(find_files(folder)), str(folder))
        fill_vision(fill, "", "transformer.visual.", config)
        fill.finish()
        places = vision_places(tower)
        places["vision.embed.input"] = places.pop("vision.embed")
        with torch.inference_mode(), listening(places) as heard:
            tower(golden.inputs[f"{case}.pixel_values"])
        golden.compare_all(f"{case}.", heard)
        assert golden.holds(f"{case}.")


def test_golden_pixels(golden: Golden) -> None:
    for case in golden.cases(".image_uint8"):
        want = golden.expected[f"{case}.pixel_values"]
        image = Image.fromarray(golden.inputs[f"{case}.image_uint8"].numpy())
        golden.compare(f"{case}.pixel_values", SquareImages(want.shape[-1])([image])["pixel_values"][0])
        assert golden.holds(f"{case}.")


def test_golden_images_stand_where_they_are_said_to(golden: Golden, model: Any) -> None:
    for case in golden.cases(".image_spans"):
        places = model.image_places(golden.inputs[f"{case}.input_ids"])
        wanted = torch.zeros_like(places)
        for row, start, stop in golden.inputs[f"{case}.image_spans"].tolist():
            wanted[row, start:stop] = True
        assert places.equal(wanted)


def test_golden_tensors_all_belong_to_a_case(golden: Golden) -> None:
    cases = {*towers(golden), *golden.cases(".input_ids"), *golden.cases(".image_uint8")}
    assert {name.partition(".")[0] for name in golden.expected} == cases


def test_golden_folder_is_a_qwen_vl() -> None:
    port = find_port(str(FOLDER))
    assert port is not None
    assert port.name == "Qwen-VL"
