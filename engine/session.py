"""A loaded model, ready to record what a configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .batches import Batch
from .capture import Capture
from .config import DataSection, ExtractConfig
from .inputs import Encoder
from .model import Model, load_model
from .recorder import Recorder
from .structure import find_vision_blocks
from .widths import two_tokens, widths

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """What runs batches.

    Attributes
    ----------
    model
        The model.
    capture
        What is kept.
    encoder
        Prepares samples.
    recorder
        Its hooks are on the model until :meth:`close`.
    widths
        Length of a vector by site.
    """

    model: Model
    capture: Capture
    encoder: Encoder
    recorder: Recorder
    widths: Mapping[str, int]

    @classmethod
    def open(cls, config: ExtractConfig) -> Session:
        """Load the model of a configuration.

        Raises
        ------
        InputError
            If the configuration asks for what the model does not have.
        ModelError
            If the model cannot be loaded.
        """
        model = load_model(config.model)
        vision = find_vision_blocks(model.module)
        wanted, data = config.capture, config.data or DataSection()
        capture = Capture.plan(wanted.sites, wanted.tokens, wanted.layers, model.n_layers, len(vision))
        encoder = Encoder(model, capture, data.prompt_format, data.truncate)
        found = widths(model, capture)
        recorder = Recorder(model.module, model.blocks, capture, vision, two_tokens(model))
        return cls(model, capture, encoder, recorder, found)

    def close(self) -> None:
        """Take the hooks off the model."""
        self.recorder.close()

    def run(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Run one batch and return the kept states by site, as `Recorder.run` does."""
        device, dtype = self.model.device, self.model.module.dtype
        inputs = {
            key: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
            for key, value in batch.inputs.items()
        }
        marks = {name: mark.to(device) for name, mark in batch.marks.items()}
        return self.recorder.run(inputs, batch.valid.to(device), batch.image.to(device), batch.vision_rows, marks)
