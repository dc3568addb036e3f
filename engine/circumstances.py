"""Under which circumstances a run takes place: what its numbers may depend on, and what its speed does."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

from sonde.store import versions

from .config import ExtractConfig
from .session import Session


def circumstances(session: Session, config: ExtractConfig) -> dict[str, Any]:
    """Host, device, settings of arithmetic, versions, configuration and the processor's settings, as plain JSON."""
    import torch

    device = session.model.device
    facts: dict[str, Any] = {"host": platform.node(), "device": f"{platform.machine()} CPU", "cores": os.cpu_count()}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        facts["device"] = torch.cuda.get_device_name(device)
        facts["gpu"] = {
            "count": torch.cuda.device_count(),
            "memory": torch.cuda.get_device_properties(device).total_memory,
            "capability": f"{major}.{minor}",
            "cuda": torch.version.cuda,
        }
    return facts | {
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "attention": session.model.provenance["attention"],
        "shared_prefix": session.sharing_note,
        "mask": "none" if session.collate.causal else "padding",
        "versions": versions() | {"torch": torch.__version__},
        "config": json.loads(config.model_dump_json(exclude_none=True)),
        "processor": _settings(session.model.processor),
    }


def _settings(processor: Any) -> dict[str, Any]:
    """How images and text are prepared: the classes, and every plain setting of the image processor."""
    tokenizer = getattr(processor, "tokenizer", processor)
    facts = {"class": type(processor).__name__, "tokenizer": type(tokenizer).__name__, "vocabulary": len(tokenizer)}
    image_processor = getattr(processor, "image_processor", None)
    if image_processor is not None:
        facts["images"] = json.loads(json.dumps(image_processor.to_dict(), default=str))
    return facts
