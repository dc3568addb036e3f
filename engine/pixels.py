"""Pictures: read from files, and counted in what a vision tower works on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


def open_image(path: Path) -> Image:
    """Decode an image file.

    Raises
    ------
    InputError
        If it is not there, or cannot be read.
    """
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {path}") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"the image {path} cannot be read: {error}") from error


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
    if "image_sizes" in tensors:
        # [image, channel, height, width], padded; the patches of the true sizes are run end to end (Pixtral).
        patch = getattr(config.vision_config, "patch_size", None)
        return int((tensors["image_sizes"] // patch).prod(dim=1).sum()) if isinstance(patch, int) else 0
    # [image or tile, channel, height, width], or [patch, values]; what else there is carries padding along.
    return len(pixels) if pixels.dim() in (2, 4) else 0
