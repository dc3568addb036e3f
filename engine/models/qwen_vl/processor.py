"""Qwen-VL's tokenizer, prompts and images."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sonde.engine.models.processor import ImageTextProcessor, SquareImages
from sonde.engine.models.tokenizer import read_json, read_tiktoken, wrapped

from .config import QwenVLConfig

_IMAGE = "<img><imgpad></img>"
_WRITTEN = re.compile("(?:<img>)?<imgpad>(?:</img>)?")
_MARKS = ("<img>", "</img>", "<imgpad>")
# In the order of their ids, from the end of the ranks on: those of the text model, and those of the image-text model.
_SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    *(f"<|extra_{i}|>" for i in range(205)),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"),
)
# How the published tokenizer parts a text before it joins bytes; the same as Qwen2's.
_PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The prompt of the published evaluation of the base model on questions.
_BASE = (
    f"{{% set image = '{_IMAGE}' %}}{{% set said = namespace(text='') %}}"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% set said.text = said.text + (image if part['type'] == 'image' else part['text']) %}"
    "{% endfor %}{% endfor %}"
    "{{ said.text }}{% if add_generation_prompt and not said.text.endswith(':') %} Answer:{% endif %}"
)
# Of Qwen-VL-Chat: ChatML, each image on a line of its own with its number.
_CHAT = (
    f"{{% set image = '{_IMAGE}' %}}{{% set seen = namespace(images=0) %}}"
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set seen.images = seen.images + 1 %}"
    "Picture {{ seen.images }}: {{ image }}\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class QwenVLProcessor(ImageTextProcessor):
    """Prepares text with images, whose marks of start and end may be left out."""

    def __call__(self, text: Sequence[str], images: Sequence[Any] | None = None, **options: Any) -> dict[str, Any]:
        """Prepare texts, and their images: a list of those of each text, or of all.

        Raises
        ------
        ValueError
            If a text has a mark of start or end without an image, such as the path of one between them: the model
            would put images there.
        """
        written = [_WRITTEN.sub(_IMAGE, one) for one in text]
        for one in written:
            left = next((mark for mark in _MARKS if mark in one.replace(_IMAGE, "")), None)
            if left is not None:
                raise ValueError(f"its text has {left} without an image: write {_IMAGE} where an image is")
        return super().__call__(written, images, **options)


def read_processor(folder: Path, config: QwenVLConfig) -> ImageTextProcessor:
    """Read the tokenizer of a folder: ``tokenizer.json`` if there is one, else the published ``qwen.tiktoken``.

    Prompts are those of the published code: ``<img>…</img>question Answer:`` for Qwen-VL (``eval_mm/evaluate_vqa.py``;
    a question that ends with a colon is left as it is), ChatML for Qwen-VL-Chat, which its ``generation_config.json``
    tells by ``chat_format`` (``qwen_generation_utils.py``).

    Raises
    ------
    ModelError
        If there is no tokenizer, or its tokens of images are not the configuration's.
    """
    numbers = (config.image_start_token_id, config.image_end_token_id, config.image_token_id)
    special = dict(zip(_MARKS, numbers, strict=True))
    options = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json(folder, special, **options)
    else:
        found = read_tiktoken(folder / "qwen.tiktoken", _PARTS, _SPECIAL)
        tokenizer = wrapped(found, folder, special, **options)
    template = _CHAT if _is_chat(folder) else _BASE
    images = SquareImages(config.vision_config.image_size)
    return QwenVLProcessor(images, tokenizer, "<imgpad>", config.tokens_per_image, template)


def _is_chat(folder: Path) -> bool:
    try:
        said = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        return bool(said.get("chat_format") == "chatml")
    except (OSError, ValueError, AttributeError):
        return False
