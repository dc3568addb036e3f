"""The states that vLLM gives are those of transformers: to rounding in float32, to its rounding in bfloat16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sonde.engine import Sample
from sonde.store import Store, as_float32

from ..engine.runs import values
from .runs import image_samples, require_vllm, run, text_samples
from .tiny import HIDDEN, LAYERS

pytestmark = require_vllm()

# Of the norm of all that a layer keeps; and of the direction of each vector.
BOUND = {"float32": 1e-5, "bfloat16": 1e-2}
COSINE = {"float32": 1 - 1e-5, "bfloat16": 0.9999}
SITES = ["embed", "resid_pre", "resid_post"]


def assert_alike(mine: NDArray[np.float32], its: NDArray[np.float32], dtype: str, what: object) -> None:
    mine, its = mine.astype(np.float64), its.astype(np.float64)
    assert np.linalg.norm(mine - its) <= BOUND[dtype] * np.linalg.norm(its), what
    cosine = (mine * its).sum(axis=1) / (np.linalg.norm(mine, axis=1) * np.linalg.norm(its, axis=1))
    assert cosine.min() >= COSINE[dtype], what


def assert_same_states(mine: Store, its: Store, dtype: str) -> None:
    assert mine.arrays == its.arrays
    found, expected = values(mine), values(its)
    for key, value in expected.items():
        assert_alike(found[key], value, dtype, key)


def both(folder: Path, out: Path, samples: list[Sample], dtype: str, **capture: Any) -> tuple[Store, Store]:
    runs = [run(b, folder, out / b, samples, model={"dtype": dtype}, capture=capture) for b in ("vllm", "transformers")]
    return runs[0], runs[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
def test_text(model_type: str, dtype: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    tokens = ["last", "first", "index:-1", "mean"]
    mine, its = both(model_folder(model_type), tmp_path, text_samples(), dtype, sites=SITES, tokens=tokens)
    assert_same_states(mine, its, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_images(
    model_type: str, dtype: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    tokens = ["last", "mean", "image_mean", "text_mean"]
    samples, sites = image_samples(pictures), [*SITES, "connector"]
    mine, its = both(model_folder(model_type), tmp_path, samples, dtype, sites=sites, tokens=tokens)
    assert_same_states(mine, its, dtype)


def test_text_and_images_in_one_run(model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path) -> None:
    samples = [*text_samples()[:6], *image_samples(pictures)]
    mine, its = both(model_folder("qwen2_5_vl"), tmp_path, samples, "float32", sites=["resid_post"], tokens=["mean"])
    assert_same_states(mine, its, "float32")


def test_all_tokens_maxima_and_spans(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    samples = [Sample(s.id, prompt=f"the red {s.prompt}", spans={"colour": (4, 7)}) for s in text_samples()]
    tokens = ["all", "max", "span:colour", "index:1"]
    mine, its = both(model_folder("qwen2"), tmp_path, samples, "float32", sites=["resid_post"], tokens=tokens)
    assert_same_states(mine, its, "float32")
    for layer in range(LAYERS):
        for a, b in zip(*(store.tokens("resid_post", layer) for store in (mine, its)), strict=True):
            assert a.offsets.tolist() == b.offsets.tolist()
            assert a.token_ids.tolist() == b.token_ids.tolist()
            assert a.values.shape[1] == HIDDEN
            assert_alike(as_float32(a.values), as_float32(b.values), "float32", layer)


def test_chosen_layers_alone_are_cached(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    mine, its = both(
        model_folder("qwen2"), tmp_path, text_samples(), "float32", sites=["resid_post"], tokens=["last"], layers=[1, 3]
    )
    assert {key[2] for key in values(mine)} == {1, 3}
    assert_same_states(mine, its, "float32")
