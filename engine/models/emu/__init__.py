"""Emu, pretrained and instruction-tuned: Sun et al., *Generative Pretraining in Multimodality*, arXiv 2307.05222."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from sonde.engine.models.port import Loaded, Port
from sonde.errors import ModelError

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection

# As the hub has them; its folder of the pretrained model is taken alone as well.
_CHECKPOINTS = (
    "Emu-instruct.pt",
    "Emu-pretrain.pt",
    "pretrain/multimodal_encoder/pytorch_model.bin",
    "multimodal_encoder/pytorch_model.bin",
)


def _recognises(folder: Path) -> bool:
    if any((folder / name).is_file() for name in (*_CHECKPOINTS, "Emu-14B.json")):
        return True
    try:
        return "vladapter_cfg" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _load(folder: Path, section: ModelSection) -> Loaded:
    from sonde.engine.models.image_text import build

    from .config import read_config
    from .model import EmuModel, fill_model
    from .processor import read_processor
    from .weights import Weights

    if section.weights == "random":
        config = read_config(folder, instructed=section.checkpoint == "Emu-instruct.pt")
        return Loaded(build(EmuModel, config, section), read_processor(folder, config))
    weights = Weights(_choose(folder, section.checkpoint))
    config = read_config(folder, instructed=weights.instructed, n_tokens=weights.n_tokens)
    model = build(EmuModel, config, section, lambda empty: fill_model(empty, weights))
    return Loaded(model, read_processor(folder, config), {"checkpoint": str(weights.path.relative_to(folder))})


def _choose(folder: Path, wanted: str | None) -> Path:
    there = [name for name in _CHECKPOINTS if (folder / name).is_file()]
    if not there:
        raise ModelError(
            f'the folder {folder} holds none of {", ".join(_CHECKPOINTS)}: fetch one, or say model.weights = "random"'
        )
    if wanted is None and len(there) > 1:
        raise ModelError(f"the folder {folder} holds {', '.join(there)}: choose one by model.checkpoint")
    if wanted is not None and wanted not in there:
        raise ModelError(
            f"model.checkpoint is {wanted!r}, and the folder {folder} holds {', '.join(there)}: name one of these"
        )
    return folder / (wanted or there[0])


PORT = Port(
    name="Emu",
    hub=("BAAI/Emu",),
    files=("*.json", "tokenizer.model"),
    recognises=_recognises,
    load=_load,
    checkpoints=_CHECKPOINTS,
)
