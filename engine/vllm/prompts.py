"""Prepared samples as vLLM takes them: token ids, and images as its model's own processor has made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sonde.engine.batches import Batch, Collator
from sonde.engine.encoded import Encoded
from sonde.engine.inputs import Encoder
from sonde.engine.packs import Pack
from sonde.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

    from sonde.engine.pixels import Pictures
    from sonde.engine.sample import Sample


@dataclass(frozen=True, slots=True, eq=False)
class RequestBatch(Batch):
    """A batch as requests to the engine.

    Attributes
    ----------
    requests
        One input of the engine for each sample.
    """

    requests: tuple[Any, ...] = ()


class PromptEncoder(Encoder):
    """Prepares samples; refuses those whose images vLLM could not be told the places of."""

    def _encode(self, row: int, sample: Sample, pictures: Pictures) -> Encoded:
        encoded = super()._encode(row, sample, pictures)
        if sample.images:
            try:
                image_ranges(encoded.image, len(sample.images))
            except InputError as error:
                raise InputError(f"sample {sample.id!r}: {error}") from None
        return encoded


@dataclass(frozen=True, slots=True, eq=False)
class RequestCollator(Collator):
    """Makes batches of requests.

    Attributes
    ----------
    images
        vLLM's processor of the model; None if it takes no images.
    """

    images: Any = None

    def __call__(self, packs: Sequence[Pack]) -> RequestBatch:
        """Make a batch; what goes into the vision side is in the requests alone."""
        samples = [sample for pack in packs for sample in pack.samples]
        bare = [
            Pack((replace(sample, sequence={"input_ids": sample.sequence["input_ids"]}, other={}),))
            for sample in samples
        ]
        # Explicit, as a class with slots is made anew by its decorator.
        batch = Collator.__call__(self, bare)
        # Samples of one image hold the same tensor of its pixels: its vision side runs once for a batch. A later batch
        # has other names for it, or bytes would depend on whether an earlier one has run.
        first: dict[int, int] = {}
        requests = tuple(
            self._request(sample, first.setdefault(id(sample.other.get("pixel_values", sample)), sample.row))
            for sample in samples
        )
        return RequestBatch(
            batch.rows, batch.inputs, batch.layout, batch.selections, batch.prefixed, batch.vision_rows, requests
        )

    def _request(self, sample: Encoded, name: int) -> Any:
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import PlaceholderRange

        ids = sample.sequence["input_ids"][0].tolist()
        if "pixel_values" not in sample.other:
            return tokens_input(ids)
        items = _items(self.images, sample.other)
        ranges = image_ranges(sample.image, len(items["image"]))
        places = [PlaceholderRange(start, len(mask), None if mask.all() else mask) for start, mask in ranges]
        names = [f"{name}/{i}" for i in range(len(places))]
        return mm_input(ids, items, {"image": names}, {"image": places})


def image_ranges(image: torch.Tensor, n_images: int) -> list[tuple[int, torch.Tensor]]:
    """Part the positions of images by image.

    Parameters
    ----------
    image
        bool ``[position]``.

    Returns
    -------
    list
        For each image its first position, and from there to its last which are its own, bool.

    Raises
    ------
    InputError
        If it cannot be told which position is of which image.
    """
    positions = image.nonzero().flatten()
    breaks = (positions.diff() > 1).nonzero().flatten() + 1
    pieces = positions.tensor_split(breaks)
    if len(pieces) != n_images:
        # Side by side, or in rows with something between: then all must be as long as each other.
        if len(positions) % n_images:
            raise InputError(
                f"it cannot be told which of {len(positions)} positions is of which of its {n_images} images, which "
                'vLLM must know: run it with backend = "transformers"'
            )
        pieces = positions.view(n_images, -1).unbind()
    return [(int(its[0]), image[its[0] : its[-1] + 1]) for its in pieces]


def _items(processor: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    from transformers import BatchFeature
    from vllm.multimodal.inputs import MultiModalKwargsItems

    inputs = BatchFeature(dict(tensors))
    try:
        items = MultiModalKwargsItems.from_hf_inputs(inputs, processor._get_mm_fields_config(inputs, {}))
        if set(items) == {"image"} and "pixel_values" in items["image"][0]:
            return items
        reason = f"it makes {', '.join(items) or 'nothing'} of {', '.join(tensors)}"
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise ModelError(
        f"vLLM's {type(processor).__name__} does not take images as the model's processor prepares them ({reason}): "
        'run the model with backend = "transformers"'
    )
