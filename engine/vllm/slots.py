"""The states of finished prompts in a paged cache, and what is taken of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from sonde.engine.recorder import States

if TYPE_CHECKING:
    import torch

    from sonde.engine.tokens import Selection


@dataclass(frozen=True, slots=True, eq=False)
class Take:
    """What is taken of the prompts of a batch that one step of the engine has finished.

    Attributes
    ----------
    numbers
        Which samples of the batch.
    blocks
        int64 ``[sample, block]``: the blocks of the cache that each has filled, one after another.
    lengths
        int64 ``[sample]``: its tokens.
    selections
        What is kept of them, by name as of `Batch`.
    points
        Site -> places of its layers among the points of the stream that the cache has.
    """

    numbers: tuple[int, ...]
    blocks: torch.Tensor
    lengths: torch.Tensor
    selections: Mapping[str, Selection]
    points: Mapping[str, tuple[int, ...]]

    def to(self, device: torch.device) -> Take:
        """The same on a device."""
        return replace(
            self,
            blocks=self.blocks.to(device, non_blocking=True),
            lengths=self.lengths.to(device, non_blocking=True),
            selections={name: selection.to(device) for name, selection in self.selections.items()},
        )


def read(cache: torch.Tensor, take: Take) -> States:
    """Read what is wanted, one point of the stream after another, so that no more than one is ever gathered whole.

    Parameters
    ----------
    cache
        ``[block, point, offset, hidden]``, as vLLM lays it out.
    take
        On the cache's device.
    """
    import torch

    size = cache.shape[2]
    width = int(take.selections["text"].weights.shape[2])
    # What is at padding is the sample's own last state: another's may be no number, and weights of 0 do not undo that.
    place = torch.minimum(torch.arange(width, device=cache.device), take.lengths.unsqueeze(1) - 1)
    block = take.blocks.gather(1, place // size)
    offset = place % size
    flat_block, flat_offset = block.flatten(), offset.flatten()

    def some(point: int, rows: torch.Tensor) -> torch.Tensor:
        return cache[flat_block[rows], point, flat_offset[rows]]

    def every(point: int) -> torch.Tensor:
        return cache[block, point, offset]

    found: dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor | None]] = {}
    reduced, kept = {}, {}
    for site, points in take.points.items():
        name = site if site in take.selections else "text"
        for point in points:
            if (name, point) not in found:
                found[name, point] = take.selections[name].read(partial(some, point), partial(every, point))
        layers = [found[name, point] for point in points]
        reduced[site] = torch.stack([x for x, _ in layers])
        if layers[0][1] is not None:
            kept[site] = torch.stack([x for _, x in layers if x is not None])
    return States(reduced, kept)
