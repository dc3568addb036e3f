"""What a store holds of Emu's golden checkpoint is what each sample gives alone, whatever it is batched with."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import DynamicCache

from sonde.engine import Sample, extract
from sonde.engine.capture import CONNECTOR, VISION, Capture
from sonde.engine.config import ModelSection
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model, load_model
from sonde.engine.models.processor import CLIP_MEAN, CLIP_STD
from sonde.store import Store

from .models.golden import GOLDEN, Golden, listening
from .runs import configuration, values

FOLDER = GOLDEN / "emu"
VARIANTS = [path.stem.removeprefix("Emu-") for path in sorted(FOLDER.glob("Emu-*.pt"))]
TEXT_SITES = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "k", "v", "final_norm"]
TOKENS = ["last", "first", "index:1", "mean", "text_mean", "max", "span:thing", "all"]
TOLERANCE = 1e-5

States = dict[tuple[str, int], NDArray[np.float32]]


@cache
def model_of(variant: str) -> Model:
    return load_model(section(variant))


def section(variant: str) -> ModelSection:
    return ModelSection(name=str(FOLDER), checkpoint=f"Emu-{variant}.pt", dtype="float32", device="cpu")


def samples_of(pictures: list[Path], images: tuple[int, ...]) -> list[Sample]:
    """Prompts of very different lengths, each with a span, with as many images as are said in turn."""
    samples = []
    for i, n_words in enumerate((3, 8, 0, 1, 6, 4)):
        text = " ".join(["the dogs and a bird"] * n_words + ["red roof", "of three"])
        n_images = images[i % len(images)]
        mine = tuple(pictures[(i + k) % len(pictures)] for k in range(n_images))
        samples.append(Sample(f"s{i}", prompt=text, images=mine, spans={"thing": "red roof"}))
    return samples


def questions(pictures: list[Path]) -> list[Sample]:
    """Several prompts about one image, and about two."""
    asked = ["the bird", "what is on the roof", "a", "three cats and two dogs on the roof", "now count"]
    return [
        Sample(f"{n}-{i}", prompt=f"{text} red roof", images=tuple(pictures[:n]), spans={"thing": "red roof"})
        for n in (1, 2)
        for i, text in enumerate(asked)
    ]


class Plain:
    """One sample at a time through the module, with hooks on its parts and inputs that are made here."""

    def __init__(self, variant: str) -> None:
        model = model_of(variant)
        self.module, self.tokenizer = model.module, model.processor.tokenizer
        config = self.module.config
        self.n_vectors, self.image_id = config.tokens_per_image, config.image_token_id
        self.size = config.vision_config.image_size

    def pixels(self, path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        values = (np.asarray(image, dtype=np.float64) / 255 - CLIP_MEAN) / CLIP_STD
        return torch.from_numpy(values.transpose(2, 0, 1)).float()

    def ids(self, sample: Sample) -> list[int]:
        image = "[IMG]" + "<image>" * self.n_vectors + "[/IMG]"
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
            places |= {f"patches {i}": block for i, block in enumerate(self.module.vision.encoder.layers)}
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
        if tokens in ("image_mean", "text_mean"):
            return np.asarray(x[image if tokens == "image_mean" else ~image].mean(axis=0))
        assert tokens == "span:thing"
        thing = self.tokenizer("red roof", add_special_tokens=False)["input_ids"]
        [start] = [i for i in range(len(ids)) if ids[i : i + len(thing)] == thing]
        return np.asarray(x[start : start + len(thing)].mean(axis=0))


def assert_plain(store: Store, samples: list[Sample], variant: str) -> None:
    """Hold everything in a store against plain runs, to a tolerance relative to the largest magnitude of its array."""
    plain = Plain(variant)
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
    mixed = samples_of(pictures, (0, 1, 2))
    store = run(variant, tmp_path / "mixed.zarr", mixed, TEXT_SITES, TOKENS, attention=attention)
    assert {array.site for array in store.arrays} == set(TEXT_SITES)
    assert_plain(store, mixed, variant)
    sites, tokens = [*TEXT_SITES, VISION, CONNECTOR], [*TOKENS, "image_mean"]
    with_images = samples_of(pictures, (2, 1))
    store = run(variant, tmp_path / "images.zarr", with_images, sites, tokens, attention=attention)
    assert {array.site for array in store.arrays} == set(sites)
    assert_plain(store, with_images, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_golden_checkpoint_with_and_without_a_shared_prefix(variant: str, pictures: list[Path], tmp_path: Path) -> None:
    sites, tokens = [*TEXT_SITES, VISION, CONNECTOR], [*TOKENS, "image_mean"]
    asked = questions(pictures)
    together, apart = (
        run(variant, tmp_path / f"{shared}.zarr", asked, sites, tokens, shared_prefix=shared, token_budget=4096)
        for shared in (True, False)
    )
    assert_plain(together, asked, variant)
    wanted = values(apart)
    for key, got in values(together).items():
        assert np.abs(got - wanted[key]).max() <= TOLERANCE * np.abs(wanted[key]).max(), key


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
