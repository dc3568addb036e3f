"""Samples that begin alike share what they begin with: one sequence ``[prefix][suffix 1]…[suffix K]``.

Every suffix attends to the prefix and to itself, and its positions go on where the prefix ends, so that each sample is
computed as if it stood alone while the prefix (an image, above all) is computed once. The decoder is given the
positions, and each block its mask, in place of what they would make of one long sequence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .encoded import Encoded
from .families import FAMILIES
from .structure import attention_alone

if TYPE_CHECKING:
    import torch

    from .model import Model

_VERIFIED = frozenset(family.model_type for family in FAMILIES if family.supported)
_MASKED_KERNELS = ("sdpa", "eager")
# Text whose tokens attend to all of the prompt, so that its end changes its beginning.
PREFIX_ATTENTION = ("paligemma",)


@dataclass(frozen=True, slots=True)
class Reach:
    """Which positions a layer's attention reaches, besides that they are not ahead.

    Attributes
    ----------
    window, chunk
        How many positions back, and the length of the chunks that it stays in; None: all.
    image
        Whether tokens of one image reach each other ahead as well: ``always``, or within the ``window``; ``all``: those
        of all images each other.
    """

    window: int | None = None
    chunk: int | None = None
    image: Literal["never", "always", "window", "all"] = "never"


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a model's attention is told of a shared prefix.

    Attributes
    ----------
    layers
        What each layer reaches.
    additive
        Whether the kernel adds its mask (eager) instead of taking it for a choice.
    longest
        Most positions of a sequence, where the model counts them by itself.
    first_position
        Number that the model gives to the first position.
    hidden_size
        Of the language model.
    """

    layers: tuple[Reach, ...]
    additive: bool
    longest: int | None
    first_position: int
    hidden_size: int


@dataclass(frozen=True, slots=True, eq=False)
class Prefixed:
    """Where each position of a batch of shared sequences belongs; int64 ``[sequence, position]`` if not said otherwise.

    Attributes
    ----------
    segment
        0 in the prefix, k in the k-th suffix, -1 behind the end.
    place
        Number of the position in its sample; 0 behind the end.
    rope
        Position as the decoder is given it; ``[3, sequence, position]`` where it has three of them.
    image_block
        Running number of the image; 0 where there is none.
    """

    segment: torch.Tensor
    place: torch.Tensor
    rope: torch.Tensor
    image_block: torch.Tensor

    def to(self, device: torch.device) -> Prefixed:
        """The same on a device."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> Prefixed:
        """The same in memory that a GPU copies from on its own."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, do: Callable[[torch.Tensor], torch.Tensor]) -> Prefixed:
        return Prefixed(do(self.segment), do(self.place), do(self.rope), do(self.image_block))

    def mask(self, reach: Reach) -> torch.Tensor:
        """Which position attends to which: bool ``[sequence, 1, query, key]``."""
        block, chunk = self.image_block, self.place // (reach.chunk or 1)
        ahead = self.place.unsqueeze(2) - self.place.unsqueeze(1)
        if reach.image == "all":
            block = block.clamp(max=1)
        image = (block.unsqueeze(2) == block.unsqueeze(1)) & (block > 0).unsqueeze(2)
        allowed = ahead >= 0
        if reach.image == "window":
            allowed |= image
        if reach.window is not None:
            allowed &= ahead < reach.window
        if reach.chunk is not None:
            allowed &= chunk.unsqueeze(2) == chunk.unsqueeze(1)
        if reach.image in ("always", "all"):
            allowed |= image
        query, key = self.segment.unsqueeze(2), self.segment.unsqueeze(1)
        return (allowed & ((key == 0) | (key == query))).unsqueeze(1)


def added(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask for a kernel that adds it to the logits."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def find_sharing(model: Model, *, causal: bool) -> Sharing | str:
    """Find out how a model can be told of a shared prefix, or why it cannot.

    Parameters
    ----------
    causal
        Whether what stands behind a position leaves it as it is.
    """
    config = model.module.config
    text = config.get_text_config()
    kinds = tuple(getattr(text, "layer_types", None) or ())
    kernel = getattr(text, "_attn_implementation", None) or getattr(config, "_attn_implementation", None)
    if config.model_type not in _VERIFIED:
        return f"it is not verified for {config.model_type}"
    if config.model_type in PREFIX_ATTENTION:
        return "the model's text attends to all of its prompt"
    if not causal:
        return "the model's positions attend to what follows them"
    if kernel not in _MASKED_KERNELS:
        return f"the attention kernel {kernel} takes no mask"
    if not attention_alone(text) or mask_place(model.blocks.layers[0]) is None:
        return "the model has layers without attention"
    takes_positions = "position_ids" in inspect.signature(model.module.get_decoder().forward).parameters
    if not takes_positions or getattr(text, "alibi", False):
        return "the model counts positions by itself"
    if not kinds:
        kinds = ("sliding_attention" if getattr(text, "sliding_window", None) else "full_attention",) * model.n_layers
    stack = model.module.get_decoder().get_submodule(model.blocks.path.rpartition(".")[0])
    table: Any = getattr(stack, "embed_positions", None)
    return Sharing(
        layers=tuple(_reach(kind, config.model_type, text) for kind in kinds),
        additive=kernel == "eager",
        # Llama 4 counts positions of its own, from 1, to temper attention: otherwise from this one on.
        longest=text.floor_scale - 1 if hasattr(text, "floor_scale") else None,
        # Tables that number positions from behind the padding's (Kosmos-2).
        first_position=table.padding_idx + 1 if hasattr(table, "create_position_ids_from_input_ids") else 0,
        hidden_size=text.hidden_size,
    )


def _reach(kind: str, model_type: str, text: Any) -> Reach:
    window = text.sliding_window if kind == "sliding_attention" else None
    chunk = text.attention_chunk_size if kind == "chunked_attention" else None
    if model_type in ("gemma3", "molmo2"):
        return Reach(window, chunk, "always" if model_type == "gemma3" else "all")
    both_ways = getattr(text, "use_bidirectional_attention", None) == "vision" and window is not None
    return Reach(window, chunk, "window" if both_ways else "never")


def mask_place(block: Any) -> int | None:
    """Which argument of a block is its mask."""
    names = list(inspect.signature(block.forward).parameters)
    return names.index("attention_mask") if "attention_mask" in names else None


def find_rope(module: Any) -> Callable[[Encoded], torch.Tensor] | None:
    """What gives the positions of one sample to a model that has three of them; None for models with one."""
    index = getattr(module, "get_rope_index", None)
    if index is None:
        return None
    names = inspect.signature(index).parameters

    def rope(sample: Encoded) -> torch.Tensor:
        import torch

        tensors = {**sample.sequence, **sample.other}
        if "image_grid_thw" not in tensors:
            return torch.arange(sample.length).repeat(3, 1)
        positions: torch.Tensor = index(**{name: x for name, x in tensors.items() if name in names})[0]
        return positions[:, 0]

    return rope
