"""Which positions of a sequence are kept, and how they are reduced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from sonde.store import ALL, ALL_IMAGE, ALL_TEXT, RAGGED

from .selectors import MAX, POSITIONS, index_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the samples of a batch lie: each in a sequence of its own, or several in one behind a prefix they share.

    Attributes
    ----------
    valid, image
        bool ``[sample, position]``: positions of its sequence that are the sample's; those that stand for its images.
    sequence
        int64 ``[sample]``: the row of the model's input that it lies in.
    n_sequences
        Rows of the model's input.
    marks
        Selector -> bool ``[sample, position]``: the positions of spans and regions.
    """

    valid: torch.Tensor
    image: torch.Tensor
    sequence: torch.Tensor
    n_sequences: int
    marks: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def apart(cls, valid: torch.Tensor, image: torch.Tensor) -> Layout:
        """Every sample in a sequence of its own."""
        import torch

        return cls(valid, image, torch.arange(len(valid)), len(valid))

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and positions of the model's input."""
        return self.n_sequences, self.valid.shape[1]

    def of_image(self) -> Layout:
        """The image's positions alone."""
        marks = {name: mark & self.image for name, mark in self.marks.items()}
        return replace(self, valid=self.valid & self.image, marks=marks)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """The kept positions of one batch, applied to the hidden states of every layer.

    Attributes
    ----------
    index
        int64 ``[sample, n]``: positions that are taken as they are, counted through all sequences.
    weights
        float32 ``[sequence, row, position]``: averages, a row of weights each, for all samples of a sequence.
    averages
        int64 ``[sample, m]``: rows of the averages, counted through all sequences.
    largest
        bool ``[sample, position]`` if there is a maximum to take: where it is taken.
    sequence
        int64 ``[sample]``: the sequence of each sample.
    order
        For each of the tokens asked for, its place among the n positions, the m averages and the maximum.
    kept
        int64 ``[token]``: positions that are kept one by one, counted through all sequences, sample after sample; None
        if none are.
    """

    index: torch.Tensor
    weights: torch.Tensor
    averages: torch.Tensor
    largest: torch.Tensor | None
    sequence: torch.Tensor
    order: torch.Tensor
    kept: torch.Tensor | None

    @classmethod
    def plan(cls, tokens: tuple[str, ...], layout: Layout) -> Selection:
        """Find the positions of one batch.

        Parameters
        ----------
        tokens
            Selectors, in the order in which they come out.
        layout
            Where the samples lie.
        """
        import torch

        valid, sequence = layout.valid, layout.sequence
        masks = {"mean": valid, "image_mean": valid & layout.image, "text_mean": valid & ~layout.image, **layout.marks}
        taken = [name for name in tokens if name in POSITIONS or index_of(name) is not None]
        means = [name for name in tokens if name in masks]
        # The n-th position that counts is where their running number is n + 1.
        number, count = valid.cumsum(dim=1), valid.sum(dim=1, keepdim=True)
        start = sequence.unsqueeze(1) * valid.shape[1]
        index = [start + _nth(number, count, valid, _PLACES.get(name, index_of(name) or 0)) for name in taken]
        weights, averages = _averages([masks[name] for name in means], layout)
        places = [*taken, *means, MAX]
        kept = [
            (start + torch.arange(valid.shape[1]).to(start))[mask] for mask in ragged_masks(tokens, layout).values()
        ]
        return cls(
            torch.cat(index, dim=1) if index else number.new_zeros((len(valid), 0)),
            weights,
            averages,
            valid if MAX in tokens else None,
            sequence,
            torch.tensor([places.index(name) for name in tokens if name not in RAGGED], dtype=torch.int64),
            torch.cat(kept) if kept else None,
        )

    def to(self, device: torch.device) -> Selection:
        """The same on a device."""
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin(self) -> Selection:
        """The same in memory that a GPU copies from on its own."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, do: Callable[[torch.Tensor], torch.Tensor]) -> Selection:
        parts: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        moved: dict[str, Any] = {name: x if x is None else do(x) for name, x in parts.items()}
        return Selection(**moved)

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take from ``[sequence, position, hidden]`` what is kept: copies, averages in float32.

        Returns
        -------
        reduced
            ``[sample, tokens, hidden]``, float32 if there are averages among them.
        kept
            ``[token, hidden]`` of all samples end to end, where positions are kept one by one.
        """
        return self.read(hidden.flatten(0, 1).__getitem__, lambda: hidden)

    def read(
        self, rows: Callable[[torch.Tensor], torch.Tensor], whole: Callable[[], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take the same of states that lie elsewhere, and of these no more than is needed.

        Parameters
        ----------
        rows
            Gives the states ``[..., hidden]`` at positions ``[...]`` counted through all sequences, as copies.
        whole
            Gives all of them, ``[sequence, position, hidden]``; what it has at padding does not matter if it is finite.
        """
        import torch

        parts = [rows(self.index)]
        averaged = self.averages.shape[1] > 0
        if averaged or self.largest is not None:
            hidden = whole()
            if averaged:
                averages = torch.bmm(self.weights, hidden.float()).flatten(0, 1)
                parts = [parts[0].float(), averages[self.averages]]
            if self.largest is not None:
                own = hidden[self.sequence].masked_fill(~self.largest.unsqueeze(-1), -torch.inf)
                parts.append(own.amax(dim=1, keepdim=True).to(parts[0].dtype))
        reduced = torch.cat(parts, dim=1).index_select(1, self.order)
        return reduced, None if self.kept is None else rows(self.kept)


def ragged_masks(tokens: tuple[str, ...], layout: Layout) -> dict[str, torch.Tensor]:
    """Ragged selector -> bool ``[sample, position]``: the positions that it keeps, in the order of `Selection.kept`."""
    valid, image = layout.valid, layout.image
    masks = {ALL: valid, ALL_IMAGE: valid & image, ALL_TEXT: valid & ~image}
    return {name: masks[name] for name in tokens if name in masks}


_PLACES = {"first": 0, "last": -1}


def _nth(number: torch.Tensor, count: torch.Tensor, valid: torch.Tensor, n: int) -> torch.Tensor:
    """Position of the n-th that counts, from the end if negative: int64 ``[sample, 1]``."""
    wanted = count + n + 1 if n < 0 else count.new_full(count.shape, n + 1)
    return ((number == wanted) & valid).float().argmax(dim=1, keepdim=True)


def _averages(masks: list[torch.Tensor], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights ``[sequence, row, position]``, and the rows ``[sample, mean]`` counted through all sequences."""
    import torch

    sequence, (n_sequences, positions) = layout.sequence, layout.shape
    # The place of a sample among those of its sequence.
    before = (sequence.unsqueeze(0) == sequence.unsqueeze(1)).tril(-1).sum(dim=1)
    per_sequence = (int(before.max()) + 1) * len(masks)
    rows = (sequence * per_sequence + before * len(masks)).unsqueeze(1) + torch.arange(len(masks))
    weights = torch.zeros((n_sequences * per_sequence, positions))
    for i, mask in enumerate(masks):
        share = mask.float()
        weights[rows[:, i]] = share / share.sum(dim=1, keepdim=True)
    return weights.view(n_sequences, per_sequence, positions), rows
