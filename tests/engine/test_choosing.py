"""A batch without the image places that a model left out is the batch of samples that never had them."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from sonde.engine.batches import Batch, Collator
from sonde.engine.capture import Capture
from sonde.engine.choosing import leave_out
from sonde.engine.encoded import Encoded
from sonde.engine.packs import Pack
from sonde.errors import ModelError

IMAGE, PLACES = 7, 6
CAPTURE = Capture.plan(
    ("resid_post", "connector"), ("last", "mean", "image_mean", "text_mean", "span:word", "all"), "all", 2
)


def encoded(row: int, text_before: int, text_behind: int, kept: list[list[bool]]) -> Encoded:
    """A sample with as many images as there are masks; of each image the places that its mask says."""
    draw = random.Random(row)
    ids: list[int] = [draw.randint(10, 99) for _ in range(text_before)]
    for mask in kept:
        ids += [5, *[IMAGE] * sum(mask), 6]
    ids += [draw.randint(10, 99) for _ in range(text_behind)]
    tensor = torch.tensor([ids])
    word = torch.zeros(len(ids), dtype=torch.bool)
    word[-2:] = True
    sequence = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor)}
    other = {"pixel_values": torch.zeros(len(kept), 3, 2, 2)} if kept else {}
    return Encoded(row, sequence, other, tensor[0] == IMAGE, len(kept), marks={"span:word": word})


def alike(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return bool(left.equal(right)) if left.dtype != torch.float32 else bool(torch.allclose(left, right))
    return bool(left == right)


def assert_same(got: Batch, wanted: Batch) -> None:
    assert got.inputs["input_ids"].equal(wanted.inputs["input_ids"])
    assert "pixel_values" not in got.inputs
    assert got.rows.equal(wanted.rows)
    for name in ("valid", "image", "sequence"):
        assert getattr(got.layout, name).equal(getattr(wanted.layout, name)), name
    assert got.layout.marks["span:word"].equal(wanted.layout.marks["span:word"])
    for name, selection in wanted.selections.items():
        for part in ("index", "weights", "averages", "sequence", "order", "kept"):
            assert alike(getattr(got.selections[name], part), getattr(selection, part)), (name, part)
    assert (got.prefixed is None) == (wanted.prefixed is None)
    if got.prefixed is not None and wanted.prefixed is not None:
        for part in ("segment", "place", "rope"):
            assert getattr(got.prefixed, part).equal(getattr(wanted.prefixed, part)), part


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_left_out_was_never_there(seed: int, shared: bool) -> None:
    draw = random.Random(seed)
    whole: list[Pack] = []
    wanted: list[Pack] = []
    kept: list[list[bool]] = []
    row = 0
    for _ in range(4):
        # As many images in each, as in all samples of a batch that have any.
        masks = [[draw.random() < 0.5 for _ in range(PLACES)] for _ in range(2)]
        masks = [mask if any(mask) else [True, *mask[1:]] for mask in masks]
        kept += masks
        before, n_samples = draw.randint(0, 3), draw.randint(1, 3) if shared else 1
        rows = range(row, row + n_samples)
        row += n_samples
        behind = [draw.randint(2, 9) for _ in rows]
        for packs, places in ((whole, [[True] * PLACES] * 2), (wanted, masks)):
            # What comes before the images is what all samples of a sequence begin with.
            samples = [
                encoded(rows[0], before, 2, places),
                *(encoded(i, 0, n, places) for i, n in zip(rows, behind, strict=True)),
            ]
            own = [_with_start(samples[0], sample, before) for sample in samples[1:]]
            packs.append(Pack.of(own, before + sum(map(sum, places)) + 4))
    collate = Collator(CAPTURE, pad_token_id=0, causal=True)
    narrowed = leave_out(collate(whole), torch.tensor(kept), IMAGE, CAPTURE)
    assert_same(narrowed, collate([_without_pixels(pack) for pack in wanted]))


def _with_start(first: Encoded, sample: Encoded, n: int) -> Encoded:
    """A sample with the first positions of another in front."""
    sequence = {name: torch.cat([first.sequence[name][:, :n], x], dim=1) for name, x in sample.sequence.items()}
    front = torch.zeros(n, dtype=torch.bool)
    marks = {name: torch.cat([front, mark]) for name, mark in sample.marks.items()}
    return replace(sample, sequence=sequence, image=torch.cat([front, sample.image]), marks=marks)


def _without_pixels(pack: Pack) -> Pack:
    return replace(pack, samples=tuple(replace(sample, other={}) for sample in pack.samples))


def test_a_sample_without_a_token_of_its_image_is_an_error_where_these_are_wanted() -> None:
    collate = Collator(CAPTURE, pad_token_id=0, causal=True)
    batch = collate([Pack((encoded(3, 1, 2, [[True] * PLACES]),)), Pack((encoded(9, 1, 2, [[True] * PLACES]),))])
    kept = torch.tensor([[True] * PLACES, [False] * PLACES])
    with pytest.raises(ModelError, match="keeps no visual token of the image of row 9"):
        leave_out(batch, kept, IMAGE, CAPTURE)
    of_text = Capture.plan(("resid_post",), ("last", "mean", "span:word"), "all", 2)
    collate = Collator(of_text, pad_token_id=0, causal=True)
    batch = collate([Pack((encoded(3, 1, 2, [[True] * PLACES]),)), Pack((encoded(9, 1, 2, [[True] * PLACES]),))])
    assert leave_out(batch, kept, IMAGE, of_text).layout.image.sum(dim=1).tolist() == [PLACES, 0]


@pytest.mark.parametrize(
    ("sites", "tokens", "there"),
    [
        (("resid_post",), "index:6", "6 positions"),
        (("resid_post",), "index:-7", "6 positions"),
        (("connector",), "index:2", "2 positions at the site connector"),
    ],
)
def test_a_position_that_only_places_left_out_had_is_an_error(sites: tuple[str, ...], tokens: str, there: str) -> None:
    capture = Capture.plan(sites, (tokens,), "all", 2)
    packs = [Pack((encoded(row, 1, 1, [[True] * PLACES]),)) for row in (3, 9)]
    batch = Collator(capture, pad_token_id=0, causal=True)(packs)
    few = torch.tensor([[True] * PLACES, [True] * 2 + [False] * (PLACES - 2)])
    with pytest.raises(ModelError, match=f"tokens {tokens}: row 9 has {there} without the visual tokens"):
        leave_out(batch, few, IMAGE, capture)
    more = torch.tensor([[True] * PLACES, [True] * 3 + [False] * (PLACES - 3)])
    assert leave_out(batch, more, IMAGE, capture).layout.valid.sum(dim=1).tolist() == [PLACES + 4, 7]
