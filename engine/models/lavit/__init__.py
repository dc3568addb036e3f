"""LaVIT, its understanding side: Jin et al., *Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual
Tokenization*, arXiv 2309.04669.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sonde.engine.models.port import Loaded, Port

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection


def _recognises(folder: Path) -> bool:
    return (folder / "visual_tokenizer").is_dir() and (folder / "language_model").is_dir()


def _load(folder: Path, section: ModelSection) -> Loaded:
    from sonde.engine.models.image_text import build

    from .config import read_config
    from .model import LaVITModel
    from .processor import read_processor
    from .weights import fill_model

    config = read_config(folder)
    sampled = section.visual_tokens == "sample"
    processor = read_processor(folder, config, section.seed if sampled else None)
    chosen = f"sampled by image, seed {section.seed}" if sampled else "argmax"
    model = build(LaVITModel, config, section, lambda empty: fill_model(empty, folder))
    return Loaded(model, processor, {"visual_tokens": chosen})


PORT = Port(
    name="LaVIT",
    hub=("rain1011/LaVIT-7B-v1", "rain1011/LaVIT-7B-v2"),
    files=("config.json", "language_model/*", "visual_tokenizer/*"),
    recognises=_recognises,
    load=_load,
)
