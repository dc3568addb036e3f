"""LaVIT, its understanding side: Jin et al., *Unified Language-Vision Pretraining in LLM with Dynamic Discrete Visual
Tokenization*, arXiv 2309.04669.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sonde.engine.models.port import Loaded, Port
from sonde.errors import ModelError

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection


_LANGUAGE = "language_model*"


def _recognises(folder: Path) -> bool:
    return (folder / "visual_tokenizer").is_dir() and any(path.is_dir() for path in folder.glob(_LANGUAGE))


def _load(folder: Path, section: ModelSection) -> Loaded:
    from sonde.engine.models.image_text import build

    from .config import read_config
    from .model import LaVITModel
    from .processor import read_processor
    from .weights import fill_model

    language = _choose(folder, section.checkpoint)
    config = read_config(folder, language)
    sampled = section.visual_tokens == "sample"
    processor = read_processor(folder, config, section.seed if sampled else None, language)
    facts = {"visual_tokens": f"sampled by image, seed {section.seed}" if sampled else "argmax"}
    if section.checkpoint is not None:
        facts["checkpoint"] = language
    model = build(LaVITModel, config, section, lambda empty: fill_model(empty, folder, language))
    return Loaded(model, processor, facts)


def _choose(folder: Path, wanted: str | None) -> str:
    """Name of the language model's folder, which the published code takes as ``model_sub_dir``."""
    there = sorted(path.name for path in folder.glob(_LANGUAGE) if path.is_dir())
    if not there or (wanted is not None and wanted not in there):
        said = f"model.checkpoint is {wanted!r}, and " if there else ""
        raise ModelError(f"{said}the folder {folder} holds {', '.join(there) or f'no {_LANGUAGE}'}")
    return wanted or there[0]


PORT = Port(
    name="LaVIT",
    hub=("rain1011/LaVIT-7B-v1", "rain1011/LaVIT-7B-v2"),
    # The visual tokenizer has decoders too, which draw images.
    files=("config.json", "language_model*/*", "visual_tokenizer/eva_*.bin", "visual_tokenizer/tokenizer_encoder.bin"),
    recognises=_recognises,
    load=_load,
)
