"""What is read out of a paged cache, in any number of steps, is what is taken of the same states side by side."""

import itertools
import random
import threading
from collections.abc import Sequence

import pytest
import torch

from sonde.engine.batches import Batch, Collator
from sonde.engine.capture import Capture
from sonde.engine.encoded import Encoded
from sonde.engine.packs import Pack
from sonde.engine.recorder import States
from sonde.engine.vllm.desk import Desk
from sonde.engine.vllm.slots import read
from sonde.engine.vllm.wire import Receiver, Sender
from sonde.errors import ModelError

BLOCK, HIDDEN, N_LAYERS = 4, 5, 3
LENGTHS = (1, 9, 4, 8, 13, 2)
TOKENS = ("last", "mean", "all", "index:-1", "max", "image_mean", "all:image", "first")
SITES = ("embed", "resid_post", "connector")


def batch_of(capture: Capture, lengths: Sequence[int] = LENGTHS) -> Batch:
    """Samples whose first position is an image's, and those at odd places too."""
    packs = []
    for row, length in enumerate(lengths):
        ids = {"input_ids": torch.arange(length).unsqueeze(0)}
        image = torch.tensor([i == 0 or i % 2 == 1 for i in range(length)])
        packs.append(Pack((Encoded(row, ids, {}, image),)))
    return Collator(capture, 0, causal=True)(packs)


@pytest.fixture
def capture() -> Capture:
    return Capture.plan(SITES, TOKENS, {"resid_post": (0, 2)}, N_LAYERS)


def paged(states: Sequence[torch.Tensor], seed: int) -> tuple[torch.Tensor, list[list[int]]]:
    """Put states ``[token, point, hidden]`` into blocks in disorder; what nobody has written is no number."""
    counts = [-(-len(x) // BLOCK) for x in states]
    free = random.Random(seed).sample(range(1, 1 + sum(counts)), sum(counts))
    cache = torch.full((1 + sum(counts), states[0].shape[1], BLOCK, HIDDEN), torch.nan)
    blocks = []
    for x, count in zip(states, counts, strict=True):
        its = [free.pop() for _ in range(count)]
        for i, row in enumerate(x):
            cache[its[i // BLOCK], :, i % BLOCK] = row
        blocks.append(its)
    return cache, blocks


def side_by_side(capture: Capture, batch: Batch, states: Sequence[torch.Tensor], points: Sequence[int]) -> States:
    """The same by the selections of the other backend, of padded states."""
    padded = torch.nn.utils.rnn.pad_sequence(list(states), batch_first=True)
    reduced, kept = {}, {}
    for site in capture.sites:
        selection = batch.selections.get(site, batch.selections["text"])
        found = [selection(padded[:, :, points.index(point)]) for _, point in capture.taps_of(site)]
        reduced[site] = torch.stack([x for x, _ in found])
        kept[site] = torch.stack([x for _, x in found if x is not None])
    return States(reduced, kept)


def assert_equal(mine: States, its: States) -> None:
    for mine_of, its_of in ((mine.reduced, its.reduced), (mine.kept, its.kept)):
        assert mine_of.keys() == its_of.keys()
        for site, x in its_of.items():
            torch.testing.assert_close(mine_of[site], x)


@pytest.mark.parametrize("seed", range(4))
def test_however_many_steps_finish_the_samples(seed: int, capture: Capture) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = batch_of(capture)
    desk = Desk(capture)
    states = [torch.randn((n, len(desk.points), HIDDEN), generator=generator) for n in LENGTHS]
    cache, blocks = paged(states, seed)
    desk.begin(batch, {f"r{i}": i for i in range(len(LENGTHS))})
    draw = random.Random(seed)
    order = draw.sample(range(len(LENGTHS)), len(LENGTHS))
    cuts = [0, *sorted(draw.sample(range(1, len(LENGTHS)), seed)), len(LENGTHS)]
    for start, stop in itertools.pairwise(cuts):
        take = desk.plan({f"r{i}": blocks[i] for i in order[start:stop]})
        desk.receive(take.numbers, read(cache, take))
    assert_equal(desk.end(), side_by_side(capture, batch, states, desk.points))
    desk.close()


def test_a_sample_that_is_no_number_spoils_no_other(capture: Capture) -> None:
    desk, batch = Desk(capture), batch_of(capture)
    states = [torch.ones((n, len(desk.points), HIDDEN)) for n in LENGTHS]
    states[1] *= torch.nan
    cache, blocks = paged(states, 0)
    desk.begin(batch, {f"r{i}": i for i in range(len(LENGTHS))})
    found = read(cache, desk.plan({f"r{i}": its for i, its in enumerate(blocks)}))
    for values in found.reduced.values():
        assert values[:, 1].isnan().all()
        assert values[:, [0, 2, 3, 4, 5]].isfinite().all()
    desk.close()


def test_states_cross_to_another_process_as_they_are(capture: Capture) -> None:
    desk, batch = Desk(capture), batch_of(capture)
    receiver = Receiver(desk)
    states = [torch.randn((n, len(desk.points), HIDDEN)).bfloat16() for n in LENGTHS]
    cache, blocks = paged(states, 0)
    cache = cache.bfloat16()
    desk.begin(batch, {f"r{i}": i for i in range(len(LENGTHS))})
    take = desk.plan({f"r{i}": its for i, its in enumerate(blocks)})
    sent = read(cache, take)
    sender = Sender(receiver.address, receiver.key)
    thread = threading.Thread(target=sender.send, args=(take.numbers, sent))
    thread.start()
    found = desk.end()
    thread.join()
    for site, x in sent.reduced.items():
        assert found.reduced[site].dtype == x.dtype
        assert found.reduced[site].equal(x)
        assert found.kept[site].equal(sent.kept[site])
    receiver.close()
    desk.close()


def test_states_that_do_not_come_are_missed(capture: Capture) -> None:
    desk, batch = Desk(capture), batch_of(capture)
    desk.begin(batch, {f"r{i}": i for i in range(len(LENGTHS))})
    with pytest.raises(ModelError, match="the states of 0 of 6 samples"):
        desk.end(timeout_s=0.01)
    desk.close()
    assert Desk.find(desk.name) is None
