"""Where the blocks of a model are, found by structure and not by a list of names per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

_VISION_TOWERS = ("vision", "visual")
_OTHER_TOWERS = ("vision", "visual", "image", "audio", "speech", "video")
# Kinds of layers that keep nothing but keys and values.
_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention", "attention")
# Models whose forward pass refuses text without an image, though their language side takes it.
_REFUSE_TEXT = ("kosmos-2", "blip-2", "instructblip")


@dataclass(frozen=True, slots=True)
class Blocks:
    """The decoder's (or encoder's) stack.

    Attributes
    ----------
    layers
        The blocks, in order.
    norms
        Normalisations that stand beside the stack; the one that runs after the last block is the final norm.
    path
        Name of the stack in the model, for provenance.
    optional
        Blocks that a pass without images leaves out: they do nothing but attend to the image (Mllama).
    """

    layers: nn.ModuleList
    norms: tuple[nn.Module, ...]
    path: str
    optional: frozenset[int] = frozenset()


def find_blocks(model: Any) -> Blocks:
    """Find the stack of blocks of a transformers model.

    The language side comes from ``get_decoder()``; in it, the stack is the shallowest ``ModuleList`` of
    ``config.get_text_config().num_hidden_layers`` entries.

    Raises
    ------
    ModelError
        If there is no such list or more than one, or an encoder's beside a decoder's.
    """
    from torch import nn

    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder, with two streams: take a model that is one or the other"
        )
    n_layers = getattr(config, "num_hidden_layers", None)
    decoder = model.get_decoder()
    candidates = [
        (name.count("."), name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == n_layers
        and not any(tower in part for part in name.split(".") for tower in _OTHER_TOWERS)
    ]
    if not candidates:
        raise ModelError(
            f"cannot find the blocks of {type(model).__name__}: its decoder {type(decoder).__name__} has no list of "
            f"{n_layers} modules; `sonde models` lists models that work"
        )
    depth, name, layers = min(candidates, key=lambda c: c[0])
    alike = [other for its, other, _ in candidates if its == depth]
    if len(alike) > 1:
        raise ModelError(
            f"cannot tell the blocks of {type(model).__name__}: its decoder {type(decoder).__name__} has several lists "
            f"of {n_layers} modules, {', '.join(alike)}; `sonde models` lists models that work"
        )
    parent = decoder.get_submodule(name.rpartition(".")[0])
    norms = tuple(child for child in parent.children() if "norm" in type(child).__name__.lower())
    return Blocks(layers, norms, name, frozenset(getattr(config, "cross_attention_layers", None) or ()))


def find_vision_blocks(model: Any) -> tuple[nn.Module, ...]:
    """Find the blocks of a model's vision tower; empty if there is none.

    They are the first ``ModuleList`` of as many entries as the vision configuration has layers, under a name that
    speaks of vision.
    """
    from torch import nn

    config = getattr(model.config, "vision_config", None)
    depths = {getattr(config, name, None) for name in ("num_hidden_layers", "depth", "num_layers")} - {None}
    for name, module in model.named_modules():
        named = any(tower in part for part in name.split(".") for tower in _VISION_TOWERS)
        if named and isinstance(module, nn.ModuleList) and len(module) in depths:
            return tuple(module)
    return ()


def text_side(model: Any) -> Any:
    """Return what text without images runs through: the model, or its language side where the model refuses it."""
    return model.get_decoder() if model.config.model_type in _REFUSE_TEXT else model


def count_positions(model: Any) -> int | None:
    """Return the most tokens that a model has positions for, where its configuration says so.

    Position tables that have a padding row (RoBERTa's kind) count from behind it, which the configuration leaves out.
    """
    from torch import nn

    positions: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and positions < 1:
        # XLNet's way to say that there is no end.
        positions = None
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            return module.num_embeddings - module.padding_idx - 1
    return positions


def attention_alone(config: Any) -> bool:
    """Whether all layers carry on keys and values alone, as far as the configuration says: none is recurrent."""
    return all(kind in _ATTENTION for kind in getattr(config, "layer_types", None) or ())


def find_rope_changes(config: Any) -> tuple[int, ...]:
    """Return the lengths beyond which a model changes its rotary positions, ascending; most models have none.

    They are changed for a whole batch where its longest sequence is beyond such a length (``longrope``).
    """
    parameters = getattr(config.get_text_config(), "rope_parameters", None) or {}
    # Layers of different types may have some each.
    kinds = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    return tuple(sorted({kind["original_max_position_embeddings"] for kind in kinds if _goes_by_length(kind)}))


def _goes_by_length(rope: Mapping[str, Any]) -> bool:
    return rope.get("rope_type") == "longrope" and rope.get("original_max_position_embeddings") is not None
