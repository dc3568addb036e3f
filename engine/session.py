"""A loaded model, ready to record what a configuration asks for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from .batches import Batch, Collator
from .capture import Capture
from .causality import is_causal, keeps_padding_out
from .choosing import leave_out
from .config import DataSection, ExtractConfig
from .inputs import Encoder
from .model import Model, load_model
from .recorder import Recorder, States
from .sharing import Sharing, find_rope, find_sharing
from .structure import find_vision_blocks
from .widths import some_tokens, widths


@dataclass(frozen=True, slots=True, eq=False)
class Session(ABC):
    """What runs batches.

    Attributes
    ----------
    model
        The model.
    capture
        What is kept.
    encoder
        Prepares samples.
    collate
        Joins them into batches.
    widths
        Length of a vector by site.
    sharing
        How samples that begin alike share what they begin with; None if they do not.
    sharing_note
        Whether they do, and if not why, in words.
    """

    model: Model
    capture: Capture
    encoder: Encoder
    collate: Collator
    widths: Mapping[str, int]
    sharing: Sharing | None
    sharing_note: str

    @staticmethod
    def open(config: ExtractConfig) -> Session:
        """Load the model of a configuration.

        Raises
        ------
        InputError
            If the configuration asks for what the model does not have.
        ModelError
            If the model cannot be loaded.
        """
        if config.model.backend == "vllm":
            from .vllm.session import VllmSession

            return VllmSession.prepare(config)
        return TransformersSession.load(config)

    @property
    def calibrated(self) -> bool:
        """Whether batches of different sizes may be run to find the best one."""
        return True

    @abstractmethod
    def start(self, token_budget: int | None = None) -> None:
        """Make ready to run batches of at most so many padded tokens, where opening has not."""

    @abstractmethod
    def run(self, batch: Batch) -> tuple[States, Batch]:
        """Run one batch.

        Returns
        -------
        states
            What is kept of it, where the model runs.
        batch
            The one that ran, on the host: without the image positions that a model chose to leave out.
        """

    @abstractmethod
    def close(self) -> None:
        """End what was made to run batches."""


@dataclass(frozen=True, slots=True, eq=False)
class TransformersSession(Session):
    """A model of transformers, or one of ours, in this process.

    Attributes
    ----------
    recorder
        Its hooks are on the model until :meth:`close`.
    """

    recorder: Recorder

    @classmethod
    def load(cls, config: ExtractConfig) -> TransformersSession:
        """Load the model of a configuration; errors as of `Session.open`."""
        model = load_model(config.model)
        vision = find_vision_blocks(model.module)
        wanted, data = config.capture, config.data or DataSection()
        capture = Capture.plan(wanted.sites, wanted.tokens, wanted.layers, model.n_layers, len(vision))
        found = widths(model, capture)
        causal = is_causal(model)
        padded = causal or keeps_padding_out(model)
        encoder = Encoder(model, capture, data.prompt_format, data.truncate, padded=padded)
        sharing = find_sharing(model, causal=causal) if config.run.shared_prefix else "run.shared_prefix is off"
        note = f"no, because {sharing}" if isinstance(sharing, str) else "yes"
        told = None if isinstance(sharing, str) else sharing
        collate = Collator(
            capture, encoder.pad_token_id, causal, find_rope(model.module), pinned=model.device.type == "cuda"
        )
        recorder = Recorder(model.module, model.blocks, capture, vision, some_tokens(model), told)
        return cls(model, capture, encoder, collate, found, told, note, recorder)

    def start(self, token_budget: int | None = None) -> None:
        """Nothing is left to make ready."""

    def close(self) -> None:
        """Take the hooks off the model."""
        self.recorder.close()

    def run(self, batch: Batch) -> tuple[States, Batch]:
        """Run one batch."""
        import torch

        device, dtype = self.model.device, self.model.module.dtype
        exact = device.type == "cuda" and dtype == torch.float32
        ran, moved = batch, batch.to(device, dtype)

        def see() -> Batch:
            nonlocal ran
            images = {name: x for name, x in moved.inputs.items() if x.shape != moved.inputs["input_ids"].shape}
            features, kept = self.model.module.choose(**images)
            assert self.model.image_token_id is not None
            ran = leave_out(batch, kept.to("cpu"), self.model.image_token_id, self.capture)
            narrowed = ran.to(device, dtype)
            return replace(narrowed, inputs=narrowed.inputs | {"image_features": features})

        chooses = getattr(self.model.module, "chooses_image_tokens", False) and "pixel_values" in batch.inputs
        with _exact_convolutions() if exact else nullcontext():
            return self.recorder.run(moved, see if chooses else None), ran


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """Keep cuDNN from cutting float32 to TF32, which matrix products do only where the user asks for it."""
    from torch.backends import cudnn

    backends: Any = (cudnn.conv, cudnn.rnn)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
