"""LaVIT's token merger: kept patches take up what the dropped ones hold (section 3.1 of the paper)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .config import LaVITConfig

_EPS = 1e-5
# Every key keeps this share of a softmax, divided by their number, whether it is allowed or not.
_LEAST = 1e-6


class Merger(nn.Module):
    """Blocks of causal attention to kept patches, cross-attention to dropped ones, and a feed-forward part."""

    def __init__(self, config: LaVITConfig) -> None:
        super().__init__()
        width = config.vision_config.hidden_size
        self.ln_vision = nn.LayerNorm(width, eps=_EPS)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.merger_layers)])
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, patches: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """Merge.

        Parameters
        ----------
        patches
            ``[image, patch, width]``.
        kept
            bool ``[image, patch]``.

        Returns
        -------
        Tensor
            ``[image, patch, width]``; what is there of a dropped patch is of no use.
        """
        n = kept.shape[1]
        itself = torch.eye(n, dtype=torch.bool, device=kept.device)
        before = torch.ones_like(itself).tril() & (kept.unsqueeze(1) | itself)
        dropped = (~kept).unsqueeze(1).expand(-1, n, -1)
        original = self.ln_vision(patches)
        for block in self.blocks:
            patches = block(patches, original, before, dropped)
        out: torch.Tensor = self.norm(patches)
        return out


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: LaVITConfig) -> None:
        super().__init__()
        width, heads = config.vision_config.hidden_size, config.merger_heads
        self.norm0 = nn.LayerNorm(width, eps=_EPS)
        self.causal = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.cross = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.fc1 = nn.Linear(width, config.merger_size)
        self.fc2 = nn.Linear(config.merger_size, width)

    def forward(
        self, hidden: torch.Tensor, original: torch.Tensor, before: torch.Tensor, dropped: torch.Tensor
    ) -> torch.Tensor:
        """Add what the three parts make; masks are bool ``[image, query, key]``."""
        normed = self.norm0(hidden)
        hidden = hidden + self.causal(normed, normed, before)
        hidden = hidden + self.cross(self.norm1(hidden), original, dropped)
        out: torch.Tensor = hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden))))
        return out


class Attention(nn.Module):
    """Attention by the published softmax, which leaves a little of every weight to keys that are not allowed."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Attend from ``[image, query, width]`` to ``[image, key, width]`` where ``[image, query, key]`` allows it."""
        q, k, v = (
            part(x).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for part, x in ((self.query, queries), (self.key, keys), (self.value, keys))
        )
        weights = _softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5, allowed.unsqueeze(1)).to(v.dtype)
        out: torch.Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out


def _softmax(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """``(e + ε/N) / (Σe + ε)`` in float32, e the exponentials of allowed keys, less the maximum of all keys."""
    scores = scores.float()
    e = (scores - scores.amax(dim=-1, keepdim=True)).exp() * allowed
    return (e + _LEAST / scores.shape[-1]) / (e.sum(dim=-1, keepdim=True) + _LEAST)
