"""Which positions of a sequence are kept, and how they are reduced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sonde.errors import InputError
from sonde.store import ALL

if TYPE_CHECKING:
    import torch

POSITIONS = ("last", "first")
MEANS = ("mean", "image_mean", "text_mean")
SELECTORS = (*POSITIONS, *MEANS, ALL)


def check_tokens(tokens: tuple[str, ...]) -> None:
    """Raise InputError if a token selector is unknown or given twice."""
    for name in tokens:
        if name not in SELECTORS:
            raise InputError(f"unknown tokens {name!r} in capture.tokens; there are {', '.join(SELECTORS)}")
        if tokens.count(name) > 1:
            raise InputError(f"tokens {name!r} stand twice in capture.tokens")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The kept positions of one batch, applied to the hidden states of every layer.

    Attributes
    ----------
    index
        int64 ``[batch, n]``: positions that are taken as they are.
    weights
        float32 ``[batch, m, position]``: averages, one row of weights each.
    order
        For each of the tokens asked for, its place among the n positions followed by the m averages.
    everything
        Whether all positions are kept besides.
    """

    index: torch.Tensor
    weights: torch.Tensor
    order: torch.Tensor
    everything: bool = False

    @classmethod
    def plan(cls, tokens: tuple[str, ...], valid: torch.Tensor, image: torch.Tensor) -> Selection:
        """Find the positions of one right-padded batch.

        Parameters
        ----------
        tokens
            Selectors, in the order in which they come out.
        valid
            bool ``[batch, position]``, false on padding.
        image
            bool ``[batch, position]``, true where the token stands for image content.
        """
        import torch

        lengths = valid.sum(dim=1)
        index = {"last": lengths - 1, "first": torch.zeros_like(lengths)}
        masks = {"mean": valid, "image_mean": valid & image, "text_mean": valid & ~image}
        kept = [name for name in tokens if name in index]
        means = [name for name in tokens if name in masks]
        batch, positions = valid.shape
        positions_of = torch.stack([index[n] for n in kept], 1) if kept else lengths.new_zeros((batch, 0))
        weights = torch.zeros((batch, len(means), positions), dtype=torch.float32, device=valid.device)
        for i, name in enumerate(means):
            mask = masks[name].float()
            weights[:, i] = mask / mask.sum(dim=1, keepdim=True)
        places = [(kept + means).index(name) for name in tokens if name != ALL]
        order = torch.tensor(places, dtype=torch.int64, device=valid.device)
        return cls(positions_of, weights, order, ALL in tokens)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Reduce ``[batch, position, hidden]`` to ``[batch, tokens, hidden]``: a copy, averages in float32.

        All positions follow the tokens where everything is kept.
        """
        import torch

        index = self.index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
        parts = [hidden.gather(1, index)]
        if self.weights.shape[1]:
            parts = [parts[0].float(), torch.bmm(self.weights, hidden.float())]
        selected = torch.cat(parts, dim=1).index_select(1, self.order)
        return torch.cat([selected, hidden.to(selected.dtype)], dim=1) if self.everything else selected
