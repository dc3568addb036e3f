"""What is kept of a batch gets to its place, and a range that lacks something is never committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sonde.engine.batches import Batch, select
from sonde.engine.capture import Capture
from sonde.engine.copy_out import CopyOut
from sonde.engine.keeper import Keeper
from sonde.engine.pipeline import Finished
from sonde.engine.recorder import States
from sonde.engine.tokens import Layout
from sonde.engine.trace import Trace
from sonde.store import Schema, Store, as_float32

CAPTURE = Capture.plan(("resid_post",), ("last", "all"), "all", 2)
N, RANGE, WIDTH, HIDDEN = 6, 2, 3, 4


@pytest.fixture
def store(tmp_path: Path) -> Store:
    schema = Schema(CAPTURE.arrays({"resid_post": HIDDEN}), N, RANGE, {}, {}, dtype="float32")
    ids = [f"s{i}" for i in range(N)]
    return Store.create(tmp_path / "run.zarr", schema, {"id": ids, "group": ids})


def batch_of(*rows: int) -> Batch:
    import torch

    valid = torch.ones((len(rows), WIDTH), dtype=torch.bool)
    layout = Layout.apart(valid, ~valid)
    ids = torch.arange(WIDTH).repeat(len(rows), 1)
    return Batch(torch.tensor(rows), {"input_ids": ids}, layout, select(CAPTURE, layout))


def states_of(*rows: int, hidden: int = HIDDEN) -> States:
    """In the last token the number of the row, in all tokens the row and a tenth of the place."""
    import torch

    numbers = torch.tensor(rows, dtype=torch.float32)
    reduced = numbers.reshape(1, -1, 1, 1).expand(2, -1, 1, hidden).contiguous()
    tokens = (numbers.unsqueeze(1) + torch.arange(WIDTH) / 10).reshape(1, -1, 1).expand(2, -1, hidden).contiguous()
    return States({"resid_post": reduced}, {"resid_post": tokens})


def copy_out() -> CopyOut:
    import torch

    return CopyOut(torch.device("cpu"), torch.float32)


def test_batches_of_any_order_fill_their_range(store: Store) -> None:
    ring = copy_out()
    with Keeper(store.writer(), CAPTURE, store.ranges[-1], Trace(enabled=False)) as keeper:
        for range_ in store.ranges:
            for row in (range_.stop - 1, range_.start):
                keeper.keep(ring.send(states_of(row)), batch_of(row), range_)
            keeper.finish(Finished(range_, {}))
        keeper.settle()
    store.refresh()
    assert store.complete
    assert keeper.nbytes == sum(commit.nbytes for commit in store.commits.values())
    assert list(keeper.timings) == [0, 1, 2]
    for layer in (0, 1):
        np.testing.assert_array_equal(as_float32(store.layer("resid_post", "last", layer).numpy())[:, 0], range(N))
        for row in range(N):
            np.testing.assert_allclose(store.tokens("resid_post", layer)[row][:, 0], row + np.arange(WIDTH) / 10)


def test_a_range_behind_a_batch_that_could_not_be_placed_is_not_committed(store: Store) -> None:
    first, second, third = store.ranges

    def run() -> None:
        ring = copy_out()
        with Keeper(store.writer(), CAPTURE, third, Trace(enabled=False)) as keeper:
            keeper.keep(ring.send(states_of(0, 1)), batch_of(0, 1), first)
            keeper.finish(Finished(first, {}))
            keeper.keep(ring.send(states_of(2, 3, hidden=HIDDEN + 1)), batch_of(2, 3), second)
            for _ in range(20):
                keeper.finish(Finished(second, {}))

    with pytest.raises(ValueError, match="broadcast"):
        run()
    store.refresh()
    assert list(store.commits) == [0]


def test_a_range_that_was_full_when_an_error_came_is_committed(store: Store) -> None:
    def run() -> None:
        ring = copy_out()
        with Keeper(store.writer(), CAPTURE, store.ranges[-1], Trace(enabled=False)) as keeper:
            keeper.keep(ring.send(states_of(1, 0)), batch_of(1, 0), store.ranges[0])
            keeper.finish(Finished(store.ranges[0], {}))
            raise KeyError("of the producer")

    with pytest.raises(KeyError):
        run()
    store.refresh()
    assert list(store.commits) == [0]
