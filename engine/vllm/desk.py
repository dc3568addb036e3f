"""Where the batch that runs lies: what the engine's scheduler asks of it, and where its states arrive."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from sonde.engine.batches import Batch, select
from sonde.engine.capture import CONNECTOR, Capture
from sonde.engine.recorder import States
from sonde.engine.tokens import Layout, ragged_masks
from sonde.errors import ModelError

from .slots import Take

if TYPE_CHECKING:
    import torch


class Desk:
    """Between a session and the connector in the engine, which find each other by the desk's name.

    Parameters
    ----------
    capture
        What is kept.

    Attributes
    ----------
    name
        Names the desk to the connector.
    points
        Points of the stream that are read, ascending: what the cache has of every token.
    """

    def __init__(self, capture: Capture) -> None:
        self.name = uuid4().hex
        self.points = tuple(sorted({point for _, point in capture.taps}))
        self._places = {
            site: tuple(self.points.index(point) for _, point in capture.taps_of(site)) for site in capture.sites
        }
        self._capture = capture
        self._batch: Batch | None = None
        self._numbers: Mapping[str, int] = {}
        self._lengths: torch.Tensor | None = None
        self._pieces: list[tuple[tuple[int, ...], States]] = []
        self._arrived = threading.Condition()
        _open[self.name] = self

    @staticmethod
    def find(name: str) -> Desk | None:
        """The desk of a name in this process."""
        return _open.get(name)

    def close(self) -> None:
        """Be found no more."""
        _open.pop(self.name, None)

    def begin(self, batch: Batch, numbers: Mapping[str, int]) -> None:
        """Await the states of a batch, whose samples the engine knows by the names that lead to their ``numbers``."""
        self._batch, self._numbers, self._pieces = batch, numbers, []
        self._lengths = batch.layout.valid.sum(dim=1)

    def length(self, request: str) -> int | None:
        """Tokens of a sample; None of a request that is none."""
        number = self._numbers.get(request)
        return None if number is None or self._lengths is None else int(self._lengths[number])

    def plan(self, finished: Mapping[str, Sequence[int]]) -> Take:
        """Say what is to be taken of samples, given the blocks of the cache that each has filled."""
        import torch

        assert self._batch is not None
        assert self._lengths is not None
        layout = self._batch.layout
        blocks = {self._numbers[request]: its for request, its in finished.items()}
        numbers = sorted(blocks)
        selections = self._batch.selections
        if len(numbers) < len(layout.valid):
            layout = _part(layout, numbers)
            selections = select(self._capture, layout)
        longest = max(map(len, blocks.values()))
        padded = [[*blocks[number], *[0] * (longest - len(blocks[number]))] for number in numbers]
        return Take(tuple(numbers), torch.tensor(padded), self._lengths[numbers], selections, self._places)

    def receive(self, numbers: tuple[int, ...], states: States) -> None:
        """Take what was read of samples; called from any thread."""
        with self._arrived:
            self._pieces.append((numbers, states))
            self._arrived.notify()

    def end(self, timeout_s: float = 60.0) -> States:
        """Give the states of the whole batch.

        Raises
        ------
        ModelError
            If not all of it has arrived.
        """
        assert self._batch is not None
        batch, n_samples = self._batch, len(self._batch.rows)
        with self._arrived:
            whole = self._arrived.wait_for(lambda: sum(len(its) for its, _ in self._pieces) >= n_samples, timeout_s)
        pieces, self._pieces, self._batch, self._numbers = self._pieces, [], None, {}
        if not whole:
            there = sum(len(its) for its, _ in pieces)
            raise ModelError(f"vLLM gave the states of {there} of {n_samples} samples of a batch")
        return pieces[0][1] if len(pieces) == 1 else _join(pieces, batch, self._capture)


_open: dict[str, Desk] = {}


def _part(layout: Layout, numbers: Sequence[int]) -> Layout:
    """Some samples of a layout, no wider than they need."""
    width = int(layout.valid[numbers].sum(dim=1).max())

    def cut(mask: torch.Tensor) -> torch.Tensor:
        return mask[numbers, :width]

    whole = Layout.apart(cut(layout.valid), cut(layout.image))
    return Layout(
        whole.valid, whole.image, whole.sequence, whole.n_sequences, {name: cut(m) for name, m in layout.marks.items()}
    )


def _join(pieces: Sequence[tuple[tuple[int, ...], States]], batch: Batch, capture: Capture) -> States:
    """Put the samples of several steps into the order of their batch."""
    import torch

    order = torch.tensor([number for numbers, _ in pieces for number in numbers]).argsort()
    reduced, kept = {}, {}
    for site, first in pieces[0][1].reduced.items():
        reduced[site] = torch.cat([states.reduced[site] for _, states in pieces], dim=1)[:, order.to(first.device)]
        if site not in pieces[0][1].kept:
            continue
        # The place that each position has among those that are kept, selector by selector, sample by sample.
        layout = batch.layout.of_image() if site == CONNECTOR else batch.layout
        places, end = [], 0
        for mask in ragged_masks(capture.tokens_of(site), layout).values():
            place = mask.flatten().cumsum(0).view(mask.shape) - 1 + end
            places.append((mask, place))
            end += int(mask.sum())
        source = torch.cat([place[list(its)][mask[list(its)]] for its, _ in pieces for mask, place in places])
        kept[site] = torch.cat([states.kept[site] for _, states in pieces], dim=1)[:, source.argsort().to(first.device)]
    return States(reduced, kept)
