"""Tiny image-text models that cut pictures into tiles: random weights, the real model and processor classes."""

from __future__ import annotations

from collections.abc import Callable

from .tiny_parts import (
    GRIDS,
    HIDDEN,
    IDS,
    IMAGE,
    IMAGE_SIZE,
    PATCH,
    SQUARE,
    VISION,
    Made,
    chat,
    text_config,
    train_tokenizer,
)


def _llava_next(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    processor = hf.LlavaNextProcessor(
        hf.LlavaNextImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=SQUARE, image_grid_pinpoints=GRIDS),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat(IMAGE),
    )
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.MistralConfig(**text_config(tokenizer, sliding_window=None)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_grid_pinpoints=GRIDS,
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _llava_onevision(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE, "<video>"))
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=GRIDS),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=chat(IMAGE),
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=hf.Qwen2Config(**text_config(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRIDS,
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _internvl(model_type: str) -> Made:
    import transformers as hf

    marks = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tokenizer = train_tokenizer(extra_special_tokens=marks)
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=SQUARE, crop_to_patches=True, min_patches=1, max_patches=4),
        tokenizer,
        hf.InternVLVideoProcessor(size=SQUARE),
        image_seq_length=4,
        chat_template=chat("<IMG_CONTEXT>"),
    )
    config = hf.InternVLConfig(
        vision_config=VISION,
        text_config=hf.Qwen2Config(**text_config(tokenizer)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _idefics3(model_type: str) -> Made:
    import transformers as hf

    places = [f"<row_{row}_col_{column}>" for row in range(1, 3) for column in range(1, 3)]
    tokenizer = train_tokenizer(("<fake_token_around_image>", IMAGE, "<end_of_utterance>", "<global-img>", *places))
    # SmolVLM's own processor, which differs in videos alone, needs a package that the tests do without.
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}),
        tokenizer,
        image_seq_len=4,
        chat_template=chat(IMAGE),
    )
    # From transformers 5.20 on SmolVLM wants as many tokens of a tile as fill blocks of its patch size.
    patch, scale = (4, 4) if model_type == "smolvlm" else (PATCH, 2)
    config = hf.AutoConfig.for_model(
        model_type,
        vision_config=VISION | {"patch_size": patch},
        text_config=text_config(tokenizer, model_type="llama"),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=scale,
        **IDS,
    )
    return hf.AutoModelForImageTextToText.from_config(config), processor


def _llama4(model_type: str) -> Made:
    import transformers as hf

    marks = ("start", "end", "")
    names = tuple(f"<|image{'_' * bool(mark)}{mark}|>" for mark in marks)
    tokenizer = train_tokenizer((*names, "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>"))
    processor = hf.Llama4Processor(
        hf.Llama4ImageProcessor(size=SQUARE, max_patches=4),
        tokenizer,
        patch_size=PATCH,
        pixel_shuffle_ratio=0.5,
        chat_template=chat("<|image|>"),
    )
    vision = VISION | {"vision_output_dim": 24, "projector_input_dim": 24, "projector_output_dim": 24}
    text = text_config(
        tokenizer,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        # Chunks of attention that prompts outgrow, and one layer without rotary positions.
        attention_chunk_size=16,
        no_rope_layers=[1, 0, 1],
    )
    config = hf.Llama4Config(
        vision_config=vision | {"intermediate_size": HIDDEN * 4},
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<|patch|>"),
    )
    return hf.Llama4ForConditionalGeneration(config), processor


def _mllama(model_type: str) -> Made:
    import transformers as hf

    tokenizer = train_tokenizer(("<|image|>",))
    processor = hf.MllamaProcessor(
        hf.MllamaImageProcessor(size=SQUARE, max_image_tiles=4), tokenizer, chat_template=chat("<|image|>")
    )
    vision = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "attention_heads": 4, "intermediate_size": 48}
    config = hf.MllamaConfig(
        vision_config=vision
        | {
            "num_global_layers": 1,
            "intermediate_layers_indices": [0],
            "vision_output_dim": 2 * HIDDEN,
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
        },
        text_config=text_config(
            tokenizer, cross_attention_layers=[1], rope_parameters={"rope_type": "default", "rope_theta": 1e4}
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    return hf.MllamaForConditionalGeneration(config), processor


def _molmo2(model_type: str) -> Made:
    import transformers as hf

    names = ("im_patch", "im_col", "im_start", "low_res_im_start", "frame_start", "im_end", "frame_end", "im_low")
    tokenizer = train_tokenizer((*(f"<{name}>" for name in names), "<|image|>", "<|video|>"))
    cut = {"size": SQUARE, "patch_size": PATCH, "pooling_size": [2, 2]}
    processor = hf.Molmo2Processor(
        # Crops of four patches a side, of which the outer ones overlap with the next crop's.
        hf.Molmo2ImageProcessor(**cut, overlap_margins=[1, 1], max_crops=4),
        hf.Molmo2VideoProcessor(**cut),
        tokenizer,
        chat_template=chat("<|image|>"),
    )
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8}
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(f"<{token}>")
        for name, token in {
            "image_patch": "im_patch",
            "image_start_token": "im_start",
            "low_res_image_start_token": "low_res_im_start",
            "image_end_token": "im_end",
            "frame_start_token": "frame_start",
            "frame_end_token": "frame_end",
        }.items()
    }
    config = hf.Molmo2Config(
        vision_config=VISION | heads | {"image_size": [IMAGE_SIZE, IMAGE_SIZE]},
        adapter_config=heads
        | {"hidden_size": HIDDEN, "intermediate_size": 48, "text_hidden_size": HIDDEN, "vision_feature_layer": [1, 0]},
        text_config=text_config(tokenizer, head_dim=8, additional_vocab_size=8),
        **ids,
    )
    return hf.Molmo2ForConditionalGeneration(config), processor


TILE_BUILDERS: dict[str, Callable[[str], Made]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics3),
    "llama4": _llama4,
    "mllama": _mllama,
    "molmo2": _molmo2,
}
