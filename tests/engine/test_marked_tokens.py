"""What a store holds of spans, of places in a picture, and of the tokens of one modality, against plain runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sonde.engine import Sample, extract
from sonde.engine.plan import plan_extraction
from sonde.engine.scenes import write_scenes
from sonde.store import as_float32

from .reference import Reference
from .runs import configuration, prompt, values
from .tiny_parts import HIDDEN, LAYERS

RAW = {"prompt_format": "raw"}


def place_of(needle: list[int], ids: list[int]) -> slice:
    """Where some ids stand, which must be one place."""
    [start] = [i for i in range(len(ids)) if ids[i : i + len(needle)] == needle]
    return slice(start, start + len(needle))


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl", "kosmos-2"])
def test_a_span_is_the_mean_of_the_states_at_its_tokens(
    model_type: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(model_type)
    samples = []
    for i, n_words in enumerate((1, 30, 4, 12, 2)):
        text = f"{prompt(i, n_words)} red star three {prompt(i + 9, 3 * i)}"
        images = () if model_type == "llama" else (pictures[i],)
        start = text.index("red star three")
        spans = {"thing": (start, start + 8), "thing and number": (start, start + 14)}
        samples.append(Sample(f"s{i}", prompt=text, images=images, spans=spans))
    capture = {"sites": ["embed", "resid_post"], "tokens": ["span:thing", "last", "span:thing and number", "mean"]}
    store = extract(configuration(folder, tmp_path / "run.zarr", data=RAW, capture=capture), samples=samples)
    reference, got = Reference(folder, model_type), values(store)
    tokenizer = getattr(reference.processor, "tokenizer", reference.processor)
    glue = "" if model_type == "kosmos-2" else " "
    for i, sample in enumerate(samples):
        plain = reference.run(sample)
        ids = reference.inputs(sample, chat=False)["input_ids"][0].tolist()
        for name, words in (("span:thing", "red star"), ("span:thing and number", "red star three")):
            where = place_of(tokenizer(glue + words, add_special_tokens=False)["input_ids"], ids)
            for site, layer, point in (("embed", 0, 0), *(("resid_post", n, n + 1) for n in range(LAYERS))):
                expected = reference.points[point][where].mean(axis=0)
                np.testing.assert_allclose(got[site, name, layer][i], expected, rtol=1e-4, atol=1e-5)
        # The other selectors beside them are what they were.
        np.testing.assert_allclose(
            got["resid_post", "last", 1][i], plain["resid_post", "last", 1], rtol=1e-4, atol=1e-5
        )


def test_places_in_a_picture_are_the_states_at_their_tokens(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder("qwen2_5_vl")
    samples = [Sample(f"s{i}", prompt=prompt(i, 2 + 9 * i), images=(pictures[i],)) for i in range(4)]
    tokens = ["image:1,-1", "image:0,1:1x2", "image_mean"]
    capture = {"sites": ["resid_post", "connector"], "tokens": tokens}
    store = extract(configuration(folder, tmp_path / "run.zarr", data=RAW, capture=capture), samples=samples)
    reference, got = Reference(folder, "qwen2_5_vl"), values(store)
    for i, sample in enumerate(samples):
        reference.run(sample)
        inputs = reference.inputs(sample, chat=False)
        image = inputs["input_ids"][0].numpy() == reference.processor.image_token_id
        _, height, width = (inputs["image_grid_thw"][0].numpy() // 2).tolist()
        for (site, layer), point in {("resid_post", 2): 3, ("connector", 0): 0}.items():
            grid = reference.points[point][image].reshape(height, width, -1)
            expected = {tokens[0]: grid[1, -1], tokens[1]: np.array_split(grid, 2, axis=1)[1].mean(axis=(0, 1))}
            for name, x in expected.items():
                np.testing.assert_allclose(got[site, name, layer][i], x, rtol=1e-4, atol=1e-5)


def test_the_tokens_of_one_modality_are_kept_alone(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder("llava")
    samples = [Sample(f"s{i}", prompt=prompt(i, 3 + i), images=tuple(pictures[: 1 + i % 2])) for i in range(5)]
    capture = {"sites": ["resid_post", "connector"], "tokens": ["all:image", "last", "all:text", "all"]}
    store = extract(configuration(folder, tmp_path / "run.zarr", data=RAW, capture=capture), samples=samples)
    assert store.verify() == []
    assert {spec.tokens for spec in store.arrays if spec.site == "connector"} == {"all:image", "last", "all"}
    reference = Reference(folder, "llava")
    for i, sample in enumerate(samples):
        reference.run(sample)
        ids = reference.inputs(sample, chat=False)["input_ids"][0].numpy()
        image = ids == reference.processor.image_token_id
        for tokens, mask in (("all:image", image), ("all:text", ~image), ("all", image | True)):
            layer = store.tokens("resid_post", 1, tokens)
            np.testing.assert_allclose(as_float32(layer[i]), reference.points[2][mask], rtol=1e-4, atol=1e-5)
            range_ = store.ranges[i // 4]
            part = layer.range(range_.index)
            here = slice(*part.offsets[i - range_.start :][:2])
            assert part.token_ids[here].tolist() == ids[mask].tolist()
            assert part.modality[here].tolist() == image[mask].tolist()
        got = store.tokens("connector", 0, "all:image")[i]
        np.testing.assert_allclose(as_float32(got), reference.points[0][image], rtol=1e-4, atol=1e-5)


def test_a_dry_run_counts_the_bytes_of_one_modality(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [Sample(f"s{i}", prompt=prompt(i, 3 + i), images=(pictures[0],)) for i in range(4)]
    for tokens in ("all:image", "all:text"):
        config = configuration(
            model_folder("llava"), tmp_path / f"{tokens}.zarr", data=RAW, capture={"tokens": [tokens]}
        )
        planned = plan_extraction(config, samples=samples)
        layer = extract(config, samples=samples).tokens("resid_post", 0, tokens)
        assert planned.bytes_written == LAYERS * int(layer.lengths.sum()) * HIDDEN * 4


def test_a_sample_without_what_is_asked_for_is_skipped(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    tall, small = tmp_path / "tall.png", tmp_path / "small.png"
    Image.new("RGB", (32, 64)).save(tall)
    Image.new("RGB", (32, 32)).save(small)
    spans = {"colour": "red"}
    samples = [
        Sample("whole", prompt="a red star", images=(tall,), spans=spans),
        Sample("no span", prompt="a red star", images=(tall,)),
        Sample("no image", prompt="a red star", spans=spans),
        Sample("no such row", prompt="a red star", images=(small,), spans=spans),
    ]
    config = configuration(
        model_folder("qwen2_vl"),
        tmp_path / "run.zarr",
        data=RAW,
        capture={"tokens": ["span:colour", "image:5,0", "all:image"]},
        run={"on_error": "skip"},
    )
    store = extract(config, samples=samples)
    assert store.skipped == {
        1: "sample 'no span': tokens span:colour: it has no span 'colour'; its spans are none",
        2: "sample 'no image': tokens image:5,0: it has no image positions",
        3: "sample 'no such row': tokens image:5,0: its first image has 4 x 4 tokens",
    }
    assert store.tokens("resid_post", 0, "all:image").lengths.tolist() == [32, 0, 0, 0]


def test_the_caption_and_the_categories_of_a_task_are_selectors(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    scenes = write_scenes(tmp_path / "scenes", n_images=4, size=32)
    folders = {"annotations": scenes / "annotations", "images": scenes / "images"}
    for task, tokens in (("entailment", ["span:caption"]), ("recognition", ["span:circle", "span:star"])):
        data: dict[str, Any] = {"task": task, "cue": True, "limit": 4, **folders}
        config = configuration(model_folder("llava"), tmp_path / f"{task}.zarr", data=data, capture={"tokens": tokens})
        store = extract(config)
        assert store.valid.all()
        assert [spec.tokens for spec in store.arrays] == tokens
        x = as_float32(store.layer("resid_post", tokens[-1], 1).numpy())
        assert np.isfinite(x).all()
        assert len(np.unique(x, axis=0)) == len(x)
