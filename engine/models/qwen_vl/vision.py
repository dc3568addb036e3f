"""Qwen-VL's vision side: OpenCLIP's ViT-bigG without a class token, and a resampler of learned queries behind it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from .config import QwenVisionConfig

# Rows of the table of positions, whatever the image's size: 16 x 16.
_POSITIONS = 256


class Attention(nn.Module):
    """Self-attention of all patches of an image."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        self.n_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Attend; ``[image, patch, width]``."""
        q, k, v = self.qkv(hidden).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: torch.Tensor = self.out_proj(attended)
        return out


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.ln_1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Add what attention and feed-forward part make; ``[image, patch, width]``."""
        hidden = hidden + self.attn(self.ln_1(hidden))
        out: torch.Tensor = hidden + self.fc2(F.gelu(self.fc1(self.ln_2(hidden))))
        return out


class Resampler(nn.Module):
    """Cross-attention of learned queries to the patches: an image becomes ``n_queries`` vectors."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        n_queries, size, eps = config.n_queries, config.output_dim, config.layer_norm_eps
        self.query = nn.Parameter(0.02 * torch.randn(n_queries, size))
        self.positions = nn.Parameter(0.02 * torch.randn(n_queries, size))
        same = config.hidden_size == size
        self.kv_proj = nn.Identity() if same else nn.Linear(config.hidden_size, size, bias=False)
        self.ln_q = nn.LayerNorm(size, eps=eps)
        self.ln_kv = nn.LayerNorm(size, eps=eps)
        self.attn = nn.MultiheadAttention(size, config.resampler_heads, batch_first=True)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Resample ``[image, patch, width]`` to ``[image, query, output_dim]``."""
        values = self.ln_kv(self.kv_proj(patches))
        keys = values + resize(self.positions, patches.shape[1]).to(values.dtype)
        queries = (self.ln_q(self.query) + self.positions).expand(len(patches), -1, -1)
        out: torch.Tensor = self.attn(queries, keys, values, need_weights=False)[0]
        return out


class VisionTower(nn.Module):
    """The whole vision side."""

    def __init__(self, config: QwenVisionConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.patches = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=False)
        self.positions = nn.Parameter(width**-0.5 * torch.randn(_POSITIONS, width))
        self.ln_pre = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])
        self.resampler = Resampler(config)
        self.ln_post = nn.LayerNorm(config.output_dim, eps=eps)
        self.proj = nn.Parameter(config.output_dim**-0.5 * torch.randn(config.output_dim, config.output_dim))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Make vectors of images.

        Parameters
        ----------
        pixel_values
            ``[image, channel, height, width]``.

        Returns
        -------
        Tensor
            ``[image, query, output_dim]``.
        """
        patches = self.patches(pixel_values).flatten(2).transpose(1, 2)
        hidden = self.ln_pre(patches + resize(self.positions, patches.shape[1]).to(patches.dtype))
        for block in self.blocks:
            hidden = block(hidden)
        out: torch.Tensor = self.ln_post(self.resampler(hidden)) @ self.proj
        return out


def resize(table: torch.Tensor, n: int) -> torch.Tensor:
    """Resize a table of positions of a square grid, ``[position, width]``, to one of ``n`` positions, in float32.

    Bicubic, without antialiasing, where the sizes differ.
    """
    if len(table) == n:
        return table
    before, side = math.isqrt(len(table)), math.isqrt(n)
    grid = table.float().T.reshape(1, -1, before, before)
    return F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)[0].flatten(1).T
