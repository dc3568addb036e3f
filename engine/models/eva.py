"""The EVA vision tower of Emu and LaVIT, as transformers' `Blip2VisionModel`, which is the same network.

Sun et al., *EVA-CLIP: Improved Training Techniques for CLIP at Scale*, 2023.
"""

from __future__ import annotations

from .checkpoint import Filling

_BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def fill_eva(fill: Filling, own: str, keys: str, n_layers: int) -> None:
    """Fill all of a `Blip2VisionModel` but its last norm, which Emu has and LaVIT has not.

    Parameters
    ----------
    own, keys
        Prefixes of the module's names and of the checkpoint's, each with its dot.
    n_layers
        Blocks.
    """
    import torch

    fill(f"{own}embeddings.class_embedding", f"{keys}cls_token")
    fill(f"{own}embeddings.position_embedding", f"{keys}pos_embed")
    for kind in ("weight", "bias"):
        fill(f"{own}embeddings.patch_embedding.{kind}", f"{keys}patch_embed.proj.{kind}")
    for i in range(n_layers):
        block, its = f"{own}encoder.layers.{i}.", f"{keys}blocks.{i}."
        for theirs, ours in _BLOCK.items():
            for kind in ("weight", "bias"):
                fill(f"{block}{ours}.{kind}", f"{its}{theirs}.{kind}")
        fill(f"{block}self_attn.qkv.weight", f"{its}attn.qkv.weight")
        fill(
            f"{block}self_attn.qkv.bias",
            f"{its}attn.q_bias",
            f"{its}attn.v_bias",
            make=lambda q, v: torch.cat([q, torch.zeros_like(q), v]),
        )
