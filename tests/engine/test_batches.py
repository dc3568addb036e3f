"""Planning and joining batches."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.engine.batches import Batch, Collator, plan_batches, split
from sonde.engine.capture import Capture
from sonde.engine.encoded import Encoded
from sonde.engine.packs import Pack

LENGTHS = st.lists(st.integers(1, 60), max_size=40)
BUDGETS = st.integers(1, 300)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_batches_are_a_partition_of_the_samples(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_padded_batches_stay_within_the_budget_unless_a_sample_is_alone(lengths: list[int], budget: int) -> None:
    for batch in plan_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(lengths=LENGTHS, budget=BUDGETS)
def test_the_longest_come_first(lengths: list[int], budget: int) -> None:
    order = [lengths[i] for batch in plan_batches(lengths, budget) for i in batch]
    assert order == sorted(lengths, reverse=True)


@given(lengths=LENGTHS, budget=BUDGETS)
def test_no_batch_is_cut_before_it_is_full(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    for batch, _ in pairwise(batches):
        assert (len(batch) + 1) * lengths[batch[0]] > budget


@given(lengths=LENGTHS, budget=BUDGETS)
def test_the_plan_depends_on_nothing_else(lengths: list[int], budget: int) -> None:
    assert plan_batches(lengths, budget) == plan_batches(tuple(lengths), budget)
    # Equal lengths keep their order, so that a range that is done again gets the same batches.
    same = [i for batch in plan_batches([5] * len(lengths), budget) for i in batch]
    assert same == list(range(len(lengths)))


def encoded(row: int, ids: list[int], other: Mapping[str, object] | None = None) -> Encoded:
    import torch

    tensor = torch.tensor([ids])
    sequence = {"input_ids": tensor, "attention_mask": torch.ones_like(tensor), "token_type_ids": tensor * 0 + 1}
    image = torch.tensor([i == 7 for i in ids])
    return Encoded(row, sequence, {key: torch.as_tensor(value) for key, value in (other or {}).items()}, image)


def collate(samples: list[Encoded], pad_token_id: int = 0, *, causal: bool = False) -> Batch:
    capture = Capture.plan(("resid_post",), ("last",), "all", 2)
    return Collator(capture, pad_token_id, causal)([Pack((sample,)) for sample in samples])


def test_shorter_samples_are_padded_on_the_right() -> None:
    batch = collate([encoded(4, [5, 7, 6]), encoded(2, [8])], pad_token_id=9)
    assert batch.rows.tolist() == [4, 2]
    assert batch.inputs["input_ids"].tolist() == [[5, 7, 6], [8, 9, 9]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.inputs["token_type_ids"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.layout.valid.tolist() == [[True, True, True], [True, False, False]]
    assert batch.layout.image.tolist() == [[False, True, False], [False, False, False]]
    assert batch.n_tokens == 4


def test_a_batch_of_text_without_padding_has_no_mask() -> None:
    assert "attention_mask" not in collate([encoded(0, [5, 6]), encoded(1, [7, 8])], 0).inputs
    with_image = [encoded(0, [5, 7], {"pixel_values": [[0.5]]})]
    assert "attention_mask" in collate(with_image, 0).inputs


def test_a_causal_model_needs_no_mask_for_what_is_behind_a_sample() -> None:
    padded = [encoded(0, [5, 6, 7]), encoded(1, [7])]
    assert "attention_mask" in collate(padded, causal=False).inputs
    batch = collate(padded, causal=True)
    assert "attention_mask" not in batch.inputs
    assert batch.layout.valid.tolist() == [[True, True, True], [True, False, False]]


def test_images_of_all_samples_are_joined_in_order() -> None:
    one, two = {"pixel_values": [[1.0, 2.0]]}, {"pixel_values": [[3.0, 4.0], [5.0, 6.0]]}
    batch = collate([encoded(0, [7], one), encoded(1, [7], two)], 0)
    assert batch.inputs["pixel_values"].tolist() == [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]


def test_different_numbers_of_tiles_are_padded_with_zeros() -> None:
    one, two = {"pixel_values": [[[1.0, 2.0]]]}, {"pixel_values": [[[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]]}
    batch = collate([encoded(0, [7], one), encoded(1, [7], two)], 0)
    assert batch.inputs["pixel_values"].tolist() == [
        [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]],
        [[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]],
    ]


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_batch_that_is_too_large_is_halved(n: int) -> None:
    packs = [Pack((encoded(i, [5]),)) for i in range(n)]
    first, second = split(packs)
    assert [*first, *second] == packs
    assert 0 <= len(second) - len(first) <= 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_sequence_that_is_too_large_is_parted_between_its_samples(n: int) -> None:
    pack = Pack(tuple(encoded(i, [5, 6, 7 + i]) for i in range(n)), 2)
    [first], [second] = split([pack])
    assert (*first.samples, *second.samples) == pack.samples
    assert [part.prefix for part in (first, second)] == [2 * (len(part.samples) > 1) for part in (first, second)]
    assert first.length + second.length > pack.length - 1
