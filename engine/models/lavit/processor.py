"""LaVIT's tokenizer and images, with the noise by which their tokens are sampled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.engine.models.processor import ImageTextProcessor, SquareImages
from sonde.engine.models.tokenizer import read_llama

from .config import LaVITConfig

if TYPE_CHECKING:
    from PIL.Image import Image

_CHAT = (
    "{% set said = namespace(images='', text='') %}"
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{% set said.images = said.images + '<img><image></img>' %}"
    "{% else %}{% set said.text = said.text + part['text'] %}{% endif %}"
    "{% endfor %}{% endfor %}"
    "{{ said.images }}"
    "{% if said.text.endswith(':') %}{{ said.text }}{% else %}Question: {{ said.text }} Answer:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class SampledImages:
    """Prepares images, and draws for each the noise that samples its tokens.

    What is drawn for an image depends on its pixels and the seed alone: it has the same tokens in every prompt, batch
    and run. The published code draws anew whenever it sees one.

    Attributes
    ----------
    squares
        Prepares the pixels.
    n_patches
        Of an image.
    seed
        Of the noise.
    """

    squares: SquareImages
    n_patches: int
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """What the store's log records."""
        return self.squares.to_dict() | {"class": type(self).__name__, "seed": self.seed}

    def __call__(self, images: Sequence[Image], **options: Any) -> dict[str, Any]:
        """Prepare images.

        Returns
        -------
        dict
            ``pixel_values`` as of `SquareImages`, and ``noise``, float32 ``[image, patch, 2]``, Gumbel-distributed.
        """
        import torch

        prepared = self.squares(images)
        noise = []
        for pixels in prepared["pixel_values"]:
            digest = hashlib.sha256(f"{self.seed} ".encode() + pixels.numpy().tobytes()).digest()
            drawing = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            drawn = torch.empty(self.n_patches, 2).exponential_(generator=drawing)
            noise.append(-drawn.clamp(min=torch.finfo(torch.float32).tiny).log())
        return prepared | {"noise": torch.stack(noise)}


def read_processor(
    folder: Path, config: LaVITConfig, seed: int | None, language: str = "language_model"
) -> ImageTextProcessor:
    """Read the tokenizer of the language model's folder.

    An image is ``<img>``, its tokens, ``</img>``, and there is no ``<s>``. Prompts are those of the published code
    (``LaVIT/models/lavit_for_understanding.py``): the image, then ``Question: … Answer:``; a question that ends with a
    colon is left as it is.

    Parameters
    ----------
    seed
        Of the noise that samples an image's tokens; None: no noise.

    Raises
    ------
    ModelError
        If there is no tokenizer, or it does not go with the configuration.
    """
    special = {
        "<img>": config.image_start_token_id,
        "</img>": config.image_end_token_id,
        "<image>": config.image_token_id,
    }
    tokenizer = read_llama(folder / language, special, begins=False)
    # As in the published code; nothing attends to what pads.
    tokenizer.pad_token = tokenizer.eos_token
    squares = SquareImages(config.vision_config.image_size)
    images = squares if seed is None else SampledImages(squares, config.tokens_per_image, seed)
    return ImageTextProcessor(images, tokenizer, "<image>", config.tokens_per_image, _CHAT)
