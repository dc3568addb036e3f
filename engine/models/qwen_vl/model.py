"""Qwen-VL: its vision tower's vectors in a Qwen2, and the published weights in both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from transformers import Qwen2Model

from sonde.engine.models.checkpoint import Filling, find_files, read_tensors, third
from sonde.engine.models.image_text import ImageTextModel

from .config import QwenVisionConfig, QwenVLConfig
from .vision import VisionTower

_TEXT = {
    "input_layernorm": "ln_1",
    "self_attn.o_proj": "attn.c_proj",
    "post_attention_layernorm": "ln_2",
    "mlp.gate_proj": "mlp.w2",
    "mlp.up_proj": "mlp.w1",
    "mlp.down_proj": "mlp.c_proj",
}
_VISION = {
    "ln_1": "ln_1",
    "attn.out_proj": "attn.out_proj",
    "ln_2": "ln_2",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
}


class QwenVLModel(ImageTextModel):
    """Qwen-VL without its head."""

    config_class = QwenVLConfig

    def __init__(self, config: QwenVLConfig) -> None:
        super().__init__(config)
        self.vision = VisionTower(config.vision_config)
        self.language_model = Qwen2Model(config.text_config)

    def image_features(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images, ``[vector, hidden]``; see `VisionTower`."""
        features: torch.Tensor = self.vision(pixel_values)
        return features.flatten(0, 1)

    def image_places(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All positions between the tokens of start and end, whatever stands there: bool ``[sequence, position]``."""
        start, end = (input_ids == i for i in (self.config.image_start_token_id, self.config.image_end_token_id))
        places: torch.Tensor = (start.cumsum(dim=1) > end.cumsum(dim=1)) & ~start
        return places


def fill_model(model: ImageTextModel, folder: Path) -> None:
    """Fill a model with the weights of a folder.

    Raises
    ------
    ModelError
        If the files are not those of this model.
    """
    fill = Filling(model, read_tensors(find_files(folder)), str(folder))
    own, keys = "language_model.", "transformer."
    fill(f"{own}embed_tokens.weight", f"{keys}wte.weight")
    fill(f"{own}norm.weight", f"{keys}ln_f.weight")
    for i in range(model.config.text_config.num_hidden_layers):
        block, its = f"{own}layers.{i}.", f"{keys}h.{i}."
        for ours, theirs in _TEXT.items():
            fill(f"{block}{ours}.weight", f"{its}{theirs}.weight")
        for part, name in enumerate(("q", "k", "v")):
            for kind in ("weight", "bias"):
                fill(f"{block}self_attn.{name}_proj.{kind}", f"{its}attn.c_attn.{kind}", make=third(part))
    fill_vision(fill, "vision.", f"{keys}visual.", model.config.vision_config)
    # The head, and what some versions of the published code saved of their rotary tables.
    fill.ignore("lm_head.weight", "*rotary_emb.inv_freq")
    fill.finish()


def fill_vision(fill: Filling, own: str, keys: str, config: QwenVisionConfig) -> None:
    """Fill a `VisionTower`; ``own`` and ``keys`` are prefixes of its names and of the checkpoint's."""
    fill(f"{own}patches.weight", f"{keys}conv1.weight")
    fill(f"{own}positions", f"{keys}positional_embedding")
    fill(f"{own}proj", f"{keys}proj")
    pool, its = f"{own}resampler.", f"{keys}attn_pool."
    fill(f"{pool}query", f"{its}query")
    fill(f"{pool}positions", f"{its}pos_embed")
    if config.hidden_size != config.output_dim:
        fill(f"{pool}kv_proj.weight", f"{its}kv_proj.weight")
    for kind in ("weight", "bias"):
        for norm in ("ln_pre", "ln_post"):
            fill(f"{own}{norm}.{kind}", f"{keys}{norm}.{kind}")
        for part in ("ln_q", "ln_kv", "attn.out_proj"):
            fill(f"{pool}{part}.{kind}", f"{its}{part}.{kind}")
        fill(f"{pool}attn.in_proj_{kind}", f"{its}attn.in_proj_{kind}")
    heads = config.num_attention_heads
    for i in range(config.num_hidden_layers):
        block, its = f"{own}blocks.{i}.", f"{keys}transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            for ours, theirs in _VISION.items():
                fill(f"{block}{ours}.{kind}", f"{its}{theirs}.{kind}")
            fill(f"{block}attn.qkv.{kind}", f"{its}attn.in_proj.{kind}", make=partial(_by_kind, n_heads=heads))


def _by_kind(joined: torch.Tensor, n_heads: int) -> torch.Tensor:
    """Rows of queries, keys and values of each head, to all queries, all keys, all values."""
    return joined.reshape(n_heads, 3, -1, *joined.shape[1:]).transpose(0, 1).flatten(0, 2)
