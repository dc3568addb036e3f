"""Batches: sequences of similar length under a token budget, padded on the right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .capture import CONNECTOR, Capture
from .encoded import Encoded
from .packs import Pack
from .pixels import number_patches
from .sharing import Prefixed
from .tokens import Layout, Selection

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Samples that run through the model together.

    Attributes
    ----------
    rows
        int64 ``[sample]``: rows in the store.
    inputs
        Keyword arguments of the model, ``[sequence, position]`` and what goes into the vision side.
    layout
        Where the samples lie.
    selections
        What is kept, of all positions (``text``) and of the image's (``connector``).
    prefixed
        Where each position belongs, if there are sequences of several samples.
    vision_rows
        Rows that each sequence has in what the vision tower works on: its images, their tiles, or their patches.
    """

    rows: torch.Tensor
    inputs: dict[str, torch.Tensor]
    layout: Layout
    selections: Mapping[str, Selection]
    prefixed: Prefixed | None = None
    vision_rows: tuple[int, ...] = ()

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples, those of a prefix counted for each."""
        return int(self.layout.valid.sum())

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """The same with what the model is given on its device, floats in its dtype; the layout stays where it is.

        Noise stays in float32, in which what it is added to is computed (LaVIT).
        """
        return replace(
            self,
            inputs={
                name: x.to(device, dtype if x.is_floating_point() and name != "noise" else None, non_blocking=True)
                for name, x in self.inputs.items()
            },
            selections={name: selection.to(device) for name, selection in self.selections.items()},
            prefixed=self.prefixed.to(device) if self.prefixed else None,
        )

    def pin(self) -> Batch:
        """The same in memory that a GPU copies from on its own."""
        return replace(
            self,
            inputs={name: x.pin_memory() for name, x in self.inputs.items()},
            selections={name: selection.pin() for name, selection in self.selections.items()},
            prefixed=self.prefixed.pin() if self.prefixed else None,
        )


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Cut sequences into batches of at most ``token_budget`` padded tokens.

    Parameters
    ----------
    lengths
        Tokens of each sequence.
    token_budget
        Bound on ``len(batch) * longest``; a sequence that is longer than that runs alone.

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


@dataclass(frozen=True, slots=True, eq=False)
class Collator:
    """Joins sequences of one kind into right-padded batches.

    Attributes
    ----------
    capture
        What is kept.
    pad_token_id
        Fills positions behind the end.
    causal
        Whether what is behind a position leaves it as it is. Such a model needs no mask for what is padded, so that its
        fast kernels run; others go without one where nothing is padded.
    rope
        Gives the positions of one sample, int64 ``[3, position]``, to models that have three of them.
    pinned
        Whether batches lie in memory that a GPU copies from on its own.
    """

    capture: Capture
    pad_token_id: int
    causal: bool = False
    rope: Callable[[Encoded], torch.Tensor] | None = None
    pinned: bool = False

    def __call__(self, packs: Sequence[Pack]) -> Batch:
        """Join sequences."""
        import torch

        firsts = [pack.samples[0] for pack in packs]
        inputs = {}
        for key in firsts[0].sequence:
            fill = self.pad_token_id if key == "input_ids" else 0
            inputs[key] = _join([_line_up(pack, key) for pack in packs], fill)
        for key in firsts[0].other:
            inputs[key] = _join([sample.other[key] for sample in firsts])
        inputs |= number_patches([sample.other for sample in firsts])
        lengths = {pack.length for pack in packs}
        shared = any(pack.prefix for pack in packs)
        if self.causal or shared or (len(lengths) == 1 and not firsts[0].other):
            inputs.pop("attention_mask", None)
        layout = _lay_out(packs, max(lengths))
        batch = Batch(
            rows=torch.tensor([sample.row for pack in packs for sample in pack.samples]),
            inputs=inputs,
            layout=layout,
            selections=select(self.capture, layout),
            prefixed=_place(packs, max(lengths), self.rope) if shared else None,
            vision_rows=tuple(sample.vision_rows for sample in firsts),
        )
        return batch.pin() if self.pinned else batch


def select(capture: Capture, layout: Layout) -> dict[str, Selection]:
    """What is kept of a batch, of all positions and, if it is asked for, of the image's."""
    selections = {"text": Selection.plan(capture.tokens, layout)}
    if CONNECTOR in capture.sites:
        selections[CONNECTOR] = Selection.plan(capture.tokens_of(CONNECTOR), layout.of_image())
    return selections


def split(batch: Sequence[Pack]) -> tuple[Sequence[Pack], Sequence[Pack]]:
    """Halve a batch that did not fit into memory; one sequence is parted into two."""
    if len(batch) == 1:
        one, other = batch[0].halve()
        return [one], [other]
    half = len(batch) // 2
    return batch[:half], batch[half:]


def _line_up(pack: Pack, key: str) -> torch.Tensor:
    """One tensor of a sequence: the prefix from its first sample, then what each has behind it."""
    import torch

    first, *others = (sample.sequence[key] for sample in pack.samples)
    return torch.cat([first, *(tensor[:, pack.prefix :] for tensor in others)], dim=1) if others else first


def _lay_out(packs: Sequence[Pack], width: int) -> Layout:
    import torch

    n_samples = sum(len(pack.samples) for pack in packs)
    names = packs[0].samples[0].marks
    masks = {name: torch.zeros((n_samples, width), dtype=torch.bool) for name in ("valid", "image", *names)}
    sequence: list[int] = []
    for number, pack in enumerate(packs):
        for sample, own in zip(pack.samples, _suffixes(pack), strict=True):
            whole = {"valid": torch.ones(sample.length, dtype=torch.bool), "image": sample.image, **sample.marks}
            for name, mask in whole.items():
                masks[name][len(sequence), : pack.prefix] = mask[: pack.prefix]
                masks[name][len(sequence), own] = mask[pack.prefix :]
            sequence.append(number)
    return Layout(masks.pop("valid"), masks.pop("image"), torch.tensor(sequence), len(packs), masks)


def _suffixes(pack: Pack) -> list[slice]:
    """Where what each sample has to itself lies in the sequence."""
    ends = list(itertools.accumulate((sample.length - pack.prefix for sample in pack.samples), initial=pack.prefix))
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def _place(packs: Sequence[Pack], width: int, rope: Callable[[Encoded], torch.Tensor] | None) -> Prefixed:
    import torch

    segment = torch.full((len(packs), width), -1)
    # Zero behind the end: a sequence may have more positions than the model has numbers for.
    place = torch.zeros((len(packs), width), dtype=torch.int64)
    image_block = torch.zeros_like(place)
    for i, pack in enumerate(packs):
        segment[i, : pack.prefix] = 0
        place[i, : pack.prefix] = torch.arange(pack.prefix)
        # All images are in the prefix, or the sample stands alone.
        first = pack.samples[0]
        kinds = first.sequence.get("mm_token_type_ids")
        image = (first.image if kinds is None else kinds[0] == 1).int()
        image_block[i, : len(image)] = torch.diff(image, prepend=image[:1] * 0).clamp(min=0).cumsum(0) * image
        for k, (sample, own) in enumerate(zip(pack.samples, _suffixes(pack), strict=True), 1):
            segment[i, own] = k
            place[i, own] = torch.arange(pack.prefix, sample.length)
    if rope is None:
        return Prefixed(segment, place, place, image_block)
    positions = place.repeat(3, 1, 1)
    for i, pack in enumerate(packs):
        for sample, own in zip(pack.samples, _suffixes(pack), strict=True):
            its = rope(sample)
            positions[:, i, : pack.prefix] = its[:, : pack.prefix]
            positions[:, i, own] = its[:, pack.prefix :]
    return Prefixed(segment, place, positions, image_block)


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
