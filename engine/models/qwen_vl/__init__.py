"""Qwen-VL and Qwen-VL-Chat: Bai et al., *Qwen-VL: A Versatile Vision-Language Model*, arXiv 2308.12966."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sonde.engine.models.port import Loaded, Port

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection


def _recognises(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") == "qwen" and "visual" in config
    except (OSError, ValueError, AttributeError):
        return False


def _load(folder: Path, section: ModelSection) -> Loaded:
    from sonde.engine.models.image_text import build

    from .config import read_config
    from .model import QwenVLModel, fill_model
    from .processor import read_processor

    config = read_config(folder)
    processor = read_processor(folder, config)
    return Loaded(build(QwenVLModel, config, section, lambda model: fill_model(model, folder)), processor)


PORT = Port(
    name="Qwen-VL",
    hub=("Qwen/Qwen-VL", "Qwen/Qwen-VL-Chat"),
    files=("config.json", "generation_config.json", "*.bin", "*.bin.index.json", "*.safetensors*", "qwen.tiktoken"),
    recognises=_recognises,
    load=_load,
)
