"""Images and text to what the models of ours take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

# Radford et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021): CLIP's training data.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class SquareImages:
    """Prepares images for CLIP-like towers: resized to a square, whatever their shape, and normalised.

    Resized by Pillow's bicubic filter on 8-bit values, which is what the published models were trained with: resizing
    floats differs by up to 0.045.

    Attributes
    ----------
    size
        Height and width in pixels.
    """

    size: int

    def to_dict(self) -> dict[str, Any]:
        """What the store's log records."""
        return {"class": type(self).__name__, "size": self.size, "mean": CLIP_MEAN, "std": CLIP_STD}

    def __call__(self, images: Sequence[Image], **options: Any) -> dict[str, Any]:
        """Prepare images.

        Returns
        -------
        dict
            ``pixel_values``, float32 ``[image, channel, height, width]``.
        """
        import torch
        from PIL.Image import Resampling

        squares = [image.convert("RGB").resize((self.size, self.size), Resampling.BICUBIC) for image in images]
        values = (np.stack([np.asarray(x) for x in squares]) / 255 - CLIP_MEAN) / CLIP_STD
        pixels = np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)
        return {"pixel_values": torch.from_numpy(pixels)}


class ImageTextProcessor:
    """Prepares text with images; of an image processor and a tokenizer, as transformers' own processors are.

    Parameters
    ----------
    image_processor
        Makes ``pixel_values`` of images, and what else the model takes of them.
    tokenizer
        Fast tokenizer that knows ``image_token``.
    image_token
        Stands for an image in a text, and for each of its vectors in what is tokenised.
    tokens_per_image
        How many vectors an image becomes.
    chat_template
        Jinja2 template that makes a text of messages; None if the model has no form of a chat.

    Raises
    ------
    ValueError
        When called with as many images as the text has no places for.
    """

    def __init__(
        self,
        image_processor: Any,
        tokenizer: Any,
        image_token: str,
        tokens_per_image: int,
        chat_template: str | None = None,
    ) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.tokens_per_image = tokens_per_image
        self.chat_template = chat_template

    def __call__(self, text: Sequence[str], images: Sequence[Any] | None = None, **options: Any) -> dict[str, Any]:
        """Prepare texts, and their images: a list of those of each text, or of all."""
        flat = [x for one in images or () for x in (one if isinstance(one, list | tuple) else [one])]
        places = sum(one.count(self.image_token) for one in text)
        if places != len(flat):
            raise ValueError(f"{len(flat)} images for {places} places in the text")
        mark = re.escape(self.image_token)
        whole = [re.sub(mark, lambda found: found[0] * self.tokens_per_image, one) for one in text]
        prepared = dict(self.tokenizer(whole, **options))
        prepared.pop("token_type_ids", None)
        return prepared | (self.image_processor(flat) if flat else {})

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """Make a text of messages, as a tokenizer's method of this name."""
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)
