"""Hooks that give a decoder the positions of a batch of shared prefixes, and every block its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .sharing import Prefixed, Reach, Sharing, added, mask_place
from .structure import Blocks

if TYPE_CHECKING:
    import torch


class PrefixHooks:
    """Puts positions and masks in the place of what a model makes of one long sequence.

    Parameters
    ----------
    model
        The base model.
    blocks
        Its stack.
    sharing
        How its attention is told.

    Attributes
    ----------
    prefixed
        Where each position of the batch that runs belongs; None: the model is left alone.
    """

    def __init__(self, model: Any, blocks: Blocks, sharing: Sharing) -> None:
        self.prefixed: Prefixed | None = None
        self._sharing = sharing
        self._dtype: torch.dtype = model.dtype
        self._masks: dict[Reach, torch.Tensor] = {}
        self._handles = [model.get_decoder().register_forward_pre_hook(self._with_positions, with_kwargs=True)]
        for block, reach in zip(blocks.layers, sharing.layers, strict=True):
            hook = self._with_mask(reach, mask_place(block))
            self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))

    def begin(self, prefixed: Prefixed | None) -> None:
        """Take what the next pass is told."""
        self.prefixed, self._masks = prefixed, {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _with_positions(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.prefixed is None:
            return None
        positions = self.prefixed.rope + self._sharing.first_position
        return args, kwargs | {"position_ids": positions, "attention_mask": None}

    def _with_mask(self, reach: Reach, place: int | None) -> Callable[..., Any]:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.prefixed is None:
                return None
            if reach not in self._masks:
                mask = self.prefixed.mask(reach)
                self._masks[reach] = added(mask, self._dtype) if self._sharing.additive else mask
            if place is not None and place < len(args):
                return (*args[:place], self._masks[reach], *args[place + 1 :]), kwargs
            return args, kwargs | {"attention_mask": self._masks[reach]}

        return hook
