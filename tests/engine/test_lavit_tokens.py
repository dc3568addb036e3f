"""Which of an image's patches LaVIT keeps is drawn once, of the image and the seed, by the model's own odds."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.stats import kstest

from sonde.engine.config import ModelSection
from sonde.engine.model import Model, load_model
from sonde.engine.models.lavit.processor import SampledImages
from sonde.engine.models.lavit.selector import kept
from sonde.engine.models.processor import SquareImages


@pytest.fixture
def images(pictures: list[Path]) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in pictures]


@pytest.fixture
def lavit(load: Callable[[str], Model]) -> Model:
    return load("lavit")


def load_with(folder: Path, **settings: Any) -> Model:
    return load_model(ModelSection(**{"name": str(folder), "dtype": "float32"} | settings))


def noise_of(model: Model, images: list[Image.Image]) -> torch.Tensor:
    noise: torch.Tensor = model.processor.image_processor(images)["noise"]
    return noise


def test_noise_is_gumbel_distributed_and_finite() -> None:
    [noise] = SampledImages(SquareImages(8), 200_000, 0)([Image.new("RGB", (8, 8), "red")])["noise"]
    assert noise.dtype == torch.float32
    assert torch.isfinite(noise).all()
    for of_class in noise.double().T:
        assert kstest(of_class.numpy(), "gumbel_r").pvalue > 1e-3
    assert float(torch.corrcoef(noise.T)[0, 1].abs()) < 0.01


def test_noise_is_of_the_image_and_the_seed_alone(
    lavit: Model, images: list[Image.Image], model_folder: Callable[[str], Path]
) -> None:
    together = noise_of(lavit, images)
    assert together.shape == (len(images), lavit.module.config.tokens_per_image, 2)
    assert together.flip(0).equal(noise_of(lavit, images[::-1]))
    for image, its in zip(images, together, strict=True):
        assert noise_of(lavit, [image])[0].equal(its)
    assert len({its.numpy().tobytes() for its in together}) == len(images)
    other = load_with(model_folder("lavit"), seed=1)
    assert not (noise_of(other, images) == together).any(dim=(1, 2)).any()
    assert noise_of(load_with(model_folder("lavit")), images).equal(together)


def test_noise_is_of_what_the_model_sees_and_not_of_the_file(
    lavit: Model, images: list[Image.Image], tmp_path: Path
) -> None:
    images[0].save(tmp_path / "same.bmp")
    same = Image.open(tmp_path / "same.bmp").convert("RGB")
    other = images[0].copy()
    other.putpixel((0, 0), tuple(255 - x for x in other.getpixel((0, 0))))
    noise = noise_of(lavit, [images[0], same, other])
    assert noise[0].equal(noise[1])
    assert not noise[0].equal(noise[2])


def test_noise_is_the_same_from_threads_and_copies(lavit: Model, images: list[Image.Image]) -> None:
    want = noise_of(lavit, images)
    copied = pickle.loads(pickle.dumps(lavit.processor))
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(8) as pool:
        for processor in (lavit.processor, copied):
            turns = [i % len(images) for i in range(64)]
            found = pool.map(lambda i, its=processor: its.image_processor([images[i]])["noise"][0], turns)
            assert all(its.equal(want[i]) for i, its in zip(turns, found, strict=True))
    assert torch.random.get_rng_state().equal(before)


def test_the_likelier_is_taken_without_noise(
    images: list[Image.Image], model_folder: Callable[[str], Path], lavit: Model
) -> None:
    model = load_with(model_folder("lavit"), visual_tokens="argmax", seed=3)
    assert model.provenance["visual_tokens"] == "argmax"
    prepared = model.processor.image_processor(images)
    assert prepared.keys() == {"pixel_values"}
    _, chosen = model.module.choose(**prepared)
    assert chosen.any()
    assert not chosen.all()
    zeros = torch.zeros(*chosen.shape, 2)
    assert lavit.module.choose(prepared["pixel_values"], zeros)[1].equal(chosen)


def test_the_store_says_how_tokens_are_chosen(lavit: Model, model_folder: Callable[[str], Path]) -> None:
    assert lavit.provenance["visual_tokens"] == "sampled by image, seed 0"
    assert load_with(model_folder("lavit"), seed=7).provenance["visual_tokens"] == "sampled by image, seed 7"


def test_ties_keep() -> None:
    logits = torch.tensor([[[0.5, 0.5], [0.5, 0.6], [0.6, 0.5]]]).log()
    assert kept(logits, None).tolist() == [[True, False, True]]
    assert kept(torch.zeros(1, 2, 2), torch.tensor([[[1.0, 1.0], [-88.0, 88.0]]])).tolist() == [[True, False]]


def test_features_are_those_of_kept_patches_image_after_image(lavit: Model, images: list[Image.Image]) -> None:
    prepared = lavit.processor.image_processor(images)
    with torch.inference_mode():
        features, chosen = lavit.module.choose(**prepared)
        assert lavit.module.image_features(**prepared).equal(features)
        alone = [
            lavit.module.choose(**{name: x[i : i + 1] for name, x in prepared.items()}) for i in range(len(images))
        ]
    assert chosen.dtype == torch.bool
    assert features.shape == (int(chosen.sum()), lavit.module.config.text_config.hidden_size)
    assert torch.cat([its for _, its in alone]).equal(chosen)
    torch.testing.assert_close(torch.cat([its for its, _ in alone]), features, rtol=1e-4, atol=1e-5)


def test_patches_are_kept_as_often_as_the_model_says(lavit: Model, images: list[Image.Image]) -> None:
    config, n = lavit.module.config, 2000
    with torch.inference_mode():
        patches = lavit.module.vision(lavit.processor.image_processor(images)["pixel_values"]).last_hidden_state[:, 1:]
        logits = lavit.module.selector(patches)[:1]
    squares = SquareImages(config.vision_config.image_size)
    share = torch.zeros(config.tokens_per_image)
    for seed in range(n):
        noise = SampledImages(squares, config.tokens_per_image, seed)(images[:1])["noise"]
        share += kept(logits, noise)[0] / n
    odds = logits[0, :, 0].exp()
    assert float(odds.min()) < 0.45 < float(odds.max())
    assert ((share - odds).abs() < 5 * (odds * (1 - odds) / n).sqrt()).all()


def test_the_choice_is_made_in_float32_whatever_the_dtype(
    model_folder: Callable[[str], Path], images: list[Image.Image]
) -> None:
    model = load_with(model_folder("lavit"), dtype="bfloat16")
    assert {x.dtype for x in model.module.selector.parameters()} == {torch.float32}
    assert model.module.dtype == torch.bfloat16
    prepared = model.processor.image_processor(images)
    seen: list[torch.Tensor] = []
    handle = model.module.selector.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        features, chosen = model.module.choose(prepared["pixel_values"].bfloat16(), prepared["noise"])
    handle.remove()
    assert (seen[0].dtype, features.dtype) == (torch.float32, torch.bfloat16)
    scores = seen[0] + prepared["noise"]
    assert chosen.equal(scores[..., 0] >= scores[..., 1])
