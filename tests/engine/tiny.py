"""Tiny models of every family, made on the spot: random weights, tokenizers trained on a few lines, real processors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = "the a red blue green circle square star left right of above below is and there picture shows two three"
WORDS = TEXT.split()
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
IMAGE = "<image>"
QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE {% else %}{{ p['text'] }} {% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant :{% endif %}"
)
HIDDEN, LAYERS, WINDOW, IMAGE_SIZE = 32, 3, 8, 32

_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
_GROUPED = _SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 256}
_TEXT_CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _SIZES | {"max_position_embeddings": 256},
    # RoBERTa counts positions from behind the padding id, so this leaves room for 256 tokens.
    "roberta": _SIZES | {"max_position_embeddings": 258, "type_vocab_size": 1},
    "gpt2": {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 256},
    "gpt_neox": _SIZES | {"max_position_embeddings": 256},
    "opt": {
        "hidden_size": HIDDEN,
        "word_embed_proj_dim": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 256,
    },
    "llama": _GROUPED,
    "mistral": _GROUPED | {"sliding_window": WINDOW},
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 8},
    "gemma2": _GROUPED | {"head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8},
    "phi3": _GROUPED,
    "olmo2": _GROUPED,
}


def write_model(model_type: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a model of one family with its tokenizer or processor, as `save_pretrained` does."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = _BUILDERS[model_type](model_type)
        for parameter in model.parameters():
            # Biases and norms of fresh models are 0 and 1: anything that drops one would go unseen.
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def families() -> set[str]:
    """Model types that can be made."""
    return set(_BUILDERS)


def train_tokenizer(extra: tuple[str, ...] = (), *, ends: bool = False, **options: Any) -> Any:
    """A byte-pair tokenizer of `WORDS`; `<s>` goes before every text and, if it `ends`, `</s>` behind it."""
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if ends else "<s> $A", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos", "pad", "eos", "unk", "mask"), SPECIAL, strict=True))
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(extra),
        **{f"{name}_token": token for name, token in names.items()},
        **options,
    )


def _text(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    is_encoder = model_type in ("bert", "roberta")
    tokenizer = train_tokenizer(ends=is_encoder)
    head = hf.AutoModelForMaskedLM if is_encoder else hf.AutoModelForCausalLM
    config = hf.AutoConfig.for_model(model_type, **_TEXT_CONFIGS[model_type], **_IDS, vocab_size=len(tokenizer))
    return head.from_config(config), tokenizer


def _llava(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = train_tokenizer((IMAGE,))
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT.replace("IMAGE", IMAGE),
    )
    vision = hf.CLIPVisionConfig(**_SIZES | {"num_hidden_layers": 4}, image_size=IMAGE_SIZE, patch_size=8)
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=hf.LlamaConfig(**_GROUPED, **_IDS, vocab_size=len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _qwen2_5_vl(model_type: str) -> tuple[Any, Any]:
    import transformers as hf

    tokenizer = train_tokenizer(QWEN)
    sizes = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
    pixels = {"size": {"shortest_edge": 8 * 8, "longest_edge": 64 * 64}}
    processor = hf.Qwen2_5_VLProcessor(
        hf.Qwen2VLImageProcessor(**sizes, **pixels),
        tokenizer,
        hf.Qwen2VLVideoProcessor(**sizes, **pixels),
        chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(("vision_start", "vision_end", "image", "video"), QWEN[2:], strict=True)
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = hf.Qwen2_5_VLConfig(
        text_config=_GROUPED | {"vocab_size": len(tokenizer), "rope_parameters": rope} | _IDS,
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_heads": 4,
            "patch_size": 4,
            "window_size": 16,
            "fullatt_block_indexes": [1],
        },
        **ids,
    )
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _kosmos_2(model_type: str) -> tuple[Any, Any]:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    unigram = Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=list(SPECIAL), unk_token="<unk>", initial_alphabet=alphabet, show_progress=False
    )
    unigram.train_from_iterator(WORDS * 20, trainer)
    vocab = [tuple(entry) for entry in json.loads(unigram.to_str())["model"]["vocab"]]
    tokenizer = hf.XLMRobertaTokenizer(vocab=vocab)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    images = hf.CLIPImageProcessor(size=size, crop_size=size)
    processor = hf.Kosmos2Processor(images, tokenizer, num_patch_index_tokens=16)
    text = {"embed_dim": HIDDEN, "layers": LAYERS, "ffn_dim": 48, "attention_heads": 4, "vocab_size": len(tokenizer)}
    vision = _SIZES | {"num_hidden_layers": 2, "image_size": IMAGE_SIZE, "patch_size": 8}
    config = hf.Kosmos2Config(text_config=text, vision_config=vision)
    return hf.Kosmos2ForConditionalGeneration(config), processor


_BUILDERS: dict[str, Callable[[str], tuple[Any, Any]]] = {
    **dict.fromkeys(_TEXT_CONFIGS, _text),
    "llava": _llava,
    "qwen2_5_vl": _qwen2_5_vl,
    "kosmos-2": _kosmos_2,
}
