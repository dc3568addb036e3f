"""One sample as a model takes it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sample as the model takes it.

    Attributes
    ----------
    row
        Row of the sample in the store.
    sequence
        Tensors along the positions, ``[1, position]``: ``input_ids``, ``attention_mask``, …
    other
        The rest, such as ``pixel_values``; joined along the first axis in a batch.
    image
        bool ``[position]``: which positions stand for image content.
    vision_rows
        How many rows of the vision tower's input are the sample's; 0 if there are none, or it cannot be told.
    apart
        Samples of different numbers are not run together.
    marks
        bool ``[position]`` by selector, of those asked for whose positions are the sample's own to say: ``span:…`` and
        ``image:…``. At least one position each.
    """

    row: int
    sequence: Mapping[str, torch.Tensor]
    other: Mapping[str, torch.Tensor]
    image: torch.Tensor
    vision_rows: int = 0
    apart: int = 0
    marks: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def last_image(self) -> int:
        """The last position that stands for image content; -1 if there is none."""
        positions = self.image.nonzero()
        return int(positions[-1]) if len(positions) else -1

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.image)

    @property
    def kind(self) -> tuple[Hashable, ...]:
        """What all samples of a batch have in common, so that none is changed by a neighbour.

        Names of tensors; what depends on their length; and how many images a mask tells apart: Mllama lets positions
        that attend to no image attend to all of the batch's.
        """
        return (*self.sequence, *self.other, *(x.shape[2:] for x in self.sequence.values()), self.apart)

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        return sum(t.nbytes for group in (self.sequence, self.other) for t in group.values())

    def sharing(self, first: Encoded) -> Encoded:
        """The same with another sample's tensors where all that is not along the positions is alike."""
        mine, its = self.other, first.other
        alike = mine.keys() == its.keys() and all(
            x is its[name] or (x.shape == its[name].shape and x.equal(its[name])) for name, x in mine.items()
        )
        return replace(self, other=its) if alike else self
