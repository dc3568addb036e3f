"""What the engine stores of LaVIT is what its module computes of each sample alone, given ids made by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sonde.engine import Sample, extract
from sonde.engine.config import ExtractConfig, ModelSection
from sonde.engine.models import find_port
from sonde.engine.packs import Pack
from sonde.engine.session import Session
from sonde.errors import InputError, ModelError
from sonde.store import Store

from .models.golden import GOLDEN, listening
from .runs import configuration, contents, prompt, values
from .test_sharing import packs_of
from .tiny_parts import WORDS

TEXT_SITES = ("embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "z", "k", "v", "final_norm")
SITES = (*TEXT_SITES, "vision/resid_post", "connector")
OF_TEXT = ("last", "first", "index:1", "mean", "text_mean", "max", "span:x", "all")
OF_IMAGES = (*OF_TEXT, "image_mean", "all:image")
# Relative to the largest magnitude of an array's layer, in float32.
TOLERANCE = 1e-5


@pytest.fixture(params=["golden", "random"])
def folder(request: pytest.FixtureRequest, model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The golden checkpoint with a tokenizer of words, and a random one of other sizes in shards."""
    if request.param == "random":
        return model_folder("lavit")
    place = Path(shutil.copytree(GOLDEN / "lavit", tmp_path / "golden"))
    write_words(place / "language_model/tokenizer.json", json.loads((place / "config.json").read_text()))
    return place


def write_words(path: Path, config: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    n = config["image_start_id"]
    words = list(dict.fromkeys(["<unk>", "<s>", "</s>", *WORDS, *(f"word{i}" for i in range(n))]))[:n]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))


class Alone:
    """The module, run over one sample at a time."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        port = find_port(str(folder))
        assert port is not None
        loaded = port.load(folder, ModelSection(**{"name": str(folder), "dtype": "float32"} | settings))
        self.module, self.processor = loaded.module.eval(), loaded.processor

    def states(self, sample: Sample) -> tuple[dict[tuple[str, int], NDArray[Any]], NDArray[Any], NDArray[Any], Any]:
        """(site, layer) -> ``[position, hidden]``; which positions are the images' and the span's; token ids."""
        from transformers import DynamicCache

        config, decoder, tower = self.module.config, self.module.language_model, self.module.vision
        text = self.processor.tokenizer(sample.prompt, return_offsets_mapping=True)
        start, stop = sample.spans["x"]
        of_span = [a < stop and b > start for a, b in text["offset_mapping"]]
        ids: list[int] = []
        features, cache = None, DynamicCache()
        layers = range(len(decoder.layers))
        places = {
            **{f"resid_pre.{i}.input": decoder.layers[i] for i in layers},
            **{f"resid_post.{i}": decoder.layers[i] for i in layers},
            **{f"attn_out.{i}": decoder.layers[i].self_attn for i in layers},
            **{f"mlp_out.{i}": decoder.layers[i].mlp for i in layers},
            **{f"z.{i}.input": decoder.layers[i].self_attn.o_proj for i in layers},
            f"final_norm.{layers[-1]}": decoder.norm,
            **{f"vision/resid_post.{i}": block for i, block in enumerate(tower.encoder.layers)},
        }
        with torch.inference_mode(), listening(places) as heard:
            if sample.images:
                opened = [Image.open(path).convert("RGB") for path in sample.images]
                features, kept = self.module.choose(**self.processor.image_processor(opened))
                for n in kept.sum(dim=1).tolist():
                    ids += [config.image_start_token_id, *[config.image_token_id] * n, config.image_end_token_id]
            n_before = len(ids)
            ids += text["input_ids"]
            self.module(torch.tensor([ids]), image_features=features, use_cache=True, past_key_values=cache)
        states = {}
        for name, x in heard.items():
            site, _, layer = name.rpartition(".")
            states[site, int(layer)] = x.flatten(0, 1).numpy()
        for i in layers:
            for site, x in (("k", cache.layers[i].keys), ("v", cache.layers[i].values)):
                states[site, i] = x[0].transpose(0, 1).flatten(1).numpy()
        image = np.array(ids) == config.image_token_id
        states["embed", 0] = states["resid_pre", 0]
        states["connector", 0] = states["embed", 0][image]
        return states, image, np.array([False] * n_before + of_span), ids


def reduce(x: NDArray[Any], tokens: str, image: NDArray[Any], span: NDArray[Any]) -> NDArray[Any]:
    mask = {"image_mean": image, "text_mean": ~image, "span:x": span, "all:image": image}.get(tokens)
    if tokens in ("all", "all:image"):
        return x if mask is None else x[mask]
    if tokens in ("first", "index:1", "last"):
        return np.asarray(x[{"first": 0, "index:1": 1, "last": -1}[tokens]])
    return np.asarray(x.max(axis=0) if tokens == "max" else (x if mask is None else x[mask]).mean(axis=0))


def assert_is(store: Store, alone: Alone, samples: Sequence[Sample]) -> None:
    """Every array, in every layer and row; and the ids and kinds of all tokens where these are kept."""
    expected = [alone.states(sample) for sample in samples]
    dense = values(store)
    assert store.arrays
    for spec in store.arrays:
        for layer in spec.layers:
            want = []
            for states, image, span, _ in expected:
                x = states[spec.site, layer]
                own = np.ones(len(x), dtype=bool) if spec.site in ("connector", "vision/resid_post") else image
                want.append(reduce(x, spec.tokens, own, span))
            got: Any = (
                store.tokens(spec.site, layer, spec.tokens) if spec.ragged else dense[spec.site, spec.tokens, layer]
            )
            largest = max(float(np.abs(x).max()) for x in want)
            for row, x in enumerate(want):
                assert got[row].shape == x.shape, (spec, layer, row)
                assert np.abs(got[row] - x).max() <= TOLERANCE * largest, (spec, layer, row)
            if spec.ragged and spec.tokens == "all" and spec.site == "embed":
                for place in store.ranges:
                    of_range = got.range(place.index)
                    rows = expected[place.start : place.stop]
                    assert of_range.token_ids.tolist() == [i for *_, ids in rows for i in ids]
                    assert of_range.modality.astype(bool).tolist() == [i for _, image, *_ in rows for i in image]


def sample(name: str, seed: int, n_words: int, images: Sequence[Path] = ()) -> Sample:
    text = prompt(seed, n_words)
    words = text.split()
    start = len(" ".join(words[:1])) + 1
    return Sample(name, prompt=text, images=tuple(images), spans={"x": (start, start + len(words[1]))})


def mixed(pictures: list[Path], at_least: int = 0) -> list[Sample]:
    """Of none, one and two pictures, and very different lengths."""
    lengths = (3, 40, 2, 17, 25, 9, 5, 30)
    return [
        sample(f"s{i}", i, n, [pictures[(i + k) % len(pictures)] for k in range(max(at_least, i % 3))])
        for i, n in enumerate(lengths)
    ]


def settings(folder: Path, out: Path, sites: Sequence[str], tokens: Sequence[str], **more: Any) -> dict[str, Any]:
    capture = {"sites": list(sites), "tokens": list(tokens)}
    return configuration(folder, out, capture=capture, data={"prompt_format": "raw"}, **more)


def test_golden_extraction_of_samples_with_and_without_images(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    samples = mixed(pictures)
    store = extract(settings(folder, tmp_path / "run.zarr", TEXT_SITES, OF_TEXT), samples=samples)
    assert_is(store, Alone(folder), samples)
    assert store.verify() == []


@pytest.mark.parametrize("visual_tokens", ["sample", "argmax"])
def test_golden_extraction_of_every_site_of_samples_with_images(
    folder: Path, visual_tokens: str, pictures: list[Path], tmp_path: Path
) -> None:
    samples, model = mixed(pictures, at_least=1), {"visual_tokens": visual_tokens}
    alone = Alone(folder, **model)
    n_kept = [int(alone.states(sample)[1].sum()) for sample in samples]
    assert len(set(n_kept)) > 2, "images of different numbers of tokens"
    store = extract(settings(folder, tmp_path / "run.zarr", SITES, OF_IMAGES, model=model), samples=samples)
    assert {spec.site for spec in store.arrays} == set(SITES)
    assert_is(store, alone, samples)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_golden_extraction_of_several_prompts_about_an_image(
    folder: Path, kernel: str, pictures: list[Path], tmp_path: Path
) -> None:
    samples = [
        sample(f"{i}-{k}", 10 * i + k, n, pictures[i : i + 1 + i % 2])
        for i in range(4)
        for k, n in enumerate((3, 20, 2, 9))
    ]
    stores = []
    for name, shared in (("together", True), ("apart", False)):
        run = {"shared_prefix": shared, "token_budget": 4096, "range_size": 16}
        config = settings(folder, tmp_path / f"{name}.zarr", SITES, OF_IMAGES, run=run, model={"attention": kernel})
        packs, _ = packs_of(config, samples)
        assert [len(pack.samples) for pack in packs] == ([4] * 4 if shared else [1] * 16)
        stores.append(extract(config, samples=samples))
    together, apart = map(values, stores)
    for key, want in apart.items():
        assert np.abs(together[key] - want).max() <= TOLERANCE * np.abs(want).max(), key
    assert_is(stores[0], Alone(folder, attention=kernel), samples)


def test_tokens_do_not_depend_on_batches_or_order(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    samples = mixed(pictures, at_least=1)
    capture = (("resid_post", "connector"), ("last", "all", "all:image"))
    one = extract(settings(folder, tmp_path / "one.zarr", *capture), samples=samples)
    run = {"token_budget": 40, "range_size": 2}
    other = extract(settings(folder, tmp_path / "other.zarr", *capture, run=run), samples=samples[::-1])
    for layer in one.arrays[0].layers:
        ours, theirs = (store.tokens("resid_post", layer, "all") for store in (one, other))
        for row in range(len(samples)):
            np.testing.assert_allclose(ours[row], theirs[len(samples) - 1 - row], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_tokens_do_not_depend_on_who_prepares(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = mixed(pictures, at_least=1)
    for name, encoders in (("threads", 0), ("processes", 2)):
        out, run = tmp_path / f"{name}.zarr", {"encoders": encoders}
        extract(settings(model_folder("lavit"), out, ("resid_post",), ("last", "all"), run=run), samples=samples)
    assert contents(tmp_path / "processes.zarr") == contents(tmp_path / "threads.zarr")


def test_another_seed_keeps_other_patches(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    samples = [sample("a", 1, 5, pictures[:1]), sample("b", 2, 5, pictures[:2])]
    lengths = []
    for seed in range(4):
        out = tmp_path / f"{seed}.zarr"
        store = extract(settings(folder, out, ("connector",), ("all",), model={"seed": seed}), samples=samples)
        lengths.append(tuple(store.tokens("connector", 0).lengths.tolist()))
        assert store.schema.model["visual_tokens"] == f"sampled by image, seed {seed}"
    assert len(set(lengths)) > 1


def test_the_vision_tower_alone_is_kept(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    samples = mixed(pictures, at_least=1)
    store = extract(settings(folder, tmp_path / "run.zarr", ("vision/resid_post",), ("mean", "max")), samples=samples)
    assert_is(store, Alone(folder), samples)


@pytest.mark.parametrize(("keeps", "bias"), [("all", (100.0, -100.0)), ("none", (-100.0, 100.0))])
def test_an_image_that_keeps_all_or_no_patches(
    keeps: str, bias: tuple[float, float], folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copy"))
    file = copied / "visual_tokenizer/tokenizer_encoder.bin"
    tensors = torch.load(file, weights_only=True)
    tensors["token_predictor.out_conv.4.bias"] = torch.tensor(bias)
    torch.save(tensors, file)
    samples, alone = mixed(pictures), Alone(copied)
    per_image = alone.module.config.tokens_per_image * (keeps == "all")
    n_kept = [int(alone.states(sample)[1].sum()) for sample in samples]
    assert n_kept == [per_image * len(sample.images) for sample in samples]
    store = extract(settings(copied, tmp_path / "run.zarr", TEXT_SITES, OF_TEXT), samples=samples)
    assert_is(store, alone, samples)
    with_images = settings(copied, tmp_path / "images.zarr", ("connector",), ("mean",))
    if keeps == "none":
        with pytest.raises(ModelError, match="keeps no visual token of the image of row"):
            extract(with_images, samples=mixed(pictures, at_least=1))
    else:
        assert_is(extract(with_images, samples=mixed(pictures, at_least=1)), alone, mixed(pictures, at_least=1))


def test_noise_is_not_rounded_on_its_way_to_the_model(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    model = {"dtype": "bfloat16"}
    config = settings(model_folder("lavit"), tmp_path / "run.zarr", ("embed",), ("last",), model=model)
    session = Session.open(ExtractConfig.load(config))
    encoded = session.encoder(0, sample("a", 1, 5, pictures[:2]))
    batch = session.collate([Pack((encoded,))]).to(session.model.device, torch.bfloat16)
    session.close()
    assert batch.inputs["noise"].equal(encoded.other["noise"])
    assert batch.inputs["pixel_values"].equal(encoded.other["pixel_values"].bfloat16())


def test_a_place_in_the_picture_is_refused(folder: Path, pictures: list[Path], tmp_path: Path) -> None:
    config = settings(folder, tmp_path / "run.zarr", ("resid_post",), ("image:0,0",))
    with pytest.raises(InputError, match="keeps other patches of every picture: leave image:r,c out"):
        extract(config, samples=mixed(pictures, at_least=1))


def test_a_question_through_the_template_is_the_published_prompt(folder: Path) -> None:
    processor = Alone(folder).processor
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is red?"}]}]
    text = processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<img><image></img>Question: What is red? Answer:"
