"""What a model of ours says of itself, so that it is found and loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection

_WEIGHTS = ["*.bin", "*.pt", "*.safetensors"]


@dataclass(frozen=True, slots=True, eq=False)
class Loaded:
    """A loaded model.

    Attributes
    ----------
    module
        An `ImageTextModel`.
    processor
        Its `ImageTextProcessor`.
    facts
        What the store records besides what it records of every model, such as which checkpoint was read.
    """

    module: Any
    processor: Any
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Port:
    """A model of ours.

    Attributes
    ----------
    name
        As people call it.
    hub
        Names of its published checkpoints on the hub.
    files
        Patterns of the files that are fetched from there.
    recognises
        Whether a folder holds one.
    load
        Reads a folder, as ``[model]`` says.
    checkpoints
        Files of weights of which ``model.checkpoint`` chooses one.
    """

    name: str
    hub: tuple[str, ...]
    files: tuple[str, ...]
    recognises: Callable[[Path], bool]
    load: Callable[[Path, ModelSection], Loaded]
    checkpoints: tuple[str, ...] = ()

    def folder(self, section: ModelSection) -> Path:
        """The folder of a checkpoint, fetched from the hub if it is no folder yet.

        Raises
        ------
        ModelError
            If it cannot be fetched, or has several checkpoints and none is chosen.
        """
        folder = Path(section.name).expanduser()
        if folder.is_dir():
            return folder
        from huggingface_hub import snapshot_download

        patterns = [*self.files, *self._weights(section)]
        try:
            found = snapshot_download(
                section.name,
                revision=section.revision,
                allow_patterns=patterns,
                ignore_patterns=_WEIGHTS if section.weights == "random" else None,
            )
            return Path(found)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ModelError(
                f"cannot fetch the model {section.name!r}: {reason}; give a hub id that can be reached, or the folder "
                "of its files"
            ) from error

    def _weights(self, section: ModelSection) -> tuple[str, ...]:
        """Which checkpoints are fetched: they are too large to fetch more than one, or any for random weights."""
        if section.weights == "random":
            return ()
        if section.checkpoint is not None:
            return (section.checkpoint,)
        if len(self.checkpoints) > 1:
            raise ModelError(
                f"{section.name!r} has several checkpoints: choose one by model.checkpoint, such as "
                f"{self.checkpoints[0]!r}"
            )
        return self.checkpoints
