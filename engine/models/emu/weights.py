"""Emu's published weights: one file of a state dictionary, with LoRA's matrices beside those that they change."""

from __future__ import annotations

from pathlib import Path

import torch

from sonde.engine.models.checkpoint import read_tensors
from sonde.errors import ModelError

# Where the language model is in the file: inside of peft's wrappers, and of the pretrained model.
_INSTRUCTED = "decoder.lm.base_model.model.model."
_PREFIXES = ("decoder.lm.model.", _INSTRUCTED)


class Weights:
    """One published file.

    Attributes
    ----------
    path
        The file.
    tensors
        Name -> tensor.
    language
        What stands in front of the names of the language model's tensors.

    Raises
    ------
    ModelError
        If the file cannot be read, or holds no Emu.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tensors = read_tensors([path])
        found = [prefix for prefix in _PREFIXES if f"{prefix}embed_tokens.weight" in self.tensors]
        if not found:
            names = " or ".join(repr(f"{prefix}embed_tokens.weight") for prefix in _PREFIXES)
            raise ModelError(f"the checkpoint {path} lacks {names}: give a file of Emu as it was published")
        self.language = found[0]

    @property
    def n_tokens(self) -> int:
        """Rows of the table of token embeddings."""
        return len(self.tensors[f"{self.language}embed_tokens.weight"])

    @property
    def instructed(self) -> bool:
        """Whether they are those of the instruction-tuned model, which peft saved."""
        return self.language == _INSTRUCTED

    def names_of(self, projection: str, *, adapted: bool) -> tuple[str, ...]:
        """Names of a projection's matrix and, where it is ``adapted``, of LoRA's A and B, by any version of peft."""
        base = next(
            (name for name in (f"{projection}.weight", f"{projection}.base_layer.weight") if name in self.tensors),
            f"{projection}.weight",
        )
        if not adapted:
            return (base,)
        pairs = [tuple(f"{projection}.lora_{which}{end}" for which in "AB") for end in (".default.weight", ".weight")]
        return (base, *next((pair for pair in pairs if any(name in self.tensors for name in pair)), pairs[0]))


def merge(alpha: float, rank: int, base: torch.Tensor, *lora: torch.Tensor) -> torch.Tensor:
    """``W + alpha / rank · B A``, added in float32; Hu et al., *LoRA: Low-Rank Adaptation of Large Language Models*
    (2021).

    Raises
    ------
    IndexError
        If A is of another rank.
    """
    if not lora:
        return base
    a, b = lora
    if len(a) != rank:
        raise IndexError
    return base.float() + alpha / rank * (b.float() @ a.float())
