"""Pictures: decoded, and counted in what a vision tower works on."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

from .picture import Picture

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def open_image(picture: Picture) -> Image:
    """Decode an image.

    Raises
    ------
    InputError
        If it is not there, or cannot be read.
    """
    import PIL.Image

    source = picture if isinstance(picture, Path) else io.BytesIO(picture.read())
    try:
        with PIL.Image.open(source) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {picture}") from None
    except PIL.UnidentifiedImageError as error:
        # Pillow's own words name the buffer's place in memory, and a store says the same whenever it is written.
        raise InputError(f"the image {picture} cannot be read: it has no format that Pillow knows") from error
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"the image {picture} cannot be read: {error}") from error


def count_vision_rows(tensors: Mapping[str, torch.Tensor], config: Any) -> int:
    """Count the rows that one sample has in what the vision tower works on: its images, tiles or patches.

    Parameters
    ----------
    tensors
        What the processor made of the sample.
    config
        Of the whole model.

    Returns
    -------
    int
        0 if the sample has no image, or if patches of padding would be among the rows.
    """
    pixels = tensors.get("pixel_values")
    if pixels is None:
        return 0
    if pixels.dim() == 5:
        # [image, tile, ...] (LLaVA-Next) or [sample, tile, ...] (Idefics3): tiles that fill up are zeros, and not run.
        return int(pixels.flatten(2).any(dim=2).sum())
    if "image_num_crops" in tensors:
        # [crop, patch, values], the crops of all images of the sample (Molmo2).
        return len(pixels)
    if "image_sizes" in tensors:
        # [image, channel, height, width], padded; the patches of the true sizes are run end to end (Pixtral).
        patch = getattr(config.vision_config, "patch_size", None)
        return int((tensors["image_sizes"] // patch).prod(dim=1).sum()) if isinstance(patch, int) else 0
    # [image or tile, channel, height, width], or [patch, values]; what else there is carries padding along.
    return len(pixels) if pixels.dim() in (2, 4) else 0


def number_patches(samples: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Make the inputs of a batch that number patches count from the batch's first, and not from each sample's own.

    Molmo2 is told by such numbers which patches are pooled to a token; -1 is none.

    Parameters
    ----------
    samples
        What the processor made of each sample's images, in the order of the batch.

    Returns
    -------
    dict
        ``image_token_pooling``, int64 ``[token, patch]``; empty if there is no such input.
    """
    import torch

    numbers, first = [], 0
    for tensors in samples:
        pooled = tensors.get("image_token_pooling")
        if pooled is None:
            return {}
        numbers.append(torch.where(pooled >= 0, pooled + first, pooled))
        first += tensors["pixel_values"].shape[:2].numel()
    return {"image_token_pooling": torch.cat(numbers)} if numbers else {}


class Pictures:
    """The images of samples that have the same ones: opened and, if ``once``, processed once.

    Attributes
    ----------
    processor
        What prepares samples with these images.
    """

    def __init__(self, pictures: Sequence[Picture], processor: Any, *, once: bool) -> None:
        self._pictures = pictures
        self.processor = processor
        if once and self._pictures and hasattr(processor, "image_processor"):
            self.processor = copy.copy(processor)
            self.processor.image_processor = _Remembering(processor.image_processor)

    @property
    def images(self) -> list[Image]:
        """All of them, decoded.

        Raises
        ------
        InputError
            If one is not there, or cannot be read; of that too one look is enough.
        """
        if isinstance(self._opened, InputError):
            raise self._opened
        return self._opened

    @cached_property
    def _opened(self) -> list[Image] | InputError:
        try:
            return [open_image(picture) for picture in self._pictures]
        except InputError as error:
            return error


class _Remembering:
    """An image processor that is always asked the same, and answers what it did at first."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._answer: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._answer is None:
            self._answer = self._processor(*args, **kwargs)
        # Some processors take things out of the answer.
        return copy.copy(self._answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)
