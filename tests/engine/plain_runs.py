"""One sample at a time through the module of an image-text model, and a store held against that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import DynamicCache

from sonde.engine import Sample
from sonde.engine.capture import CONNECTOR, VISION
from sonde.engine.model import Model
from sonde.engine.models.processor import CLIP_MEAN, CLIP_STD
from sonde.store import Store

from .models.golden import listening
from .runs import values

TEXT_SITES = ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "k", "v", "final_norm"]
TOKENS = ["last", "first", "index:1", "mean", "text_mean", "max", "span:thing", "all"]
ALL_SITES, ALL_TOKENS = [*TEXT_SITES, VISION, CONNECTOR], [*TOKENS, "image_mean"]
# Relative to the largest magnitude of an array, in float32.
TOLERANCE = 1e-5

States = dict[tuple[str, int], NDArray[np.float32]]


def samples_of(pictures: list[Path], images: tuple[int, ...], filler: str, thing: str) -> list[Sample]:
    """Prompts of very different lengths, each with a span, with as many images as are said in turn."""
    samples = []
    for i, n_words in enumerate((3, 8, 0, 1, 6, 4)):
        text = " ".join(["a", *[filler] * n_words, thing, "of three"])
        n_images = images[i % len(images)]
        mine = tuple(pictures[(i + k) % len(pictures)] for k in range(n_images))
        samples.append(Sample(f"s{i}", prompt=text, images=mine, spans={"thing": thing}))
    return samples


def questions(pictures: list[Path], asked: Sequence[str], thing: str) -> list[Sample]:
    """Several prompts about one image, and about two."""
    return [
        Sample(f"{n}-{i}", prompt=f"{text} {thing}", images=tuple(pictures[:n]), spans={"thing": thing})
        for n in (1, 2)
        for i, text in enumerate(asked)
    ]


class Plain:
    """A model with hooks on its parts, and inputs that are made here.

    ``vision_blocks`` are its vision tower's, ``image`` what stands for one in a text, and ``thing`` the span's text as
    it is split inside of one.
    """

    def __init__(self, model: Model, vision_blocks: Any, image: tuple[str, str, str], thing: str) -> None:
        self.module, self.tokenizer = model.module, model.processor.tokenizer
        self.vision_blocks = vision_blocks
        config = self.module.config
        self.n_vectors, self.image_id = config.tokens_per_image, config.image_token_id
        self.size = config.vision_config.image_size
        before, place, behind = image
        self.image = before + place * self.n_vectors + behind
        self.thing: list[int] = self.tokenizer(thing, add_special_tokens=False)["input_ids"]

    def pixels(self, path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        values = (np.asarray(image, dtype=np.float64) / 255 - CLIP_MEAN) / CLIP_STD
        return torch.from_numpy(values.transpose(2, 0, 1)).float()

    def ids(self, sample: Sample) -> list[int]:
        found: list[int] = self.tokenizer(self.image * len(sample.images) + str(sample.prompt))["input_ids"]
        return found

    def run(self, sample: Sample) -> States:
        """(site, layer) -> ``[position, vector]``."""
        decoder = self.module.language_model
        places: dict[str, Any] = {"norm": decoder.norm}
        for i, block in enumerate(decoder.layers):
            places |= {f"pre {i}.input": block, f"post {i}": block, f"attn {i}": block.self_attn, f"mlp {i}": block.mlp}
            places[f"z {i}.input"] = block.self_attn.o_proj
        if sample.images:
            places |= {f"patches {i}": block for i, block in enumerate(self.vision_blocks)}
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
        n = len(self.thing)
        [start] = [i for i in range(len(ids)) if ids[i : i + n] == self.thing]
        return np.asarray(x[start : start + n].mean(axis=0))


def assert_plain(store: Store, samples: list[Sample], plain: Plain, sites: list[str], tokens: list[str]) -> None:
    """Hold everything in a store of these sites and tokens against plain runs, all prompts together."""
    assert {array.site for array in store.arrays} == set(sites)
    assert {array.tokens for array in store.arrays} == set(tokens)
    states = [plain.run(sample) for sample in samples]
    for (site, selector, layer), got in values(store).items():
        pairs = zip(samples, states, strict=True)
        want = np.stack([plain.pooled(sample, site, selector, own[site, layer]) for sample, own in pairs])
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= TOLERANCE * np.abs(want).max(), (site, selector, layer)
    for spec in store.arrays:
        for layer in spec.layers if spec.ragged else ():
            largest = max(float(np.abs(own[spec.site, layer]).max()) for own in states)
            for i, own in enumerate(states):
                got = np.asarray(store.tokens(spec.site, layer)[i])
                assert got.shape == own[spec.site, layer].shape
                assert np.abs(got - own[spec.site, layer]).max() <= TOLERANCE * largest, (spec.site, layer)


def assert_alike(store: Store, other: Store) -> None:
    """Hold every vector of a store against that of another."""
    wanted = values(other)
    assert wanted
    for key, got in values(store).items():
        assert np.abs(got - wanted[key]).max() <= TOLERANCE * np.abs(wanted[key]).max(), key
