"""Which positions are kept, against loops in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.engine.selectors import SELECTORS, check_tokens
from sonde.engine.tokens import Layout, Selection
from sonde.errors import InputError
from sonde.store import RAGGED

ALL_SELECTORS = (*SELECTORS, "index:0", "index:-2")
ROW = st.lists(st.booleans(), min_size=2, max_size=7).filter(lambda row: any(row) and not all(row))


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(ROW, min_size=1, max_size=4),
    tokens=st.permutations(ALL_SELECTORS),
    n=st.integers(1, len(ALL_SELECTORS)),
)
def test_selection_takes_and_averages_the_positions_that_it_names(
    rows: list[list[bool]], tokens: list[str], n: int
) -> None:
    import torch

    wanted = tuple(tokens[:n])
    width = max(map(len, rows))
    valid = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    image = torch.tensor([row + [True] * (width - len(row)) for row in rows])
    hidden = torch.randn(len(rows), width, 3, generator=torch.Generator().manual_seed(0))
    got, kept = Selection.plan(wanted, Layout.apart(valid, image))(hidden)
    assert (kept is not None) == any(name in RAGGED for name in wanted)
    if kept is not None:
        masks = {"all": valid, "all:image": valid & image, "all:text": valid & ~image}
        one_by_one = [hidden[masks[name]] for name in wanted if name in RAGGED]
        assert kept.equal(torch.cat(one_by_one)), "selector after selector, and in each sample after sample"
        wanted = tuple(name for name in wanted if name not in RAGGED)
    assert got.shape == (len(rows), len(wanted), 3)
    for i, row in enumerate(rows):
        x = hidden[i, : len(row)].numpy()
        is_image = np.array(row)
        expected = {
            "last": x[-1],
            "first": x[0],
            "mean": x.mean(axis=0),
            "max": x.max(axis=0),
            "index:0": x[0],
            "index:-2": x[-2],
            "image_mean": x[is_image].mean(axis=0),
            "text_mean": x[~is_image].mean(axis=0),
        }
        for k, name in enumerate(wanted):
            np.testing.assert_allclose(got[i, k].numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_a_kept_position_is_a_copy_in_the_models_own_dtype() -> None:
    import torch

    valid = torch.ones((1, 3), dtype=torch.bool)
    hidden = torch.arange(6, dtype=torch.bfloat16).reshape(1, 3, 2)
    got = Selection.plan(("last",), Layout.apart(valid, ~valid))(hidden)[0]
    hidden.zero_()
    assert got.dtype == torch.bfloat16
    assert got.tolist() == [[[4.0, 5.0]]]


def test_means_of_bfloat16_are_taken_in_float32() -> None:
    import torch

    valid = torch.ones((1, 1000), dtype=torch.bool)
    # Two neighbours in bfloat16: their mean is no bfloat16.
    hidden = torch.tensor([1.0, 1.0078125] * 500, dtype=torch.bfloat16).reshape(1, 1000, 1)
    got = Selection.plan(("mean",), Layout.apart(valid, ~valid))(hidden)[0]
    assert got.item() == pytest.approx(1.00390625, rel=1e-6)


def test_unknown_and_repeated_selectors_are_named() -> None:
    check_tokens(SELECTORS)
    with pytest.raises(InputError, match=r"unknown tokens 'lats'.*last, first, mean"):
        check_tokens(("last", "lats"))
    with pytest.raises(InputError, match="'mean' stand twice"):
        check_tokens(("mean", "last", "mean"))


def test_a_position_is_counted_among_those_that_count() -> None:
    import torch

    valid = torch.tensor([[False, True, False, True, True], [True, False, False, False, True]])
    hidden = torch.arange(10.0).reshape(2, 5, 1)
    tokens = ("first", "index:1", "index:-2", "last", "mean", "max")
    got = Selection.plan(tokens, Layout.apart(valid, valid))(hidden)[0][:, :, 0]
    np.testing.assert_allclose(got.numpy(), [[1, 3, 3, 4, 8 / 3, 4], [5, 9, 5, 9, 7, 9]], rtol=1e-6)


@pytest.mark.parametrize("tokens", ["index:", "index:x", "index:1.5", "index", "index:--1"])
def test_an_index_is_a_number(tokens: str) -> None:
    with pytest.raises(InputError, match="unknown tokens"):
        check_tokens((tokens,))


def test_samples_of_one_sequence_have_its_prefix_in_common() -> None:
    import torch

    # Two samples behind a prefix of two positions, and one by itself.
    valid = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)
    image = torch.tensor([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0, 0, 1, 0, 0]], dtype=torch.bool)
    mark = torch.tensor([[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)
    layout = Layout(valid, image, torch.tensor([0, 0, 1]), 2, {"span:x": mark})
    hidden = torch.tensor([[1.0, 2, 4, 8, 16], [32, 64, 128, -1, -1]]).unsqueeze(-1)
    tokens = ("last", "index:1", "mean", "text_mean", "span:x", "max", "all")
    got, kept = Selection.plan(tokens, layout)(hidden)
    expected = [[4, 2, 7 / 3, 3, 3, 4], [16, 2, 27 / 4, 26 / 3, 8, 16], [128, 64, 224 / 3, 48, 32, 128]]
    np.testing.assert_allclose(got[:, :, 0].numpy(), expected, rtol=1e-6)
    assert kept is not None
    assert kept[:, 0].tolist() == [1, 2, 4, 1, 2, 8, 16, 32, 64, 128]
