"""The range writer: chunks, fsync, commit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .chunks import write_chunk
from .commit import ArrayCommit, Commit
from .dtype import bfloat16, count_nonfinite
from .location import Directory
from .ranges import Range
from .schema import Schema

# Waiting for one disk takes no processor: a few writers keep its queue filled.
_WRITERS = 4


class RangeWriter:
    """Writes whole ranges to a location, one chunk per array and layer.

    Parameters
    ----------
    location
        The store's folder, whose metadata is already there.
    schema
        Its arrays and range size.
    """

    def __init__(self, location: Directory, schema: Schema) -> None:
        self._location = location
        self._schema = schema

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the buffers of one range take."""
        return sum(len(a.layers) * self._schema.range_size * a.hidden * bfloat16.itemsize for a in self._schema.arrays)

    def buffers(self) -> dict[str, NDArray[Any]]:
        """Allocate one range: by array name, bfloat16 ``[layer, range_size, hidden]``, all NaN."""
        return {
            a.name: np.full((len(a.layers), self._schema.range_size, a.hidden), np.nan, dtype=bfloat16)
            for a in self._schema.arrays
        }

    def commit(
        self, range_: Range, buffers: Mapping[str, NDArray[Any]], skipped: Mapping[int, str] | None = None
    ) -> Commit:
        """Write a range's chunks, wait until they are on the disk, then publish its commit record.

        Parameters
        ----------
        range_
            Which samples.
        buffers
            As from :meth:`buffers`, filled; rows of skipped samples and rows past the range's end stay NaN.
        skipped
            Row number in the store -> why it has no activations.

        Raises
        ------
        OSError
            If the disk is full or fails; the range then has no commit and does not exist.
        """
        skipped = dict(sorted((skipped or {}).items()))
        used = np.ones(len(range_), dtype=bool)
        used[[row - range_.start for row in skipped]] = False
        arrays = {}
        with ThreadPoolExecutor(_WRITERS) as pool:
            for spec in self._schema.arrays:
                buffer = buffers[spec.name]
                keys = [spec.chunk_key(row, range_.index) for row in range(len(spec.layers))]
                chunks = pool.map(lambda key, x: write_chunk(self._location, key, x), keys, buffer)
                nonfinite = sum(count_nonfinite(layer[: len(range_)][used]) for layer in buffer)
                arrays[spec.name] = ArrayCommit(tuple(chunks), nonfinite)
        self._location.sync([spec.path for spec in self._schema.arrays])
        commit = Commit(range_, arrays, skipped)
        commit.publish(self._location)
        return commit
