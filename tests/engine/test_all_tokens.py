"""Every position of every sample is kept, and can be pooled later without the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine import Sample, extract
from sonde.store import Store, as_float32

from .runs import configuration, contents, text_samples, values

CAPTURE = {"sites": ["embed", "resid_post", "final_norm"], "tokens": ["last", "all", "mean"]}


def states_of(folder: Path, samples: list[Sample]) -> list[tuple[list[int], list[np.ndarray[Any, Any]]]]:
    """(token ids, every hidden state ``[token, hidden]``) of each sample, run alone through transformers."""
    import torch
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for sample in samples:
        inputs = tokenizer(sample.prompt, return_tensors="pt")
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        out.append((inputs["input_ids"][0].tolist(), [state[0].numpy() for state in states]))
    return out


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


def test_all_tokens_are_those_of_each_sample_run_alone(llama: Path, tmp_path: Path) -> None:
    samples = text_samples(10)
    store = extract(configuration(llama, tmp_path / "run.zarr", capture=CAPTURE), samples=samples)
    expected = states_of(llama, samples)
    n_layers = len(expected[0][1]) - 1
    # Layer l of the stream comes out of block l; the last one's is before the final norm, which is its own site.
    layers = [
        ("embed", 0, 0),
        *(("resid_post", i, i + 1) for i in range(n_layers - 1)),
        ("final_norm", n_layers - 1, -1),
    ]
    for site, number, index in layers:
        layer = store.tokens(site, number)
        assert layer.lengths.tolist() == [len(ids) for ids, _ in expected]
        for i, (ids, states) in enumerate(expected):
            np.testing.assert_allclose(layer[i], states[index], rtol=1e-4, atol=1e-5)
            place = store.ranges[i // 4]
            of_range = layer.range(place.index)
            a, b = of_range.offsets[i - place.start : i - place.start + 2]
            assert of_range.token_ids[a:b].tolist() == ids
            assert not of_range.modality.any()
    assert store.verify() == []


def test_pooling_later_gives_what_the_model_run_kept(llama: Path, tmp_path: Path) -> None:
    samples = text_samples(10)
    whole = extract(configuration(llama, tmp_path / "whole.zarr", capture=CAPTURE), samples=samples)
    capture = {"sites": CAPTURE["sites"], "tokens": ["all"]}
    store = extract(configuration(llama, tmp_path / "run.zarr", capture=capture), samples=samples)
    for tokens in ("last", "mean"):
        store.pool(tokens)
    assert set(values(store)) == set(values(whole))
    for key, expected in values(whole).items():
        np.testing.assert_allclose(as_float32(store.layer(*key).numpy()), expected, rtol=1e-5, atol=1e-6)


def test_images_are_told_from_text(model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path) -> None:
    folder = model_folder("llava")
    samples = [Sample(f"s{i}", prompt=f"a {i}", images=(pictures[i],)) for i in range(3)]
    capture = {"tokens": ["all", "image_mean", "text_mean"]}
    store = extract(configuration(folder, tmp_path / "run.zarr", capture=capture), samples=samples)
    for layer in store.array("resid_post", "all").layers:
        [tokens] = list(store.tokens("resid_post", layer))
        for i in range(3):
            kinds = tokens.modality[tokens.offsets[i] : tokens.offsets[i + 1]]
            x = as_float32(tokens.sample(i))
            for name, kind in (("image_mean", 1), ("text_mean", 0)):
                row = as_float32(store.layer("resid_post", name, layer).numpy())[i]
                np.testing.assert_allclose(x[kinds == kind].mean(axis=0), row, rtol=1e-4, atol=1e-5)


def test_a_run_of_all_tokens_that_was_killed_ends_with_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE)
    extract(config, samples=text_samples(10))
    whole = contents(tmp_path / "run.zarr")
    store = Store.open(tmp_path / "run.zarr")
    store.forget(store.ranges[1:])
    next((tmp_path / "run.zarr").glob("activations/resid_post/all/00000001/values/c.*")).unlink()
    assert extract(config, samples=text_samples(10), resume=True).complete
    assert contents(tmp_path / "run.zarr") == whole


def test_a_skipped_sample_has_no_tokens(llama: Path, tmp_path: Path) -> None:
    samples = [*text_samples(3), Sample("long", prompt=" ".join(["cat"] * 5000))]
    config = configuration(llama, tmp_path / "run.zarr", capture=CAPTURE, run={"on_error": "skip"})
    store = extract(config, samples=samples)
    layer = store.tokens("resid_post", 1)
    assert list(store.skipped) == [3]
    assert layer.lengths[3] == 0
    assert layer[3].shape == (0, layer.hidden_size)


def test_a_range_of_all_tokens_is_planned_by_its_memory(llama: Path, tmp_path: Path) -> None:
    config = configuration(llama, tmp_path / "run.zarr", capture={"tokens": ["all"]})
    del config["run"]["range_size"]
    assert extract(config, samples=text_samples(10)).schema.range_size == 10
