"""Where in a picture its tokens lie: the grid of the first image's positions."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

from .selectors import region_of

if TYPE_CHECKING:
    import torch

_QUERIES = "its image tokens are what learned queries found, and lie nowhere in the picture"
_TILES = "its image tokens are of several tiles of the picture, with tokens for the ends of their rows"
_NO_GRID: Mapping[str, str] = {
    "kosmos-2": _QUERIES,
    "blip-2": _QUERIES,
    "instructblip": _QUERIES,
    "emu": _QUERIES,
    "llava_next": _TILES,
    "llava_onevision": _TILES,
    "llama4": _TILES,
    "qwen_vl": _QUERIES,
    "lavit": "it keeps other patches of every picture",
    "mllama": "it attends to the image from outside of its sequence",
}
# One square image is one run of tokens, row by row.
_SQUARE = ("gemma3", "idefics3", "smolvlm", "internvl")
_REMEDY = "leave image:r,c out of capture.tokens"


def ensure_grid(config: Any, takes_images: bool) -> None:
    """Raise InputError if the image tokens of a model have no grid."""
    reason = _NO_GRID.get(config.model_type) if takes_images else "it takes text only"
    if reason is not None:
        raise InputError(f"the model ({config.model_type}) has no grid of image tokens, because {reason}: {_REMEDY}")


def find_grid(tensors: Mapping[str, torch.Tensor], image: torch.Tensor, config: Any, n_images: int) -> torch.Tensor:
    """Find the positions of the first image's tokens.

    Parameters
    ----------
    tensors
        What the processor made of the sample, besides the sequence.
    image
        bool ``[position]``: which positions stand for image content.
    config
        Of the whole model.
    n_images
        How many images the sample has.

    Returns
    -------
    Tensor
        int64 ``[row, column]``, the token at the top left of the picture first.

    Raises
    ------
    InputError
        If they are no grid.
    """
    positions = image.nonzero()[:, 0]
    runs = _runs(positions)
    rows, columns = _shape(tensors, runs, config, n_images)
    grid = positions[: rows * columns]
    if not rows or len(grid) < rows * columns or not _as_rows(runs, rows, columns):
        raise InputError(
            f"the first image has {len(runs[0])} tokens in a row, not a grid of {rows} x {columns}: {_REMEDY}"
        )
    return grid.reshape(rows, columns)


def tokens_at(grid: torch.Tensor, tokens: str) -> torch.Tensor:
    """Positions that a selector ``image:r,c`` or ``image:r,c:RxC`` names in a grid, int64 ``[token]``.

    A cell is what `numpy.array_split` makes of the rows and of the columns.

    Raises
    ------
    InputError
        If the grid has no such place, or is too small to be cut so.
    """
    region = region_of(tokens)
    assert region is not None
    rows, columns = grid.shape
    if region.cells is None:
        if not (-rows <= region.row < rows and -columns <= region.column < columns):
            raise InputError(f"tokens {tokens}: its first image has {rows} x {columns} tokens")
        return grid[region.row, region.column].reshape(1)
    if region.cells[0] > rows or region.cells[1] > columns:
        raise InputError(f"tokens {tokens}: its first image has {rows} x {columns} tokens, fewer than cells")
    of_row = grid.tensor_split(region.cells[0], dim=0)[region.row]
    return of_row.tensor_split(region.cells[1], dim=1)[region.column].flatten()


def _shape(
    tensors: Mapping[str, torch.Tensor], runs: list[torch.Tensor], config: Any, n_images: int
) -> tuple[int, int]:
    """Rows and columns of the first image's tokens."""
    kind, vision = config.model_type, config.vision_config
    if "image_grid_thw" in tensors and hasattr(vision, "spatial_merge_size"):
        # Patches of which each square of so many sides becomes one token (Qwen-VL).
        _, height, width = tensors["image_grid_thw"][0].tolist()
        return height // vision.spatial_merge_size, width // vision.spatial_merge_size
    if kind == "gemma4":
        # Column and row of each patch, -1 behind the last.
        across, down = (tensors["image_position_ids"][0].amax(dim=0) + 1).tolist()
        return down // vision.pooling_kernel_size, across // vision.pooling_kernel_size
    if kind == "mistral3" or (kind == "llava" and getattr(vision, "model_type", None) == "pixtral"):
        side = vision.patch_size * getattr(config, "spatial_merge_size", 1)
        height, width = tensors["image_sizes"][0].tolist()
        return height // side, width // side
    if kind in ("llava", "paligemma"):
        height, width = tensors["pixel_values"].shape[-2:]
        shape = height // vision.patch_size, width // vision.patch_size
        n_tokens = sum(map(len, runs))
        if n_tokens != n_images * shape[0] * shape[1]:
            # A class token among them, say.
            raise InputError(
                f"its {n_images} images have {n_tokens} tokens, not a grid of {shape[0]} x {shape[1]} each: {_REMEDY}"
            )
        return shape
    if kind in _SQUARE:
        _ensure_whole(runs, config, n_images)
        side = isqrt(len(runs[0]))
        return side, side
    raise InputError(f"how the image tokens of {kind} lie in the picture is not known: {_REMEDY}")


def _ensure_whole(runs: list[torch.Tensor], config: Any, n_images: int) -> None:
    """Raise InputError if the first run of tokens is of a part of the first image, or of several parts."""
    kind = config.model_type
    # Gemma 3 shows the whole image before its crops.
    tiled = kind in ("idefics3", "smolvlm") and len(runs) != n_images
    tiled |= kind == "internvl" and len(runs[0]) != config.image_seq_length
    if tiled:
        raise InputError(f"its first image is cut into tiles, which are no grid together: {_REMEDY}")


def _runs(positions: torch.Tensor) -> list[torch.Tensor]:
    """Positions that follow on each other, together."""
    breaks = (positions.diff() > 1).nonzero()[:, 0] + 1
    return list(positions.tensor_split(breaks.tolist()))


def _as_rows(runs: list[torch.Tensor], rows: int, columns: int) -> bool:
    """Whether the first image is one run, to which another image's may be joined, or has a run for each row."""
    lengths = [len(run) for run in runs]
    return lengths[0] >= rows * columns or lengths[:rows] == [columns] * rows
