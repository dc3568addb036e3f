"""Batches: samples of similar length under a token budget, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        Rows of ``pixel_values`` that each sample has: its images, or their patches.
    """

    rows: torch.Tensor
    inputs: dict[str, torch.Tensor]
    valid: torch.Tensor
    image: torch.Tensor
    vision_rows: tuple[int, ...] = ()

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
    """Join samples, which must have the same keys, into one right-padded batch.

    A batch without padding has no attention mask: the model's fast kernels run, and the numbers are the same.
    """
    import torch

    width = max(sample.length for sample in samples)
    inputs = {}
    for key in samples[0].sequence:
        fill = pad_token_id if key == "input_ids" else 0
        inputs[key] = _pad([sample.sequence[key] for sample in samples], width, fill)
    for key in samples[0].other:
        inputs[key] = _join([sample.other[key] for sample in samples])
    lengths = torch.tensor([sample.length for sample in samples])
    valid = torch.arange(width) < lengths.unsqueeze(1)
    image = _pad([sample.image.unsqueeze(0) for sample in samples], width, False)
    if bool(valid.all()) and not samples[0].other:
        inputs.pop("attention_mask", None)
    pixels = [sample.other["pixel_values"] for sample in samples if "pixel_values" in sample.other]
    rows = torch.tensor([sample.row for sample in samples])
    return Batch(rows, inputs, valid, image, tuple(len(x) for x in pixels))


def split(batch: Sequence[Encoded]) -> tuple[Sequence[Encoded], Sequence[Encoded]]:
    """Halve a batch that did not fit into memory."""
    half = len(batch) // 2
    return batch[:half], batch[half:]


def _pad(tensors: Sequence[torch.Tensor], width: int, fill: int | bool) -> torch.Tensor:
    out = tensors[0].new_full((len(tensors), width, *tensors[0].shape[2:]), fill)
    for row, tensor in enumerate(tensors):
        out[row, : tensor.shape[1]] = tensor[0]
    return out


def _join(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    import torch
    from torch.nn import functional

    if len({tensor.shape[1:] for tensor in tensors}) > 1:
        # Images cut into different numbers of tiles: the model knows the true number by other inputs.
        largest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
        tensors = [
            functional.pad(
                t, [p for have, want in zip(t.shape[:0:-1], largest[::-1], strict=True) for p in (0, want - have)]
            )
            for t in tensors
        ]
    return torch.cat(list(tensors))
