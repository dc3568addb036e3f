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
    # SmolVLM takes the tokens of a tile in as many as a patch has pixels along an edge.
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


TILE_BUILDERS: dict[str, Callable[[str], Made]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "internvl": _internvl,
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics3),
    "llama4": _llama4,
    "mllama": _mllama,
}
