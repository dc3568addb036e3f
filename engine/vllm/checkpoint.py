"""A model that vLLM is to load: its files, and all that is known of it without its weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sonde.engine.config import ModelSection
from sonde.engine.model import Model, checked_name, fingerprint, load_native
from sonde.engine.models import find_port
from sonde.engine.structure import find_blocks
from sonde.errors import ModelError

if TYPE_CHECKING:
    import torch

_PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken")


def find_folder(section: ModelSection) -> Path:
    """The folder of a model's files, fetched from the hub if it is no folder yet.

    Raises
    ------
    ModelError
        If there is no such model, or vLLM does not have it.
    """
    if (port := find_port(section.name)) is not None:
        raise ModelError(f'vLLM does not have {port.name}: run {section.name!r} with backend = "transformers"')
    where = checked_name(section.name)
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import snapshot_download

    try:
        # Mistral's folders have all weights a second time, in a form of its own.
        found = snapshot_download(
            where, revision=section.revision, allow_patterns=list(_PATTERNS), ignore_patterns=["consolidated*"]
        )
        return Path(found)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise ModelError(
            f"cannot fetch the model {section.name!r}: {reason}; give a hub id that can be reached, or a folder with a "
            "config.json"
        ) from error


def load_skeleton(section: ModelSection, folder: Path) -> Model:
    """Make a model's modules without their weights, its processor, and what the store records of it.

    Raises
    ------
    ModelError
        If the folder has no model that transformers knows, or not all of its weights.
    """
    # vLLM itself would leave what is missing as memory happens to be.
    local = section.model_copy(update={"name": str(folder), "revision": None, "attention": None})
    loaded = load_native(local, skeleton=True)
    module = loaded.module.eval()
    blocks = find_blocks(module)
    provenance = {
        "name": section.name,
        # A snapshot's folder is named by its commit.
        "revision": section.revision or (None if Path(section.name).expanduser().is_dir() else folder.name),
        "class": type(module).__name__,
        "blocks": blocks.path,
        "n_layers": len(blocks.layers),
        "dtype": section.dtype,
        "backend": "vllm",
        "attention": section.attention,
        "weights": section.weights,
        "fingerprint": "random" if section.weights == "random" else fingerprint(_weights(folder)),
    }
    return Model(module, loaded.processor, blocks, provenance)


def _weights(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(
            f"the folder {str(folder)!r} has no weights in safetensors, which the vllm backend asks for: run it with "
            'backend = "transformers"'
        )
    for file in files:
        try:
            with safe_open(file, "pt") as tensors:
                for name in sorted(tensors.keys()):
                    yield name, tensors.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read ({error}): fetch it again") from error
