"""Emu's tokenizer, prompts and images."""

from __future__ import annotations

from pathlib import Path

from sonde.engine.models.processor import ImageTextProcessor, SquareImages
from sonde.engine.models.tokenizer import read_llama

from .config import EmuConfig

# Of the instructed model's published inference: "{system} [USER]: {content} [ASSISTANT]:", stripped.
_CHAT = (
    "{% set said = namespace(text='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{% set said.text = said.text + ' [USER]: ' %}"
    "{% elif message['role'] == 'assistant' %}{% set said.text = said.text + ' [ASSISTANT]: ' %}{% endif %}"
    "{% for part in message['content'] %}"
    "{% set said.text = said.text + ('[IMG]<image>[/IMG]' if part['type'] == 'image' else part['text']) %}"
    "{% endfor %}{% endfor %}"
    "{{ (said.text + (' [ASSISTANT]:' if add_generation_prompt else '')).strip() }}"
)
_LLAMA = {"<unk>": 0, "<s>": 1, "</s>": 2}


def read_processor(folder: Path, config: EmuConfig) -> ImageTextProcessor:
    """Read a folder's tokenizer; prompts of the instructed model have the form of a chat, others none.

    An image is ``[IMG]``, as many ``<image>`` as it has vectors, and ``[/IMG]``; ``<s>`` comes before all. From the
    published code (``Emu1/inference.py``, ``Emu1/models/modeling_emu.py``).

    Raises
    ------
    ModelError
        If there is no tokenizer, or it does not go with the configuration.
    """
    # LLaMA's own are told from text, and stripped of spaces, as those that are added.
    tokenizer = read_llama(folder, _LLAMA | config.special_tokens, begins=True)
    tokenizer.pad_token = "[PAD]"
    images = SquareImages(config.vision_config.image_size)
    template = _CHAT if config.instructed else None
    return ImageTextProcessor(images, tokenizer, "<image>", config.tokens_per_image, template)
