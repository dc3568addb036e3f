"""A tiny LaVIT with random weights, in the files and under the names that were published."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .tiny_parts import GROUPED, HIDDEN, IMAGE_SIZE, PATCH

Shapes = dict[str, tuple[int, ...]]

# First id behind the tokens of text, and how many codes of images there are.
START, CODES = 256, 16
_WIDTH, _EVA_LAYERS, _MERGER_LAYERS = 24, 2, 2
_INNER = int(_WIDTH * 4.3637)


def write_lavit(folder: Path) -> None:
    """Write all but a tokenizer; the seed is torch's."""
    import torch
    import transformers as hf

    config = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "image_start_id": START,
        "image_end_id": START + 1,
        "eva": {"width": _WIDTH, "depth": _EVA_LAYERS, "heads": 4},
        "merger": {"depth": _MERGER_LAYERS, "heads": 4},
    }
    visual, language = folder / "visual_tokenizer", folder / "language_model"
    for place in (visual, language):
        place.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    llama = hf.LlamaConfig(**GROUPED, vocab_size=START + 2 + CODES)
    llama.save_pretrained(language)
    names = hf.LlamaForCausalLM(llama).state_dict()
    write_shards(_draw({name: tuple(x.shape) for name, x in names.items()}), language, 3)
    generating = {"quantize.embedding.weight": (CODES, 8), **_pair("encode_task_layer.0", _WIDTH, _WIDTH)}
    torch.save(_draw(_eva()), visual / "eva_vitg_psz14.bin")
    torch.save(_draw(_predictor() | _merger() | generating), visual / "tokenizer_encoder.bin")
    torch.save(_draw(_merger() | _pair("vit_proj", HIDDEN, _WIDTH)), language / "visual_weight.bin")


def write_shards(tensors: Mapping[str, Any], folder: Path, n: int) -> None:
    """Save tensors in ``n`` files and an index, as transformers lays out ``pytorch_model.bin``."""
    import torch

    files = [f"pytorch_model-{i + 1:05}-of-{n:05}.bin" for i in range(n)]
    places = {name: files[i * n // len(tensors)] for i, name in enumerate(tensors)}
    for file in files:
        torch.save({name: tensors[name].clone() for name in tensors if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _draw(shapes: Shapes) -> dict[str, Any]:
    """Tensors of these shapes: norms about 1, matrices that keep the size of what they are given, others small."""
    import torch

    def one(name: str, shape: tuple[int, ...]) -> Any:
        if len(shape) > 1 and name.endswith("weight"):
            return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
        return float(name.endswith("weight")) + 0.1 * torch.randn(shape)

    return {name: one(name, shape) for name, shape in shapes.items()}


def _pair(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _eva() -> Shapes:
    shapes: Shapes = {"cls_token": (1, 1, _WIDTH), "pos_embed": (1, 1 + (IMAGE_SIZE // PATCH) ** 2, _WIDTH)}
    shapes |= _pair("patch_embed.proj", _WIDTH, 3, PATCH, PATCH)
    for block in (f"blocks.{i}" for i in range(_EVA_LAYERS)):
        shapes |= {f"{block}.attn.qkv.weight": (3 * _WIDTH, _WIDTH)}
        shapes |= {f"{block}.attn.{name}_bias": (_WIDTH,) for name in ("q", "v")}
        shapes |= _pair(f"{block}.attn.proj", _WIDTH, _WIDTH) | _block(block, "norm1", "norm2")
    return shapes | _pair("norm", _WIDTH) | _pair("head", 20, _WIDTH)


def _merger() -> Shapes:
    shapes = _pair("causal_encoder.ln_vision", _WIDTH) | _pair("causal_encoder.norm", _WIDTH)
    for block in (f"causal_encoder.blocks.{i}" for i in range(_MERGER_LAYERS)):
        shapes |= _pair(f"{block}.token_causal_attn.qkv", 3 * _WIDTH, _WIDTH)
        shapes |= _pair(f"{block}.token_causal_attn.proj", _WIDTH, _WIDTH)
        for part in ("query", "key", "value", "proj"):
            shapes |= _pair(f"{block}.token_cross_attn.{part}", _WIDTH, _WIDTH)
        shapes |= _block(block, "norm0", "norm1", "norm2")
    return shapes


def _block(name: str, *norms: str) -> Shapes:
    shapes = _pair(f"{name}.mlp.fc1", _INNER, _WIDTH) | _pair(f"{name}.mlp.fc2", _WIDTH, _INNER)
    for norm in norms:
        shapes |= _pair(f"{name}.{norm}", _WIDTH)
    return shapes


def _predictor() -> Shapes:
    half, quarter = _WIDTH // 2, _WIDTH // 4
    return {
        **_pair("token_predictor.in_conv.0", _WIDTH),
        **_pair("token_predictor.in_conv.1", _WIDTH, _WIDTH),
        **_pair("token_predictor.out_conv.0", half, _WIDTH),
        **_pair("token_predictor.out_conv.2", quarter, half),
        **_pair("token_predictor.out_conv.4", 2, quarter),
    }
