"""Samples that share a prefix have the numbers that they have alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.engine import Sample, extract
from sonde.engine.config import ExtractConfig
from sonde.engine.encoded import Encoded
from sonde.engine.families import FAMILIES, Family
from sonde.engine.packs import Pack, plan_packs
from sonde.engine.pipeline import Work, work_of
from sonde.engine.sample import Dataset
from sonde.engine.session import Session
from sonde.engine.sharing import Reach, Sharing
from sonde.store import Store, plan_ranges

from .runs import configuration, prompt, values

SUPPORTED = [family for family in FAMILIES if family.supported]
# Why samples of these stand alone.
ALONE = {
    "bert": "no, because the model's positions attend to what follows them",
    "roberta": "no, because the model's positions attend to what follows them",
    "bloom": "no, because the model counts positions by itself",
    "lfm2": "no, because the model has layers without attention",
    "mamba2": "no, because the model has layers without attention",
    "qwen3_next": "no, because the model has layers without attention",
    "qwen3_5": "no, because the model has layers without attention",
    "paligemma": "no, because the model's text attends to all of its prompt",
}
# Their vision side reads the prompt.
IMAGES_ALONE = {*ALONE, "instructblip"}

pytestmark = [
    pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def questions(family: Family, pictures: list[Path]) -> list[Sample]:
    """Prompts of different lengths about one picture, about two, and behind a long text."""
    lengths = (3, 20, 1, 9, 5)
    begins = {"few-shot": (prompt(7, 40) + " ", ())} if family.takes != "text with images" else {}
    if "image" in family.takes:
        begins["one"] = ("", tuple(pictures[:1]))
    if "one image" not in family.takes and family.takes != "text":
        begins["two"] = ("", tuple(pictures[1:3]))
    texts = [
        (f"{name}-{i}", begin + prompt(i, words), images)
        for name, (begin, images) in begins.items()
        for i, words in enumerate(lengths)
    ]
    return [
        Sample(name, prompt=text, images=images, spans={"end": (len(text) - 1, len(text))})
        for name, text, images in texts
    ]


def settings(folder: Path, out: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    run = {"token_budget": 4096, "range_size": 16} | sections.pop("run", {})
    return configuration(folder, out, data={"prompt_format": "raw"}, run=run, **sections)


def packs_of(config: dict[str, Any], samples: list[Sample]) -> tuple[list[Pack], str]:
    session = Session.open(ExtractConfig.load(config))
    try:
        dataset = Dataset(tuple(samples))
        ranges = plan_ranges(len(dataset), 16)
        work = work_of(ranges, dataset, 0, session, 4096, fail=True)
        return [pack for item in work if isinstance(item, Work) for pack in item.packs], session.sharing_note
    finally:
        session.close()


def assert_alike(together: Store, apart: Store) -> None:
    got = values(together)
    for key, want in values(apart).items():
        worst = np.abs(got[key] - want).max() / np.abs(want).max()
        assert worst <= 1e-5, (key, float(worst))


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.model_type)
def test_a_shared_prefix_changes_nothing(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder, samples = model_folder(family.model_type), questions(family, pictures)
    capture = {"sites": ["embed", "resid_post"], "tokens": ["last", "first", "index:-2", "mean", "max"]}
    config = settings(folder, tmp_path / "together.zarr", capture=capture)
    packs, note = packs_of(config, samples)
    assert note == ALONE.get(family.model_type, "yes")
    for images in (False, True):
        there = [pack for pack in packs if bool(pack.samples[0].other) == images]
        shares = family.model_type not in (IMAGES_ALONE if images else ALONE)
        assert all(bool(pack.prefix) == shares for pack in there)
    together = extract(config, samples=samples)
    apart = extract(
        settings(folder, tmp_path / "apart.zarr", capture=capture, run={"shared_prefix": False}), samples=samples
    )
    assert_alike(together, apart)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "gemma3", "qwen2_5_vl", "pixtral"])
def test_every_site_and_selector_is_the_same(
    model_type: str, kernel: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    [family] = [family for family in SUPPORTED if family.model_type == model_type]
    samples = [s for s in questions(family, pictures) if bool(s.images) == (family.takes != "text")]
    seen = ["vision/resid_post", "connector"] if family.takes != "text" else []
    capture = {
        "sites": ["resid_pre", "final_norm", "attn_out", "mlp_out", "z", "k", "v", *seen],
        "tokens": [
            "last",
            "mean",
            "max",
            "all",
            "span:end",
            *(["image_mean", "all:image", "image:0,-1"] if seen else []),
        ],
    }
    model = {"attention": kernel}
    stores = []
    for name, shared in (("together.zarr", True), ("apart.zarr", False)):
        config = settings(
            model_folder(model_type), tmp_path / name, capture=capture, model=model, run={"shared_prefix": shared}
        )
        stores.append(extract(config, samples=samples))
        assert any(pack.prefix for pack in packs_of(config, samples)[0]) == shared
    assert_alike(*stores)
    for spec in stores[0].arrays:
        if spec.ragged:
            for layer in spec.layers:
                one, other = (store.tokens(spec.site, layer, spec.tokens) for store in stores)
                for row in range(len(samples)):
                    np.testing.assert_allclose(one[row], other[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ["gpt2", "opt"])
def test_sequences_may_be_longer_than_the_model_has_positions(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    # Two sequences, of which one is padded to the length of the other, have more positions than the table has rows.
    samples = [
        Sample(f"{begin}-{i}", prompt=f"{prompt(begin, 60)} {prompt(i, 20)}")
        for begin, n in ((1, 12), (2, 4))
        for i in range(n)
    ]
    config = settings(model_folder(model_type), tmp_path / "together.zarr")
    packs = packs_of(config, samples)[0]
    assert sorted(pack.length > 256 for pack in packs) == [False, True]
    apart = settings(model_folder(model_type), tmp_path / "apart.zarr", run={"shared_prefix": False})
    assert_alike(extract(config, samples=samples), extract(apart, samples=samples))


def test_a_falcon_whose_attention_goes_by_distance_alone_shares_nothing(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("falcon"), folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"alibi": True}))
    samples = [Sample(f"s{i}", prompt=f"{prompt(7, 40)} {prompt(i, 9)}") for i in range(3)]
    packs, note = packs_of(settings(folder, tmp_path / "run.zarr"), samples)
    assert note == "no, because the model counts positions by itself"
    assert [pack.prefix for pack in packs] == [0, 0, 0]


def test_a_model_that_counts_positions_by_itself_is_the_same_up_to_where_the_count_matters(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    begin = prompt(7, 40)
    samples = [Sample(f"s{i}", prompt=f"{begin} {prompt(i, 9)}") for i in range(2)]
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama4"), folder)
    [pack] = packs_of(settings(folder, tmp_path / "plan.zarr"), samples)[0]
    content = json.loads((folder / "config.json").read_text())
    # Llama 4 counts from 1, and tempers what is at this position.
    content["text_config"] |= {"floor_scale": pack.length, "attn_scale": 5.0}
    (folder / "config.json").write_text(json.dumps(content))
    together = extract(settings(folder, tmp_path / "together.zarr"), samples=samples)
    apart = settings(folder, tmp_path / "apart.zarr", run={"shared_prefix": False})
    assert_alike(together, extract(apart, samples=samples))


def test_samples_that_end_where_others_go_on_share_all_but_their_last_token() -> None:
    samples = [encoded(row, [*range(40), *rest]) for row, rest in enumerate([[50], [50, 51], [50, 51, 52]])]
    [pack] = plan_packs(samples, ANY, 4096)
    assert (pack.prefix, pack.length) == (40, 40 + 1 + 2 + 3)


def test_a_sequence_stays_within_the_budget_and_near_its_prefix() -> None:
    samples = [encoded(row, [*range(600), *([700 + row] * 50)]) for row in range(100)]
    packs = plan_packs(samples, ANY, 900)
    assert {pack.length for pack in packs[:-1]} == {900}
    assert max(pack.length for pack in plan_packs(samples, ANY, 10**6)) == 1200
    assert max(pack.length for pack in plan_packs(samples, replace(ANY, longest=800), 10**6)) == 800


def test_too_little_in_common_is_not_shared() -> None:
    samples = [encoded(row, [*range(40), *([100 + row] * 500)]) for row in range(4)]
    assert [pack.prefix for pack in plan_packs(samples, ANY, 4096)] == [0] * 4


def test_what_attention_over_a_long_sequence_costs_is_set_against_what_is_saved() -> None:
    samples = [encoded(row, [*range(40), *([100 + row] * 160)]) for row in range(8)]
    small = replace(ANY, hidden_size=64)
    assert {pack.prefix for pack in plan_packs(samples, small, 4096)} == {0}
    assert {pack.prefix for pack in plan_packs(samples, replace(ANY, hidden_size=4096), 4096)} == {40}


@given(
    lengths=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=20),
    budget=st.integers(1, 400),
)
def test_packs_are_a_partition_whose_samples_agree_on_their_prefix(lengths: list[tuple[int, int]], budget: int) -> None:
    samples = [encoded(row, [*([kind] * 60), *range(10, 10 + n)]) for row, (kind, n) in enumerate(lengths)]
    packs = plan_packs(samples, ANY, budget)
    assert sorted(sample.row for pack in packs for sample in pack.samples) == list(range(len(samples)))
    for pack in packs:
        ids = [sample.sequence["input_ids"][0].tolist() for sample in pack.samples]
        assert len({tuple(its[: pack.prefix]) for its in ids}) == 1
        assert all(len(its) > pack.prefix for its in ids)
        assert len(ids) == 1 or pack.length <= budget
        assert pack.length == pack.prefix + sum(len(its) - pack.prefix for its in ids)


ANY = Sharing((Reach(),), additive=False, longest=None, first_position=0, hidden_size=512)


def encoded(row: int, ids: list[int]) -> Encoded:
    import torch

    tensor = torch.tensor([ids])
    return Encoded(row, {"input_ids": tensor}, {}, torch.zeros(len(ids), dtype=torch.bool))


def test_an_image_is_seen_once_where_the_model_is_large_beside_its_prompts() -> None:
    import torch

    pixels = {"pixel_values": torch.zeros(1, 3, 2, 2)}
    ids = list(range(100, 200))

    def asked(row: int) -> Encoded:
        whole = torch.tensor([[*ids, *range(1000 * row + 1000, 1000 * row + 1100)]])
        image = torch.zeros(200, dtype=torch.bool)
        image[:90] = True
        return Encoded(row, {"input_ids": whole}, pixels, image)

    samples = [asked(row) for row in range(24)]
    for hidden, n_packs in ((4096, 1), (512, 3)):
        packs = plan_packs(samples, replace(ANY, hidden_size=hidden), 16384)
        assert len(packs) == n_packs
        assert {pack.prefix for pack in packs} == {100}
    # No sequence is longer than the budget.
    assert max(pack.length for pack in plan_packs(samples, replace(ANY, hidden_size=4096), 1100)) <= 1100
