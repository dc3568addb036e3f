"""Stored activations equal a plain run with `output_hidden_states=True`, for every family that `sonde models` names."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine import Sample, extract
from sonde.engine.batches import plan_batches
from sonde.engine.families import FAMILIES, Family
from sonde.errors import InputError
from sonde.store import Store

from .reference import ENCODERS, Reference
from .runs import BUDGET, configuration, prompt, values
from .tiny import LAYERS, families

TOKENS = ("last", "first", "mean", "text_mean")
LENGTHS = (3, 60, 1, 17, 55, 40, 5, 2, 9)
RANGE = 6
all_families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)
image_families = pytest.mark.parametrize(
    "family", [f for f in FAMILIES if "image" in f.takes], ids=lambda family: family.model_type
)


def mixed_samples(family: Family, pictures: list[Path], *, at_least: int = 0) -> list[Sample]:
    """Prompts of very different lengths, with no, one or two pictures, as many as the family takes."""
    most = 0 if family.takes == "text" else 1 if "one image" in family.takes else 2
    samples = []
    for i, n_words in enumerate(LENGTHS):
        n_images = max(min(i % 3, most), at_least)
        images = tuple(pictures[(i + k) % len(pictures)] for k in range(n_images))
        samples.append(Sample(f"s{i}", prompt=prompt(i, n_words), images=images))
    return samples


def run(folder: Path, out: Path, samples: list[Sample], **sections: dict[str, Any]) -> Store:
    sites = ["embed", "resid_pre", "resid_post", *([] if folder.name in ENCODERS else ["final_norm"])]
    config = configuration(folder, out, capture={"sites": sites, "tokens": list(TOKENS)}, run={"range_size": RANGE})
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return extract(config, samples=samples)


def assert_equal(store: Store, expected: list[dict[tuple[str, str, int], Any]], tolerance: float) -> None:
    """Every array of the store, to a tolerance relative to the largest magnitude of its layer."""
    for key, got in values(store).items():
        want = np.stack([sample[key] for sample in expected])
        assert got.shape == want.shape
        worst = np.abs(got - want).max() / np.abs(want).max()
        assert worst <= tolerance, (key, float(worst))


def test_every_family_can_be_made_and_every_one_made_is_a_row() -> None:
    assert families() == {family.model_type for family in FAMILIES}


@all_families
def test_float32_activations_equal_plain_runs(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(family.model_type)
    samples = mixed_samples(family, pictures)
    store = run(folder, tmp_path / "run.zarr", samples, data={"prompt_format": "raw"})
    assert store.schema.dtype == "float32"
    assert {a.site: a.layers for a in store.arrays if a.tokens == "last"} == {
        "embed": (0,),
        "resid_pre": tuple(range(LAYERS)),
        "resid_post": tuple(range(LAYERS)),
    } | ({} if family.model_type in ENCODERS else {"final_norm": (LAYERS - 1,)})
    reference = Reference(folder, family.model_type)
    lengths = [reference.inputs(sample, chat=False)["input_ids"].shape[1] for sample in samples[:RANGE]]
    batches = [{lengths[i] for i in batch} for batch in plan_batches(lengths, BUDGET)]
    assert len(batches) > 1, "a range of more than one batch"
    assert any(max(batch) >= min(batch) + 10 for batch in batches), "much padding"
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


@all_families
def test_bfloat16_activations_equal_plain_runs_to_rounding(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(family.model_type)
    samples = mixed_samples(family, pictures)
    store = run(folder, tmp_path / "run.zarr", samples, model={"dtype": "bfloat16"}, data={"prompt_format": "raw"})
    assert store.schema.dtype == "bfloat16"
    reference = Reference(folder, family.model_type, "bfloat16")
    assert_equal(store, [reference.run(sample) for sample in samples], 4 * 2**-8)


@image_families
def test_image_means_equal_plain_runs_when_every_sample_has_an_image(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(family.model_type)
    samples = mixed_samples(family, pictures, at_least=1)
    store = run(
        folder,
        tmp_path / "run.zarr",
        samples,
        data={"prompt_format": "raw"},
        capture={"tokens": [*TOKENS, "image_mean"]},
    )
    reference = Reference(folder, family.model_type)
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


@pytest.mark.parametrize("model_type", ["llava", "qwen2_5_vl"])
def test_prompts_and_messages_go_through_the_chat_template(
    model_type: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    (family,) = (f for f in FAMILIES if f.model_type == model_type)
    samples = mixed_samples(family, pictures)
    turn = {"role": "user", "content": [{"type": "text", "text": prompt(99, 4)}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": prompt(98, 2)}]}
    samples += [Sample("chat", messages=(turn, answer, turn), images=(pictures[0],))]
    store = run(model_folder(model_type), tmp_path / "run.zarr", samples)
    assert store.schema.data["prompt_format"] == "chat"
    reference = Reference(model_folder(model_type), model_type)
    assert_equal(store, [reference.run(sample, chat=True) for sample in samples], 1e-5)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_asking_an_encoder_for_a_final_norm_is_an_input_error(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model_folder(model_type)
    with pytest.raises(InputError, match=r"no final norm.*leave final_norm out"):
        run(folder, tmp_path / "run.zarr", [Sample("a", prompt="a")], capture={"sites": ["final_norm"]})
