"""Qwen-VL's configuration, as it was published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig, Qwen2Config

from sonde.engine.models.image_text import ImageTextConfig
from sonde.errors import ModelError


class QwenVisionConfig(PreTrainedConfig):
    """Of the vision tower and the resampler behind it.

    Attributes
    ----------
    n_queries
        Vectors that an image becomes.
    output_dim
        Their length.
    resampler_heads
        Heads of the attention that makes them.
    """

    model_type = "qwen_vl_vision"

    hidden_size: int = 1664
    intermediate_size: int = 8192
    num_hidden_layers: int = 48
    num_attention_heads: int = 16
    image_size: int = 448
    patch_size: int = 14
    layer_norm_eps: float = 1e-6
    n_queries: int = 256
    output_dim: int = 4096
    resampler_heads: int = 32


class QwenVLConfig(ImageTextConfig):
    """Of the whole model; its language model is a Qwen2 with tables of its own size."""

    model_type = "qwen_vl"


def read_config(folder: Path) -> QwenVLConfig:
    """Read the published ``config.json``.

    Raises
    ------
    ModelError
        If it cannot be read, lacks a setting, or has one that is not built here.
    """
    path = folder / "config.json"
    try:
        return _make(json.loads(path.read_text(encoding="utf-8")))
    except KeyError as error:
        raise ModelError(f"{path} lacks the setting {error}: give the file as it was published") from error
    except (OSError, TypeError, ValueError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(f"{path} makes no Qwen-VL ({error}): give the file as it was published") from error


def _make(published: dict[str, Any]) -> QwenVLConfig:
    if published.get("rotary_pct", 1.0) != 1.0:
        raise ValueError(f"rotary_pct is {published['rotary_pct']}, and heads are rotated whole here")
    vision = read_vision_config(published["visual"])
    start = published["visual"]["image_start_id"]
    _ensure_heads(published["hidden_size"], published["num_attention_heads"])
    if vision.output_dim != published["hidden_size"]:
        raise ValueError(f"images become vectors of {vision.output_dim}, tokens of {published['hidden_size']}")
    text = Qwen2Config(
        vocab_size=published["vocab_size"],
        hidden_size=published["hidden_size"],
        # Of both branches of the gated layer together.
        intermediate_size=published["intermediate_size"] // 2,
        num_hidden_layers=published["num_hidden_layers"],
        num_attention_heads=published["num_attention_heads"],
        num_key_value_heads=published["num_attention_heads"],
        # Beyond it the published model scales its positions and logits, which is not built here.
        max_position_embeddings=published["seq_length"],
        rms_norm_eps=published["layer_norm_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": float(published["rotary_emb_base"])},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return QwenVLConfig(
        text_config=text,
        vision_config=vision,
        image_start_token_id=start,
        image_end_token_id=start + 1,
        image_token_id=start + 2,
        tokens_per_image=vision.n_queries,
        tie_word_embeddings=False,
    )


def read_vision_config(visual: dict[str, Any]) -> QwenVisionConfig:
    """Read the published group ``visual``; what it leaves out is what the published code takes.

    Raises
    ------
    KeyError
        If it lacks a setting.
    ValueError
        If its sizes do not go together.
    """
    config = QwenVisionConfig(
        hidden_size=visual["width"],
        intermediate_size=int(visual["width"] * visual["mlp_ratio"]),
        num_hidden_layers=visual["layers"],
        num_attention_heads=visual["heads"],
        image_size=visual["image_size"],
        patch_size=visual["patch_size"],
        n_queries=visual.get("n_queries", 256),
        output_dim=visual["output_dim"],
        resampler_heads=visual.get("resampler_heads", visual["output_dim"] // 128),
    )
    _ensure_heads(config.hidden_size, config.num_attention_heads)
    _ensure_heads(config.output_dim, config.resampler_heads)
    if math.isqrt(config.n_queries) ** 2 != config.n_queries:
        raise ValueError(f"{config.n_queries} queries lie in no square")
    return config


def _ensure_heads(width: int, n_heads: int) -> None:
    if n_heads < 1 or width % n_heads:
        raise ValueError(f"a width of {width} is not cut into {n_heads} heads")
