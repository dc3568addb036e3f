"""One layer of one activations array, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sonde.errors import InputError, StoreError

from .chunks import read_chunk
from .commit import Commit
from .dtype import as_torch
from .location import Directory
from .ranges import Range
from .schema import ArraySpec, Schema

if TYPE_CHECKING:
    import torch


class Layer:
    """Activations of one (site, tokens, layer): a lazy ``[sample, hidden]`` in the store's dtype, bfloat16 by default.

    Iterating gives ``(rows, x)`` per committed range, ``rows`` a slice of the samples and ``x``
    ``[len(rows), hidden]``, with one chunk in memory. Every chunk is checked against its commit as it is read.
    Rows of skipped samples are NaN.
    """

    def __init__(
        self,
        location: Directory,
        schema: Schema,
        spec: ArraySpec,
        layer: int,
        ranges: tuple[Range, ...],
        commits: Mapping[int, Commit],
    ) -> None:
        self.spec = spec
        self.layer = layer
        self.dtype = schema.numpy_dtype
        self._location = location
        self._row = spec.layers.index(layer)
        self._range_size = schema.range_size
        self._ranges = ranges
        self._commits = commits

    def __repr__(self) -> str:
        return f"<Layer {self.spec.name} {self.layer}: {self.dtype} [{self.shape[0]}, {self.shape[1]}]>"

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, hidden)."""
        return self._ranges[-1].stop, self.spec.hidden

    @property
    def hidden_size(self) -> int:
        """Length of a vector."""
        return self.spec.hidden

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        for range_ in self._ranges:
            if range_.index in self._commits:
                yield range_.rows, self.range(range_.index)

    def range(self, index: int) -> NDArray[Any]:
        """Read one range: ``[len(range), hidden]``.

        Raises
        ------
        StoreError
            If the range is not committed, or there is no such range.
        CorruptStoreError
            If its chunk is not what was committed.
        """
        if not 0 <= index < len(self._ranges):
            raise StoreError(f"there is no range {index}: the store has {len(self._ranges)}, from 0")
        out = np.empty((self._range_size, self.spec.hidden), dtype=self.dtype)
        self._read_into(self._ranges[index], out)
        return out[: len(self._ranges[index])]

    def numpy(self) -> NDArray[Any]:
        """Read the layer: ``[sample, hidden]``, by default of ``ml_dtypes.bfloat16``.

        Raises
        ------
        StoreError
            If some ranges are not committed yet.
        CorruptStoreError
            If a chunk is not what was committed.
        """
        size = self._range_size
        # Chunks are of equal size on the disk: the last one's padding has a place behind the rows.
        out = np.empty((len(self._ranges) * size, self.spec.hidden), dtype=self.dtype)
        for range_ in self._ranges:
            self._read_into(range_, out[range_.start : range_.start + size])
        return out[: len(self)]

    def torch(self) -> torch.Tensor:
        """Read the layer as a tensor: a view of what :meth:`numpy` reads."""
        return as_torch(self.numpy())

    def rows(self, rows: ArrayLike) -> NDArray[Any]:
        """Read some samples: ``[len(rows), hidden]`` in the order asked for; each chunk is read once.

        Raises
        ------
        InputError
            If a row is not an integer from 0 to the number of samples.
        """
        wanted = np.atleast_1d(np.asarray(rows))
        if not wanted.size:
            return np.empty((0, self.spec.hidden), dtype=self.dtype)
        if wanted.dtype.kind not in "iu" or wanted.ndim != 1 or wanted.min() < 0 or wanted.max() >= len(self):
            raise InputError(f"rows must be integers from 0 to {len(self) - 1}, got {rows!r}")
        out = np.empty((len(wanted), self.spec.hidden), dtype=self.dtype)
        index = wanted // self._range_size
        for i in np.unique(index):
            here = index == i
            out[here] = self.range(int(i))[wanted[here] - self._ranges[i].start]
        return out

    def _read_into(self, range_: Range, out: NDArray[Any]) -> None:
        commit = self._commits.get(range_.index)
        if commit is None:
            raise StoreError(
                f"{self._location} is not finished: range {range_.index} of {len(self._ranges)} is not committed; "
                "finish it with `sonde extract --resume`, or iterate over the layer to read what is there"
            )
        what = f"range {range_.index} of layer {self.layer} of {self.spec.name}"
        read_chunk(self._location, commit.arrays[self.spec.name].chunks[self._row], out, what)
