"""One vector per sample out of the vectors of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .dtype import as_float32
from .schema import ALL, ALL_IMAGE, ALL_TEXT, ArraySpec

TEXT, IMAGE = 0, 1
MODALITIES = ("text", "image")
"""What the numbers of the arrays ``modality`` stand for."""

_SELECT: Mapping[str, Callable[[NDArray[np.uint8]], NDArray[np.intp]]] = {
    "last": lambda modality: np.arange(len(modality))[-1:],
    "first": lambda modality: np.arange(len(modality))[:1],
    "mean": lambda modality: np.arange(len(modality)),
    "max": lambda modality: np.arange(len(modality)),
    "image_mean": lambda modality: np.flatnonzero(modality == IMAGE),
    "text_mean": lambda modality: np.flatnonzero(modality == TEXT),
}
POOLINGS = tuple(_SELECT)
# What is of one modality alone can be made of the array that keeps no other.
_SOURCES = {"image_mean": (ALL, ALL_IMAGE), "text_mean": (ALL, ALL_TEXT)}


def check_pooling(tokens: str) -> None:
    """Raise InputError if there is no such pooling."""
    if tokens not in POOLINGS:
        raise InputError(f"tokens cannot be pooled by {tokens!r}; there are {', '.join(POOLINGS)}")


def source_of(arrays: Iterable[ArraySpec], site: str, tokens: str) -> ArraySpec | None:
    """The array of tokens that a pooling of a site is made of; None if the site keeps none that has what it needs."""
    kept = {spec.tokens: spec for spec in arrays if spec.site == site and spec.ragged}
    return next((kept[name] for name in _SOURCES.get(tokens, (ALL,)) if name in kept), None)


def pool(values: NDArray[Any], modality: NDArray[np.uint8], tokens: str) -> NDArray[np.float32]:
    """Reduce the tokens of one sample to one vector, in float32.

    Parameters
    ----------
    values
        ``[..., token, hidden]``.
    modality
        uint8 ``[token]``, indices into `MODALITIES`.
    tokens
        One of `POOLINGS`.

    Returns
    -------
    ndarray
        float32 ``[..., hidden]``; NaN where the sample has no such token.
    """
    positions = _SELECT[tokens](modality)
    if not positions.size:
        return np.full((*values.shape[:-2], values.shape[-1]), np.nan, dtype=np.float32)
    whole = positions.size == len(modality)
    kept = as_float32(np.ascontiguousarray(values if whole else values[..., positions, :]))
    reduced: NDArray[np.float32] = kept.max(axis=-2) if tokens == "max" else kept.mean(axis=-2)
    return reduced
