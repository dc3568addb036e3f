"""Emu: EVA's patches, a causal former that makes vectors of them, and a LLaMA that these are put into."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import Blip2VisionModel, LlamaModel
from transformers.models.t5.modeling_t5 import T5Stack

from sonde.engine.models.checkpoint import Filling
from sonde.engine.models.eva import fill_eva
from sonde.engine.models.image_text import ImageTextModel

from .config import EmuConfig
from .weights import Weights, merge

_PROJECTIONS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
_NORMS = ("input_layernorm", "post_attention_layernorm")
_FORMER = {
    "SelfAttention": ("q", "k", "v", "o"),
    "EncDecAttention": ("q", "k", "v", "o"),
    "DenseReluDense": ("wi", "wo"),
}


class CausalFormer(nn.Module):
    """A T5 decoder whose learned queries look at an image's patches, each query at those before it.

    Section 2.2 of the paper; Raffel et al., *Exploring the Limits of Transfer Learning with a Unified Text-to-Text
    Transformer* (2020), for the decoder.
    """

    def __init__(self, config: EmuConfig) -> None:
        super().__init__()
        former, width = config.former_config, config.vision_config.hidden_size
        self.tokens = nn.Parameter(0.02 * torch.randn(1, config.tokens_per_image, former.d_model))
        stack: Any = T5Stack(former)
        self.stack = stack
        # It is given vectors, and no ids.
        stack.embed_tokens = nn.Identity()
        for block in stack.block:
            attention = block.layer[1].EncDecAttention
            for name in ("k", "v"):
                setattr(attention, name, nn.Linear(width, attention.inner_dim, bias=False))
        self.projection = nn.Linear(former.d_model, config.text_config.hidden_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Make ``[image, vector, hidden]`` of ``[image, patch, width]``."""
        queries = self.tokens.expand(len(patches), -1, -1)
        vectors = self.stack(inputs_embeds=queries, encoder_hidden_states=patches, use_cache=False)
        out: torch.Tensor = self.projection(vectors.last_hidden_state)
        return out


class EmuModel(ImageTextModel):
    """Emu without its heads."""

    config_class = EmuConfig

    def __init__(self, config: EmuConfig) -> None:
        super().__init__(config)
        self.vision = Blip2VisionModel(config.vision_config)
        self.former = CausalFormer(config)
        self.language_model = LlamaModel(config.text_config)

    def image_features(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images, ``[vector, hidden]``: what the former makes of all patches."""
        features: torch.Tensor = self.former(self.vision(pixel_values).last_hidden_state)
        return features.flatten(0, 1)


def fill_model(model: ImageTextModel, weights: Weights) -> None:
    """Fill a model with published weights, LoRA's merged into the matrices that they change; they are used up.

    Raises
    ------
    ModelError
        If they are not those of this model.
    """
    fill, config = Filling(model, weights.tensors, str(weights.path), once=True), model.config
    fill_eva(fill, "vision.", "visual.", config.vision_config.num_hidden_layers)
    for kind in ("weight", "bias"):
        fill(f"vision.post_layernorm.{kind}", f"ln_visual.{kind}")
        fill(f"former.projection.{kind}", f"cformer.projection.{kind}")
    fill("former.tokens", "cformer.causal_tokens")
    fill("former.stack.final_layer_norm.weight", "cformer.cformer.final_layer_norm.weight")
    for i in range(config.former_config.num_layers):
        block, its = f"former.stack.block.{i}.layer.", f"cformer.cformer.block.{i}.layer."
        for place, (part, matrices) in enumerate(_FORMER.items()):
            fill(f"{block}{place}.layer_norm.weight", f"{its}{place}.layer_norm.weight")
            for name in matrices:
                fill(f"{block}{place}.{part}.{name}.weight", f"{its}{place}.{part}.{name}.weight")
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    fill(f"former.stack.{bias}", f"cformer.cformer.{bias}")
    own, keys = "language_model.", weights.language
    for name in ("embed_tokens", "norm"):
        fill(f"{own}{name}.weight", f"{keys}{name}.weight")
    merged = partial(merge, config.lora_alpha, config.lora_rank)
    for i in range(config.text_config.num_hidden_layers):
        block, its = f"{own}layers.{i}.", f"{keys}layers.{i}."
        for name in _NORMS:
            fill(f"{block}{name}.weight", f"{its}{name}.weight")
        for part, names in _PROJECTIONS.items():
            for name in names:
                adapted = weights.instructed and name in config.lora_targets
                sources = weights.names_of(f"{its}{part}.{name}", adapted=adapted)
                fill(f"{block}{part}.{name}.weight", *sources, make=merged)
    # Heads, what the published code makes and never uses, and tables that some versions of libraries saved.
    fill.ignore("visual.norm.*", "visual.head.*", "*.lm_head.weight", "*.stu_regress_head.weight")
    fill.ignore("cformer.cformer.embed_tokens.weight", "*.rotary_emb.inv_freq")
    fill.finish()
