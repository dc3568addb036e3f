"""Batches of models that choose, as they see an image, how many of its places they fill (LaVIT)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sonde.errors import ModelError

from .batches import Batch, select
from .capture import CONNECTOR, Capture
from .selectors import index_of, needs_image
from .tokens import Layout

if TYPE_CHECKING:
    import torch

_REMEDY = "leave the sample out, or choose another model.seed or model.visual_tokens"


def leave_out(batch: Batch, kept: torch.Tensor, image_token_id: int, capture: Capture) -> Batch:
    """Take the places of images that were not chosen out of a batch, and close the gaps.

    Parameters
    ----------
    batch
        On the host, as it was joined; what follows a place may depend on it, what precedes it may not.
    kept
        bool ``[image, place]``: the places that are filled, images in the order of the sequences.
    image_token_id
        Stands at every place.
    capture
        What is kept.

    Returns
    -------
    Batch
        What goes into the vision side left out, and what each position has carried along.

    Raises
    ------
    ModelError
        If a sample has no place left, and its image's vectors are wanted, or no position that is wanted by its number.
    """
    import torch

    ids, layout = batch.inputs["input_ids"], batch.layout
    places = ids == image_token_id
    chosen = torch.ones_like(places).masked_scatter(places, kept.flatten())
    used = torch.zeros(layout.shape, dtype=torch.int64).index_add(0, layout.sequence, layout.valid.long()) > 0
    there = chosen & used
    n_positions = int(there.sum(dim=1).max())
    order = (~there).long().argsort(dim=1, stable=True)[:, :n_positions]
    there = there.gather(1, order)

    def closed(x: torch.Tensor, fill: int = 0) -> torch.Tensor:
        return x.gather(1, order).masked_fill(~there, fill)

    def of_samples(mask: torch.Tensor) -> torch.Tensor:
        return mask.gather(1, order[layout.sequence]) & there[layout.sequence]

    marks = {name: of_samples(mask) for name, mask in layout.marks.items()}
    narrowed = Layout(of_samples(layout.valid), of_samples(layout.image), layout.sequence, layout.n_sequences, marks)
    _check_positions(batch, narrowed, capture)
    prefixed = batch.prefixed
    if prefixed is not None:
        # Images are in the prefix, or the sample stands alone: all that follows moves up by the gaps before it.
        gaps = (~chosen & used).cumsum(dim=1)
        prefixed = replace(
            prefixed,
            segment=closed(prefixed.segment, -1),
            place=closed(prefixed.place - gaps),
            rope=closed(prefixed.rope - gaps),
            image_block=closed(prefixed.image_block),
        )
    along = {name: closed(x) for name, x in batch.inputs.items() if x.shape == ids.shape}
    return replace(batch, inputs=along, layout=narrowed, selections=select(capture, narrowed), prefixed=prefixed)


def _check_positions(batch: Batch, narrowed: Layout, capture: Capture) -> None:
    connector = CONNECTOR in capture.sites
    left = narrowed.image.sum(dim=1)
    emptied = batch.layout.image.any(dim=1) & (left == 0)
    if (connector or any(map(needs_image, capture.tokens))) and emptied.any():
        row = int(batch.rows[emptied][0])
        raise ModelError(
            f"the model keeps no visual token of the image of row {row}, whose vectors are wanted: {_REMEDY}"
        )
    there = left if connector else narrowed.valid.sum(dim=1)
    for tokens in capture.tokens:
        n = index_of(tokens)
        beyond = there <= n if n is not None and n >= 0 else there < -(n or 0)
        if n is not None and beyond.any():
            row, number = int(batch.rows[beyond][0]), int(there[beyond][0])
            of_image = " at the site connector" if connector else ""
            raise ModelError(
                f"tokens {tokens}: row {row} has {number} positions{of_image} without the visual tokens that the model "
                f"leaves out: {_REMEDY}"
            )
