"""What a store holds of Qwen-VL's golden checkpoint is what each sample gives alone, whatever it is batched with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import DynamicCache

from sonde.engine import Sample, extract
from sonde.engine.capture import CONNECTOR, VISION
from sonde.engine.config import ModelSection
from sonde.engine.model import load_model
from sonde.engine.models.processor import CLIP_MEAN, CLIP_STD
from sonde.store import Store

from .models.golden import listening
from .runs import configuration, values
from .tiny_ports import copy_golden_qwen_vl

TEXT_SITES = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "k", "v", "final_norm"]
TOKENS = ["last", "first", "index:1", "mean", "text_mean", "max", "span:thing", "all"]
ALL_SITES, ALL_TOKENS = [*TEXT_SITES, VISION, CONNECTOR], [*TOKENS, "image_mean"]
TOLERANCE = 1e-5

States = dict[tuple[str, int], NDArray[np.float32]]


@pytest.fixture(scope="module")
def folder(scratch: Path) -> Path:
    return copy_golden_qwen_vl(scratch / "golden qwen-vl")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Plain:
    return Plain(folder)


def samples_of(pictures: list[Path], images: tuple[int, ...]) -> list[Sample]:
    """Prompts of very different lengths, each with a span, with as many images as are said in turn."""
    samples = []
    for i, n_words in enumerate((3, 8, 0, 1, 6, 4)):
        text = " ".join(["a", *["there is the green square"] * n_words, "red star", "of three"])
        n_images = images[i % len(images)]
        mine = tuple(pictures[(i + k) % len(pictures)] for k in range(n_images))
        samples.append(Sample(f"s{i}", prompt=text, images=mine, spans={"thing": "red star"}))
    return samples


def questions(pictures: list[Path]) -> list[Sample]:
    """Several prompts about one image, and about two."""
    asked = ["the circle", "is there a star", "a", "two circle below and three square above", "shows the picture"]
    return [
        Sample(f"{n}-{i}", prompt=f"{text} red star", images=tuple(pictures[:n]), spans={"thing": "red star"})
        for n in (1, 2)
        for i, text in enumerate(asked)
    ]


class Plain:
    """One sample at a time through the module, with hooks on its parts and inputs that are made here."""

    def __init__(self, folder: Path) -> None:
        model = load_model(ModelSection(name=str(folder), dtype="float32", device="cpu"))
        self.module, self.tokenizer = model.module, model.processor.tokenizer
        config = self.module.config
        self.n_vectors, self.image_id = config.tokens_per_image, config.image_token_id
        self.size = config.vision_config.image_size

    def pixels(self, path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        values = (np.asarray(image, dtype=np.float64) / 255 - CLIP_MEAN) / CLIP_STD
        return torch.from_numpy(values.transpose(2, 0, 1)).float()

    def ids(self, sample: Sample) -> list[int]:
        image = "<img>" + "<imgpad>" * self.n_vectors + "</img>"
        found: list[int] = self.tokenizer(image * len(sample.images) + str(sample.prompt))["input_ids"]
        return found

    def run(self, sample: Sample) -> States:
        """(site, layer) -> ``[position, vector]``."""
        decoder = self.module.language_model
        places: dict[str, Any] = {"norm": decoder.norm}
        for i, block in enumerate(decoder.layers):
            places |= {f"pre {i}.input": block, f"post {i}": block, f"attn {i}": block.self_attn, f"mlp {i}": block.mlp}
            places[f"z {i}.input"] = block.self_attn.o_proj
        if sample.images:
            places |= {f"patches {i}": block for i, block in enumerate(self.module.vision.blocks)}
        pixels = torch.stack([self.pixels(path) for path in sample.images]) if sample.images else None
        ids, past = torch.tensor([self.ids(sample)]), DynamicCache()
        with torch.inference_mode(), listening(places) as heard:
            self.module(input_ids=ids, pixel_values=pixels, past_key_values=past, use_cache=True)
        n = len(decoder.layers)
        found = {("embed", 0): heard["pre 0"], ("final_norm", n - 1): heard["norm"]}
        names = {"resid_pre": "pre", "resid_post": "post", "attn_out": "attn", "mlp_out": "mlp", "z": "z"}
        for i in range(n):
            found |= {(site, i): heard[f"{name} {i}"] for site, name in names.items()}
            layer = past.layers[i]
            for site, x in (("k", layer.keys), ("v", layer.values)):
                found[site, i] = x.transpose(1, 2).flatten(2)
        states = {key: x[0].numpy() for key, x in found.items()}
        for name, x in heard.items():
            if name.startswith("patches"):
                states[VISION, int(name.split()[1])] = x.flatten(0, 1).numpy()
        if sample.images:
            states[CONNECTOR, 0] = states["embed", 0][ids[0].numpy() == self.image_id]
        return states

    def pooled(self, sample: Sample, site: str, tokens: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """What a selector makes of a site's states."""
        if tokens in ("last", "first", "index:1"):
            return x[{"last": -1, "first": 0, "index:1": 1}[tokens]]
        if tokens in ("mean", "max"):
            return np.asarray(x.mean(axis=0) if tokens == "mean" else x.max(axis=0))
        if site in (VISION, CONNECTOR):
            assert tokens == "image_mean"
            return np.asarray(x.mean(axis=0))
        ids = self.ids(sample)
        image = np.asarray(ids) == self.image_id
        assert image.sum() == len(sample.images) * self.n_vectors
        if tokens in ("image_mean", "text_mean"):
            return np.asarray(x[image if tokens == "image_mean" else ~image].mean(axis=0))
        assert tokens == "span:thing"
        thing = self.tokenizer(" red star")["input_ids"]
        [start] = [i for i in range(len(ids)) if ids[i : i + len(thing)] == thing]
        return np.asarray(x[start : start + len(thing)].mean(axis=0))


def assert_plain(store: Store, samples: list[Sample], plain: Plain) -> None:
    """Hold everything in a store against plain runs, to a tolerance relative to the largest magnitude of its array."""
    states = [plain.run(sample) for sample in samples]
    for (site, tokens, layer), got in values(store).items():
        pairs = zip(samples, states, strict=True)
        want = np.stack([plain.pooled(sample, site, tokens, own[site, layer]) for sample, own in pairs])
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), (site, tokens, layer)
    for spec in store.arrays:
        for layer in spec.layers if spec.ragged else ():
            largest = max(float(np.abs(own[spec.site, layer]).max()) for own in states)
            for i, own in enumerate(states):
                got = np.asarray(store.tokens(spec.site, layer)[i])
                assert got.shape == own[spec.site, layer].shape
                assert np.abs(got - own[spec.site, layer]).max() <= TOLERANCE * largest, (spec.site, layer)


def run(folder: Path, out: Path, samples: list[Sample], sites: list[str], tokens: list[str], **more: Any) -> Store:
    capture = {"sites": sites, "tokens": tokens}
    model = {"attention": more.pop("attention", None)}
    settings = configuration(folder, out, model=model, data={"prompt_format": "raw"}, capture=capture, run=more)
    store = extract(settings, samples=samples)
    assert {array.site for array in store.arrays} == set(sites)
    assert {array.tokens for array in store.arrays} == set(tokens)
    return store


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_checkpoint_through_the_engine(
    attention: str, folder: Path, plain: Plain, pictures: list[Path], tmp_path: Path
) -> None:
    mixed = samples_of(pictures, (0, 1, 2))
    store = run(folder, tmp_path / "mixed.zarr", mixed, TEXT_SITES, TOKENS, attention=attention)
    assert store.schema.model["attention"] == attention
    assert_plain(store, mixed, plain)
    with_images = samples_of(pictures, (2, 1))
    store = run(folder, tmp_path / "images.zarr", with_images, ALL_SITES, ALL_TOKENS, attention=attention)
    assert_plain(store, with_images, plain)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_golden_checkpoint_with_and_without_a_shared_prefix(
    attention: str, folder: Path, plain: Plain, pictures: list[Path], tmp_path: Path
) -> None:
    asked, options = questions(pictures), {"token_budget": 4096, "attention": attention}
    together, apart = (
        run(folder, tmp_path / f"{shared}.zarr", asked, ALL_SITES, ALL_TOKENS, shared_prefix=shared, **options)
        for shared in (True, False)
    )
    assert_plain(together, asked, plain)
    wanted = values(apart)
    for key, got in values(together).items():
        assert np.abs(got - wanted[key]).max() <= TOLERANCE * np.abs(wanted[key]).max(), key


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_kernel_asked_for_is_the_language_models(attention: str, folder: Path) -> None:
    model = load_model(ModelSection(name=str(folder), dtype="float32", device="cpu", attention=attention))
    assert model.module.language_model.config._attn_implementation == attention
