"""The range writer: chunks, fsync, commit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .chunks import write_chunk
from .commit import ArrayCommit, Commit
from .dtype import count_nonfinite
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
        return sum(len(a.layers) * self._schema.chunk_bytes(a) for a in self._schema.arrays)

    def buffers(self) -> dict[str, NDArray[Any]]:
        """Allocate one range: by array name ``[layer, range_size, hidden]`` in the store's dtype, all NaN."""
        return {
            a.name: np.full((len(a.layers), self._schema.range_size, a.hidden), np.nan, dtype=self._schema.numpy_dtype)
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
            As from :meth:`buffers`, filled. Rows of skipped samples and rows past the range's end are set to NaN, so
            that the bytes on the disk do not depend on what a buffer held before.
        skipped
            Row number in the store -> why it has no activations.

        Raises
        ------
        InputError
            If the buffers are not the schema's, or a skipped row is not in the range; nothing is written.
        OSError
            If the disk is full or fails; the range then has no commit and does not exist.
        """
        skipped = dict(sorted((skipped or {}).items()))
        self._check(range_, buffers, skipped)
        used = np.zeros(self._schema.range_size, dtype=bool)
        used[: len(range_)] = True
        used[[row - range_.start for row in skipped]] = False
        arrays = {}
        with ThreadPoolExecutor(_WRITERS) as pool:
            for spec in self._schema.arrays:
                buffer = buffers[spec.name]
                buffer[:, ~used] = np.nan
                keys = [spec.chunk_key(row, range_.index) for row in range(len(spec.layers))]
                chunks = pool.map(lambda key, x: write_chunk(self._location, key, x), keys, buffer)
                unused = (len(used) - int(used.sum())) * spec.hidden
                nonfinite = sum(count_nonfinite(layer) - unused for layer in buffer)
                arrays[spec.name] = ArrayCommit(tuple(chunks), nonfinite)
        self._location.sync([spec.path for spec in self._schema.arrays])
        commit = Commit(range_, arrays, skipped)
        commit.publish(self._location)
        return commit

    def _check(self, range_: Range, buffers: Mapping[str, NDArray[Any]], skipped: Mapping[int, str]) -> None:
        for spec in self._schema.arrays:
            shape = (len(spec.layers), self._schema.range_size, spec.hidden)
            buffer = buffers.get(spec.name)
            if buffer is None or (buffer.shape, buffer.dtype) != (shape, self._schema.numpy_dtype):
                found = "none" if buffer is None else f"{buffer.dtype} {list(buffer.shape)}"
                raise InputError(
                    f"range {range_.index} of {spec.name} needs a buffer {self._schema.dtype} {list(shape)}, "
                    f"got {found}: take it from RangeWriter.buffers()"
                )
        outside = [row for row in skipped if not range_.start <= row < range_.stop]
        if outside:
            raise InputError(
                f"range {range_.index} is rows {range_.start} to {range_.stop - 1}: it cannot skip {outside}"
            )
