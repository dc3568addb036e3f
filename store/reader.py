"""What all readers of one layer have in common: where it is, and which of its ranges are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sonde.errors import InputError, StoreError

from .codecs import CODECS
from .commit import ArrayCommit, Commit
from .flight import in_flight
from .location import Location
from .ranges import Range
from .schema import ArraySpec, Schema

T = TypeVar("T")
R = TypeVar("R")


class LayerReader:
    """One layer of one array of a store.

    Attributes
    ----------
    spec, layer
        The array, and the model's layer.
    dtype
        Of the activations in memory.
    """

    def __init__(
        self, location: Location, schema: Schema, spec: ArraySpec, layer: int, commits: Mapping[int, Commit]
    ) -> None:
        self.spec = spec
        self.layer = layer
        self.dtype = schema.numpy_dtype
        self._location = location
        self._schema = schema
        self._codec = CODECS[schema.codec]
        self._row = spec.layers.index(layer)
        self._ranges = schema.ranges
        self._commits = commits

    def __len__(self) -> int:
        return self._schema.n_samples

    @property
    def hidden_size(self) -> int:
        """Length of a vector."""
        return self.spec.hidden

    @property
    def digest(self) -> str:
        """Digest of the checksums of this layer's committed chunks: equal ones mean equal activations."""
        digest = hashlib.blake2b(digest_size=16)
        for range_ in self._committed:
            array = self._array(range_)
            scale = "" if array.scale is None else array.scale.crc32c
            digest.update(f"{range_.index} {array.chunks[self._row].crc32c} {scale}\n".encode())
        return digest.hexdigest()

    @property
    def _committed(self) -> list[Range]:
        return [range_ for range_ in self._ranges if range_.index in self._commits]

    def _ahead(self, read: Callable[[T], R], places: Sequence[T]) -> Iterator[R]:
        """Read places in order, some ahead of the caller."""
        return in_flight(read, places, self._location.in_flight)

    def _range(self, index: int) -> Range:
        if not 0 <= index < len(self._ranges):
            raise StoreError(f"there is no range {index}: the store has {len(self._ranges)}, from 0")
        return self._ranges[index]

    def _array(self, range_: Range) -> ArrayCommit:
        commit = self._commits.get(range_.index)
        if commit is None:
            raise StoreError(
                f"{self._location} is not finished: range {range_.index} of {len(self._ranges)} is not committed; "
                "finish it with `sonde extract --resume`, or iterate over the layer to read what is there"
            )
        return commit.arrays[self.spec.name]

    def _locate(self, rows: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Check sample numbers, and find the index of the range of each.

        Raises
        ------
        InputError
            If one is not an integer from 0 to the number of samples.
        """
        wanted: NDArray[Any] = np.atleast_1d(np.asarray(rows))
        if not wanted.size:
            wanted = wanted.astype(np.int64)
        elif wanted.dtype.kind not in "iu" or wanted.ndim != 1 or wanted.min() < 0 or wanted.max() >= len(self):
            raise InputError(f"rows must be integers from 0 to {len(self) - 1}, got {rows!r}")
        starts = np.array([range_.start for range_ in self._ranges])
        return wanted, np.searchsorted(starts, wanted, side="right") - 1
