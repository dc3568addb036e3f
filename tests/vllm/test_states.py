"""vLLM's states in our store are those of transformers, to bfloat16 rounding; a run that was cut off goes on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sonde.engine import Sample, extract
from sonde.errors import InputError
from sonde.store import Store

from ..engine.runs import contents, prompt, values
from .tiny import LAYERS, write_model

pytest.importorskip("vllm", reason="vLLM is not installed here: it has an environment of its own")

# Of a layer's largest value, and between the vectors of a sample.
RELATIVE, COSINE = 2e-2, 0.9999
CAPTURE = {"sites": ["embed", "resid_pre", "resid_post"], "tokens": ["last", "first", "index:-2", "mean"]}
LENGTHS = (3, 60, 4, 17, 200, 40, 5, 2, 90, 33)

# Warnings of vLLM's and torch's own start.
pytestmark = pytest.mark.filterwarnings("ignore")


def samples(folder: Path, *, images: bool) -> list[Sample]:
    made = []
    for i, n_words in enumerate(LENGTHS):
        picture = folder / f"picture{i % 3}.png"
        if images and not picture.is_file():
            Image.frombytes("RGB", (40, 30), random.Random(i).randbytes(3600)).save(picture)
        made.append(Sample(f"s{i}", prompt=prompt(i, n_words), images=(picture,) if images and i % 2 else ()))
    return made


def run(folder: Path, out: Path, asked: list[Sample], backend: str, **options: Any) -> Store:
    config = {
        "model": {"name": str(folder), "backend": backend},
        "capture": options.pop("capture", CAPTURE),
        "run": {"out": out, "range_size": 4} | options.pop("run", {}),
    }
    return extract(config, samples=asked, **options)


def assert_alike(store: Store, other: Store) -> None:
    mine, its = values(store), values(other)
    assert mine.keys() == its.keys()
    for key, want in its.items():
        got = mine[key]
        assert np.abs(got - want).max() <= RELATIVE * np.abs(want).max(), key
        cosine = (got * want).sum(axis=1) / np.linalg.norm(got, axis=1) / np.linalg.norm(want, axis=1)
        assert cosine.min() >= COSINE, key


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "qwen2_5_vl"])
def test_states_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = write_model(kind, tmp_path / "model")
    asked = samples(tmp_path, images=kind.endswith("vl"))
    capture = CAPTURE
    if kind.endswith("vl"):
        # Every other sample has an image.
        capture = {"sites": CAPTURE["sites"], "tokens": ["last", "mean", "text_mean"]}
    stores = [run(folder, tmp_path / f"{name}.zarr", asked, name, capture=capture) for name in ("vllm", "transformers")]
    assert stores[0].schema.arrays == stores[1].schema.arrays
    assert {a.site: a.layers for a in stores[0].arrays}["resid_post"] == tuple(range(LAYERS))
    assert stores[0].schema.model["backend"] == "vllm"
    assert_alike(*stores)


def test_a_run_goes_on_and_ends_as_if_it_had_not_been_cut_off(tmp_path: Path) -> None:
    folder, asked = write_model("qwen2", tmp_path / "model"), samples(tmp_path, images=False)
    whole = tmp_path / "whole.zarr"
    run(folder, whole, asked, "vllm")
    cut = tmp_path / "cut.zarr"

    class Cut(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.ranges:
            raise Cut

    with pytest.raises(Cut):
        run(folder, cut, asked, "vllm", on_progress=stop)
    assert 0 < len(Store.open(cut).missing) < 3
    run(folder, cut, asked, "vllm", resume=True)
    assert_alike(Store.open(cut), Store.open(whole))
    committed = {name: data for name, data in contents(cut).items() if name.startswith("activations")}
    assert committed == {name: data for name, data in contents(whole).items() if name.startswith("activations")}


@pytest.mark.parametrize("site", ["attn_out", "k", "vision/resid_post"])
def test_a_site_that_vllm_cannot_give_is_refused_before_it_starts(site: str, tmp_path: Path) -> None:
    folder = write_model("qwen2", tmp_path / "model")
    with pytest.raises(InputError, match=r'backend = "transformers"|transformers'):
        run(folder, tmp_path / "run.zarr", samples(tmp_path, images=False), "vllm", capture={"sites": [site]})


def test_a_prompt_that_is_too_long_is_recorded_or_fails_the_run(tmp_path: Path) -> None:
    folder = write_model("qwen2", tmp_path / "model")
    asked = [*samples(tmp_path, images=False)[:3], Sample("long", prompt=prompt(1, 2000))]
    with pytest.raises(InputError, match=r"'long'.*tokens"):
        run(folder, tmp_path / "fail.zarr", asked, "vllm")
    store = run(folder, tmp_path / "skip.zarr", asked, "vllm", run={"on_error": "skip"})
    assert list(store.skipped) == [3]
