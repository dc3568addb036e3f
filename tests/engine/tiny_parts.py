"""What all tiny models are made of: sizes, chat templates, tokenizers trained on a few lines."""

from __future__ import annotations

import json
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

HIDDEN, LAYERS, IMAGE_SIZE, PATCH, WINDOW = 32, 3, 32, 8, 8

IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48}
GROUPED = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 256}
VISION = SIZES | {"num_hidden_layers": 2, "image_size": IMAGE_SIZE, "patch_size": PATCH}
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
# Pictures are cut into up to four tiles.
GRIDS = [[32, 64], [64, 32], [64, 64]]
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}

Made = tuple[Any, Any]
"""A model and its processor."""


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


def train_unigram_tokenizer() -> Any:
    """A unigram tokenizer of `WORDS`, of XLM-RoBERTa's kind."""
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
    return hf.XLMRobertaTokenizer(vocab=vocab)


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Configuration of a language side of Llama's kind."""
    return GROUPED | IDS | {"vocab_size": len(tokenizer)} | more


def chat(mark: str) -> str:
    """A chat template that puts a mark at each image's place."""
    return CHAT.replace("IMAGE", mark)
