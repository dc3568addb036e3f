"""What a store holds of Qwen-VL's golden checkpoint is what each sample gives alone, whatever it is batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sonde.engine import Sample, extract
from sonde.engine.config import ModelSection
from sonde.engine.model import load_model
from sonde.store import Store

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
from .tiny_ports import copy_golden_qwen_vl

FILLER, THING = "there is the green square", "red star"
ASKED = ["the circle", "is there a star", "a", "two circle below and three square above", "shows the picture"]


@pytest.fixture(scope="module")
def folder(scratch: Path) -> Path:
    return copy_golden_qwen_vl(scratch / "golden qwen-vl")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    model = load_model(ModelSection(name=str(folder), dtype="float32", device="cpu"))
    return Plain(model, model.module.vision.blocks, ("<img>", "<imgpad>", "</img>"), f" {THING}")


def run(folder: Path, out: Path, samples: list[Sample], sites: list[str], tokens: list[str], **more: Any) -> Store:
    capture = {"sites": sites, "tokens": tokens}
    model = {"attention": more.pop("attention", None)}
    settings = configuration(folder, out, model=model, data={"prompt_format": "raw"}, capture=capture, run=more)
    return extract(settings, samples=samples)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_checkpoint_through_the_engine(
    attention: str, folder: Path, plain: Plain, pictures: list[Path], tmp_path: Path
) -> None:
    mixed = samples_of(pictures, (0, 1, 2), FILLER, THING)
    store = run(folder, tmp_path / "mixed.zarr", mixed, TEXT_SITES, TOKENS, attention=attention)
    assert store.schema.model["attention"] == attention
    assert_plain(store, mixed, plain, TEXT_SITES, TOKENS)
    with_images = samples_of(pictures, (2, 1), FILLER, THING)
    store = run(folder, tmp_path / "images.zarr", with_images, ALL_SITES, ALL_TOKENS, attention=attention)
    assert_plain(store, with_images, plain, ALL_SITES, ALL_TOKENS)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_checkpoint_with_and_without_a_shared_prefix(
    attention: str, folder: Path, plain: Plain, pictures: list[Path], tmp_path: Path
) -> None:
    asked, options = questions(pictures, ASKED, THING), {"token_budget": 4096, "attention": attention}
    together, apart = (
        run(folder, tmp_path / f"{shared}.zarr", asked, ALL_SITES, ALL_TOKENS, shared_prefix=shared, **options)
        for shared in (True, False)
    )
    assert_plain(together, asked, plain, ALL_SITES, ALL_TOKENS)
    assert_alike(together, apart)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_kernel_asked_for_is_the_language_models(attention: str, folder: Path) -> None:
    model = load_model(ModelSection(name=str(folder), dtype="float32", device="cpu", attention=attention))
    assert model.module.language_model.config._attn_implementation == attention
