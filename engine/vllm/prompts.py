"""Prepared samples as vLLM takes them: token ids, and images as its model's own processor has made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sonde.engine.batches import Batch, Collator
from sonde.engine.encoded import Encoded
from sonde.engine.inputs import Encoder
from sonde.engine.packs import Pack
from sonde.errors import InputError, ModelError

from .images import Images, image_ranges

if TYPE_CHECKING:
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
        Makes inputs of samples with images; None if vLLM takes none for the model.
    """

    images: Images | None = None

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
        from vllm.inputs.engine import tokens_input

        if "pixel_values" not in sample.other:
            return tokens_input(sample.sequence["input_ids"][0].tolist())
        if self.images is None:
            raise ModelError('vLLM takes no images for this model: run it with backend = "transformers"')
        return self.images(sample, str(name))
