"""Which patches of an image LaVIT keeps (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

_EPS = 1e-5


class Selector(nn.Module):
    """Predicts for every patch whether it is kept; in float32, where rounding would change what is kept.

    Parameters
    ----------
    sizes
        Widths between its layers: of a patch, behind the first layer, and behind each of the last three.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        width, inner, half, quarter, kinds = sizes
        self.in_conv = nn.Sequential(nn.LayerNorm(width, eps=_EPS), nn.Linear(width, inner), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(inner, half),
            nn.GELU(),
            nn.Linear(half, quarter),
            nn.GELU(),
            nn.Linear(quarter, kinds),
            nn.LogSoftmax(dim=-1),
        )
        self.float()

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of keeping and of dropping each patch.

        Parameters
        ----------
        patches
            ``[image, patch, width]``.

        Returns
        -------
        Tensor
            float32 ``[image, patch, 2]``.
        """
        own, common = self.in_conv(patches.float()).chunk(2, dim=-1)
        common = common.mean(dim=1, keepdim=True).expand_as(common)
        logits: torch.Tensor = self.out_conv(torch.cat([own, common], dim=-1))
        return logits


def kept(logits: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
    """Which patches are kept: bool ``[image, patch]``.

    With Gumbel noise this samples from the predicted distribution (Jang et al. 2017), without it takes the likelier.
    """
    scores = logits if noise is None else logits + noise.float()
    return scores[..., 0] >= scores[..., 1]
