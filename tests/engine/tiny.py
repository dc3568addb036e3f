"""Tiny models of every family, made on the spot: random weights, tokenizers trained on a few lines, real processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .tiny_parts import GROUPED, HIDDEN, IDS, LAYERS, SIZES, WINDOW, Made, train_tokenizer
from .tiny_ports import PORT_WRITERS
from .tiny_tiles import TILE_BUILDERS
from .tiny_vision import VISION_BUILDERS

_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": SIZES | {"max_position_embeddings": 256},
    # RoBERTa counts positions from behind the padding id, so this leaves room for 256 tokens.
    "roberta": SIZES | {"max_position_embeddings": 258, "type_vocab_size": 1},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 256},
    "gpt_neox": SIZES | {"max_position_embeddings": 256},
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 256,
    },
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": WINDOW},
    "mixtral": GROUPED | {"num_local_experts": 4},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 8},
    "qwen3_moe": GROUPED | _EXPERTS | {"head_dim": 8, "num_experts": 4},
    "qwen3_next": GROUPED
    | _EXPERTS
    | {
        "head_dim": 8,
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
        **{f"linear_{name}_head_dim": 8 for name in ("key", "value")},
        **{f"linear_num_{name}_heads": 4 for name in ("key", "value")},
    },
    "gemma2": GROUPED | {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "gemma3_text": GROUPED
    | {
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi": GROUPED,
    "phi3": GROUPED,
    "olmo2": GROUPED,
    "cohere": GROUPED,
    "cohere2": GROUPED | {"sliding_window": WINDOW, "head_dim": 8},
    "deepseek_v3": GROUPED
    | _EXPERTS
    | {
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_nextn_predict_layers": 0,
    },
    "gpt_oss": GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    "granite": GROUPED,
    "olmo3": GROUPED | {"sliding_window": WINDOW},
    "smollm3": GROUPED | {"no_rope_layers": [1, 0, 1]},
    "exaone4": GROUPED | {"sliding_window": WINDOW, "sliding_window_pattern": 2},
    "starcoder2": GROUPED | {"sliding_window": WINDOW},
    "falcon": SIZES | {"max_position_embeddings": 256},
    "bloom": {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4},
    "gptj": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 256, "rotary_dim": 4},
    "lfm2": GROUPED | {"layer_types": ["conv", "conv", "full_attention"]},
    "mamba2": {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 2,
        # Prompts are longer than a chunk.
        "chunk_size": 16,
    },
}


def write_model(model_type: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a model of one family with its tokenizer or processor, as `save_pretrained` does, or as it was published."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model_type in PORT_WRITERS:
            return PORT_WRITERS[model_type](folder)
        model, processor = _BUILDERS[model_type](model_type)
        for parameter in model.parameters():
            # Biases and norms of fresh models are 0 and 1: anything that drops one would go unseen.
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def families() -> set[str]:
    """Model types that can be made."""
    return {*_BUILDERS, *PORT_WRITERS}


def _text(model_type: str) -> Made:
    import transformers as hf

    is_encoder = model_type in ("bert", "roberta")
    tokenizer = train_tokenizer(ends=is_encoder)
    head = hf.AutoModelForMaskedLM if is_encoder else hf.AutoModelForCausalLM
    config = hf.AutoConfig.for_model(model_type, **_TEXT_CONFIGS[model_type], **IDS, vocab_size=len(tokenizer))
    return head.from_config(config), tokenizer


_BUILDERS: dict[str, Callable[[str], Made]] = {
    **dict.fromkeys(_TEXT_CONFIGS, _text),
    **VISION_BUILDERS,
    **TILE_BUILDERS,
}
