"""Tiny image-text models that take pictures whole: random weights, the real model and processor classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .tiny_parts import (
    HIDDEN,
    IDS,
    IMAGE,
    IMAGE_SIZE,
    LAYERS,
    MROPE,
    PATCH,
    QWEN,
    SIZES,
    SQUARE,
    VISION,
    WINDOW,
    Made,
    chat,
    text_config,
    train_tokenizer,
    train_unigram_tokenizer,
)


def _llava(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(IMAGE),
    )
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION | {"num_hidden_layers": 4}),
        text_config=hf.LlamaConfig(**text_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen_vl(model_type: str) -> Made:
    """The four generations of Qwen-VL: one tokenizer and way of cutting patches, configurations of their own."""
    import transformers as hf

    tokenizer = train_tokenizer(QWEN)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"size": {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}}
    old = model_type in ("qwen2_vl", "qwen2_5_vl")
    video = hf.Qwen2VLVideoProcessor if old else hf.Qwen3VLVideoProcessor
    kind = {"qwen2_vl": hf.Qwen2VLProcessor, "qwen2_5_vl": hf.Qwen2_5_VLProcessor}.get(model_type, hf.Qwen3VLProcessor)
    processor = kind(
        hf.Qwen2VLImageProcessor(**sizes, **pixels),
        tokenizer,
        video(**sizes, **pixels),
        chat_template=chat("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), QWEN[2:], strict=True)
    }
    vision = {"depth": 2, "num_heads": 4, "patch_size": 4} | {
        "qwen2_vl": {"embed_dim": 48, "hidden_size": HIDDEN, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "hidden_size": 32,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 48,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
    }.get(
        model_type,
        {"hidden_size": 48, "out_hidden_size": HIDDEN, "intermediate_size": 48, "num_position_embeddings": 64},
    )
    text = text_config(tokenizer, rope_parameters=MROPE)
    if model_type == "qwen3_vl":
        text["head_dim"] = 8
        vision["deepstack_visual_indexes"] = [0, 1]
    if model_type == "qwen3_5":
        text |= {
            "head_dim": 32,
            "rope_parameters": MROPE | {"partial_rotary_factor": 0.25},
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            **{f"linear_{name}_head_dim": 8 for name in ("key", "value")},
            **{f"linear_num_{name}_heads": 4 for name in ("key", "value")},
        }
    config = hf.AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **ids)
    return hf.AutoModelForImageTextToText.from_config(config), processor


def _kosmos_2(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_unigram_tokenizer()
    images = hf.CLIPImageProcessor(size=SQUARE, crop_size=SQUARE)
    processor = hf.Kosmos2Processor(images, tokenizer, num_patch_index_tokens=16)
    text = {"embed_dim": HIDDEN, "layers": LAYERS, "ffn_dim": 48, "attention_heads": 4, "vocab_size": len(tokenizer)}
    config = hf.Kosmos2Config(text_config=text, vision_config=VISION)
    return hf.Kosmos2ForConditionalGeneration(config), processor


def _gemma3(model_type: str) -> Made:
    import transformers as hf

    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = train_tokenizer(extra_special_tokens=marks)
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size=SQUARE),
        tokenizer,
        chat_template=chat("<start_of_image>"),
        image_seq_length=4,
    )
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(token) for name, token in marks.items()}
    config = hf.Gemma3Config(
        vision_config=VISION | {"vision_use_head": False},
        text_config=text_config(
            tokenizer,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        mm_tokens_per_image=4,
        **ids,
    )
    return hf.Gemma3ForConditionalGeneration(config), processor


def _paligemma(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    images = hf.SiglipImageProcessor(size=SQUARE)
    images.image_seq_length = (IMAGE_SIZE // PATCH) ** 2
    processor = hf.PaliGemmaProcessor(images, tokenizer, chat_template=chat(IMAGE))
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=hf.GemmaConfig(**text_config(tokenizer, head_dim=8)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _pixtral(model_type: str) -> Made:
    """Pixtral, a LLaVA whose tower takes pictures of any shape, and Mistral 3, which merges the patches."""
    import transformers as hf

    merges = model_type == "mistral3"
    tokenizer = train_tokenizer(("[IMG]", "[IMG_BREAK]", "[IMG_END]"))
    patch = 4 if merges else PATCH
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessor(size={"longest_edge": IMAGE_SIZE}, patch_size=patch),
        tokenizer,
        patch_size=patch,
        spatial_merge_size=2 if merges else 1,
        chat_template=chat("[IMG]"),
    )
    config = hf.AutoConfig.for_model(
        "mistral3" if merges else "llava",
        vision_config=hf.PixtralVisionConfig(**VISION | {"patch_size": patch}),
        text_config=hf.MistralConfig(**text_config(tokenizer, head_dim=8, sliding_window=None)),
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_layer=-1,
        **({"spatial_merge_size": 2} if merges else {"vision_feature_select_strategy": "full"}),
    )
    return hf.AutoModelForImageTextToText.from_config(config), processor


def _blip(model_type: str) -> Made:
    """BLIP-2, and InstructBLIP, which reads the prompt a second time with a tokenizer of another vocabulary."""
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    tokenizer.image_token = hf.AddedToken(IMAGE, normalized=False, special=True)
    images = hf.BlipImageProcessor(size=SQUARE)
    processor: Any
    if model_type == "instructblip":
        processor = hf.InstructBlipProcessor(images, tokenizer, train_tokenizer(ends=True), num_query_tokens=4)
    else:
        processor = hf.Blip2Processor(images, tokenizer, num_query_tokens=4)
    config = hf.AutoConfig.for_model(
        model_type,
        vision_config=VISION,
        qformer_config=SIZES | {"encoder_hidden_size": HIDDEN, "vocab_size": len(tokenizer), "num_hidden_layers": 2},
        text_config={
            "model_type": "opt",
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "ffn_dim": 48,
            "max_position_embeddings": 256,
            "vocab_size": len(tokenizer),
            **IDS,
        },
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    return hf.AutoModelForImageTextToText.from_config(config), processor


def _gemma4(model_type: str) -> Made:
    import transformers as hf

    marks = {f"{name}_token": f"<{name}>" for name in ("boi", "eoi", "image", "boa", "eoa", "audio")}
    tokenizer = train_tokenizer(extra_special_tokens=marks)
    cut = {"patch_size": 4, "max_soft_tokens": 70, "pooling_kernel_size": 2}
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(**cut),
        tokenizer,
        hf.Gemma4VideoProcessor(**cut),
        chat_template=chat("<image>"),
        image_seq_length=70,
    )
    text = text_config(
        tokenizer,
        head_dim=8,
        global_head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention", "full_attention"],
        # The last layer uses the keys and values of the one before it.
        num_kv_shared_layers=1,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tokenizer),
        use_bidirectional_attention="vision",
    )
    vision = SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in marks.items() if name != "eoa_token"}
    config = hf.Gemma4Config(
        vision_config=vision | {"pooling_kernel_size": 2, "position_embedding_size": 128},
        text_config=text,
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        eoa_token_index=tokenizer.convert_tokens_to_ids("<eoa>"),
        **ids,
    )
    return hf.Gemma4ForConditionalGeneration(config), processor


VISION_BUILDERS: dict[str, Callable[[str], Made]] = {
    "llava": _llava,
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"), _qwen_vl),
    "kosmos-2": _kosmos_2,
    "gemma3": _gemma3,
    "gemma4": _gemma4,
    "paligemma": _paligemma,
    **dict.fromkeys(("mistral3", "pixtral"), _pixtral),
    **dict.fromkeys(("blip-2", "instructblip"), _blip),
}
