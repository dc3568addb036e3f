"""Batches: samples of similar length under a token budget, padded on the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .inputs import Encoded

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples that run through the model together.

    Attributes
    ----------
    rows
        int64 ``[batch]``: rows in the store.
    inputs
        Keyword arguments of the model.
    valid, image
        bool ``[batch, position]``: not padding; image content.
    vision_rows
        Rows that each sample has in what the vision tower works on: its images, their tiles, or their patches.
    """

    rows: torch.Tensor
    inputs: dict[str, torch.Tensor]
    valid: torch.Tensor
    image: torch.Tensor
    vision_rows: tuple[int, ...] = ()
    marks: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return int(self.valid.sum())


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut samples into batches of at most ``token_budget`` padded tokens.

    Parameters
    ----------
    lengths
        Tokens of each sample.
    token_budget
        Bound on ``len(batch) * longest``; a sample that is longer than that runs alone.

    Returns
    -------
    list of list of int
        Indices into ``lengths``, longest first: what does not fit into memory shows in the first seconds. Depends on
        nothing but the arguments.
    """
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= token_budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def collate(samples: Sequence[Encoded], pad_token_id: int) -> Batch:
    """Join samples of one kind into one right-padded batch.

    A batch without padding has no attention mask: the model's fast kernels run, and the numbers are the same.
    """
    import torch

    width = max(sample.length for sample in samples)
    inputs = {}
    for key in samples[0].sequence:
        fill = pad_token_id if key == "input_ids" else 0
        inputs[key] = _join([sample.sequence[key] for sample in samples], fill)
    for key in samples[0].other:
        inputs[key] = _join([sample.other[key] for sample in samples])
    lengths = torch.tensor([sample.length for sample in samples])
    valid = torch.arange(width) < lengths.unsqueeze(1)
    image = _join([sample.image.unsqueeze(0) for sample in samples], False)
    if bool(valid.all()) and not samples[0].other:
        inputs.pop("attention_mask", None)
    rows = torch.tensor([sample.row for sample in samples])
    marks = {name: _join([sample.marks[name].unsqueeze(0) for sample in samples], False) for name in samples[0].marks}
    return Batch(rows, inputs, valid, image, tuple(sample.vision_rows for sample in samples), marks)


def split(batch: Sequence[Encoded]) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
    """Halve a batch that did not fit into memory."""
    half = len(batch) // 2
    return batch[:half], batch[half:]


def _join(tensors: Sequence[torch.Tensor], fill: int | bool = 0) -> torch.Tensor:
    """Join along the first axis; along the others all are filled up to the largest.

    Images of different numbers of tiles are filled up so: the model knows the true number by other inputs.
    """
    import torch

    shapes = [tensor.shape[1:] for tensor in tensors]
    if len(set(shapes)) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    out = tensors[0].new_full((sum(map(len, tensors)), *largest), fill)
    start = 0
    for tensor in tensors:
        out[(slice(start, start + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        start += len(tensor)
    return out
