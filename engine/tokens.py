"""Which positions of a sequence are kept, and how they are reduced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde.store import RAGGED

from .selectors import MAX, POSITIONS, index_of
from .selectors import SELECTORS as SELECTORS
from .selectors import check_tokens as check_tokens

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The kept positions of one batch, applied to the hidden states of every layer.

    Attributes
    ----------
    index
        int64 ``[batch, n]``: positions that are taken as they are.
    weights
        float32 ``[batch, m, position]``: averages, one row of weights each.
    valid
        bool ``[batch, position]`` if there is a maximum to take: where it is taken.
    order
        For each of the tokens asked for, its place among the n positions, the m averages and the maximum.
    everything
        Whether all positions are kept besides.
    """

    index: torch.Tensor
    weights: torch.Tensor
    valid: torch.Tensor | None
    order: torch.Tensor
    everything: bool

    @classmethod
    def plan(
        cls,
        tokens: tuple[str, ...],
        valid: torch.Tensor,
        image: torch.Tensor,
        marks: Mapping[str, torch.Tensor] | None = None,
    ) -> Selection:
        """Find the positions of one batch.

        Parameters
        ----------
        tokens
            Selectors, in the order in which they come out.
        valid
            bool ``[batch, position]``: positions that count; padding does not.
        image
            bool ``[batch, position]``, true where the token stands for image content.
        """
        import torch

        masks = {"mean": valid, "image_mean": valid & image, "text_mean": valid & ~image, **(marks or {})}
        kept = [name for name in tokens if name in POSITIONS or index_of(name) is not None]
        means = [name for name in tokens if name in masks]
        batch, positions = valid.shape
        # The n-th position that counts is where their running number is n + 1.
        number, count = valid.cumsum(dim=1), valid.sum(dim=1, keepdim=True)
        index = [_nth(number, count, valid, _PLACES.get(name, index_of(name) or 0)) for name in kept]
        weights = torch.zeros((batch, len(means), positions), dtype=torch.float32, device=valid.device)
        for i, name in enumerate(means):
            mask = masks[name].float()
            weights[:, i] = mask / mask.sum(dim=1, keepdim=True)
        places = [*kept, *means, MAX]
        order = [places.index(name) for name in tokens if name not in RAGGED]
        return cls(
            torch.cat(index, dim=1) if index else number.new_zeros((batch, 0)),
            weights,
            valid if MAX in tokens else None,
            torch.tensor(order, dtype=torch.int64, device=valid.device),
            any(name in RAGGED for name in tokens),
        )

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Reduce ``[batch, position, hidden]`` to ``[batch, tokens, hidden]``: a copy, averages in float32.

        All positions follow the tokens where everything is kept.
        """
        import torch

        index = self.index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        parts = [hidden.gather(1, index)]
        if self.weights.shape[1]:
            parts = [parts[0].float(), torch.bmm(self.weights, hidden.float())]
        if self.valid is not None:
            largest = hidden.masked_fill(~self.valid.unsqueeze(-1), -torch.inf).amax(dim=1, keepdim=True)
            parts.append(largest.to(parts[0].dtype))
        selected = torch.cat(parts, dim=1).index_select(1, self.order)
        return torch.cat([selected, hidden.to(selected.dtype)], dim=1) if self.everything else selected


_PLACES = {"first": 0, "last": -1}


def _nth(number: torch.Tensor, count: torch.Tensor, valid: torch.Tensor, n: int) -> torch.Tensor:
    """Position of the n-th that counts, from the end if negative: int64 ``[batch, 1]``."""
    wanted = count + n + 1 if n < 0 else count.new_full(count.shape, n + 1)
    return ((number == wanted) & valid).float().argmax(dim=1, keepdim=True)
