"""Tiny models of sizes that vLLM's kernels take: heads of 32, and states long enough for bfloat16 to be judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.tiny_parts import CHAT, IDS, IMAGE, QWEN, chat, train_tokenizer

LAYERS, HIDDEN, POSITIONS = 4, 128, 512
_SIZES = {"hidden_size": HIDDEN, "num_attention_heads": 4, "intermediate_size": 256}
_TEXT = _SIZES | IDS | {"num_hidden_layers": LAYERS, "num_key_value_heads": 2, "max_position_embeddings": POSITIONS}
_SQUARE = {"height": 32, "width": 32}


def write_model(model_type: str, folder: Path) -> Path:
    """Save a model with random weights, and its tokenizer or processor, as `save_pretrained` does."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _BUILDERS[model_type](model_type)
        for name, parameter in model.named_parameters():
            # Biases and norms of fresh models are 0 and 1: anything that drops one would go unseen.
            parameter.data += (0.1 if parameter.dim() == 1 else 0.02) * torch.randn_like(parameter)
            assert name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _text(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = train_tokenizer(chat_template=CHAT)
    more = {"head_dim": 32} if model_type in ("qwen3", "gemma2") else {}
    config = hf.AutoConfig.for_model(model_type, **_TEXT, **more, vocab_size=len(tokenizer))
    return hf.AutoModelForCausalLM.from_config(config), tokenizer


def _llava(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=_SQUARE, crop_size=_SQUARE),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(IMAGE),
        image_token=IMAGE,
    )
    vision = _SIZES | {"num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision),
        text_config=hf.LlamaConfig(**_TEXT, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen_vl(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = train_tokenizer(QWEN)
    sizes = {"patch_size": 14 if model_type == "qwen2_5_vl" else 16, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"size": {"shortest_edge": 56 * 56, "longest_edge": 160 * 160}}
    old = model_type == "qwen2_5_vl"
    processor = (hf.Qwen2_5_VLProcessor if old else hf.Qwen3VLProcessor)(
        hf.Qwen2VLImageProcessor(**sizes, **pixels),
        tokenizer,
        (hf.Qwen2VLVideoProcessor if old else hf.Qwen3VLVideoProcessor)(**sizes, **pixels),
        chat_template=chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), QWEN[2:], strict=True)
    }
    vision: dict[str, Any] = {
        "depth": 3,
        "num_heads": 4,
        "patch_size": sizes["patch_size"],
        "hidden_size": HIDDEN,
        "out_hidden_size": HIDDEN,
        "intermediate_size": 256,
    }
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    text = _TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope}
    if old:
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    else:
        text["head_dim"] = 32
        # transformers interleaves whatever its configuration says.
        rope["mrope_interleaved"] = True
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    config = hf.AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **ids)
    return hf.AutoModelForImageTextToText.from_config(config), processor


_BUILDERS = {
    **dict.fromkeys(("qwen2", "qwen3", "llama", "gpt2", "gemma2", "olmo2"), _text),
    "llava": _llava,
    **dict.fromkeys(("qwen2_5_vl", "qwen3_vl"), _qwen_vl),
}
