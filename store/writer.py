"""The range writer: chunks, fsync, commit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import local
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError

from . import metadata
from .chunks import Chunk, write_chunk
from .codecs import CODECS
from .commit import ArrayCommit, Commit, TokenCommit, tokens_folder
from .dtype import count_nonfinite
from .location import Location
from .pooling import source_of
from .quantize import quantize
from .ranges import Range
from .schema import ArraySpec, Schema
from .token_buffer import TokenBuffer

# Waiting for one disk takes no processor: a few writers keep its queue filled.
WRITERS = 4


class RangeWriter:
    """Writes whole ranges to a location, one chunk per array and layer.

    Parameters
    ----------
    location
        The store's folder, whose metadata is already there.
    schema
        Its arrays and range size.
    """

    def __init__(self, location: Location, schema: Schema) -> None:
        self._location = location
        self._schema = schema
        self._codec = CODECS[schema.codec]

    @property
    def nbytes(self) -> int:
        """Bytes of host memory that the buffers of one range take, without arrays of tokens."""
        return sum(
            len(a.layers) * self._schema.range_size * a.hidden * self._schema.numpy_dtype.itemsize
            for a in self._schema.arrays
            if not a.ragged and not a.pooled
        )

    def buffers(self) -> dict[str, Any]:
        """Make room for one range.

        Returns
        -------
        dict
            By array name: ``[layer, range_size, hidden]`` in the store's dtype (float32 for int8), all NaN; for an
            array of tokens a `TokenBuffer`. Arrays that are pooled of it are filled by :meth:`commit`.
        """
        return {
            a.name: TokenBuffer(a, self._schema) if a.ragged else self.empty(a)
            for a in self._schema.arrays
            if not a.pooled
        }

    def commit(self, range_: Range, buffers: Mapping[str, Any], skipped: Mapping[int, str] | None = None) -> Commit:
        """Write a range's chunks, wait until they are on the disk, then publish its commit record.

        Parameters
        ----------
        range_
            Which samples.
        buffers
            As from :meth:`buffers`, filled. Rows of skipped samples and rows past the range's end are set to NaN, so
            that the bytes on the disk do not depend on what a buffer held before.
        skipped
            Number of a sample in the store -> why it has no activations.

        Raises
        ------
        InputError
            If the buffers are not the schema's, or a skipped sample is not in the range; nothing is written.
        OSError
            If the disk is full or fails; the range then has no commit and does not exist.
        """
        skipped = dict(sorted((skipped or {}).items()))
        self._check(range_, buffers, skipped)
        arranged = {name: b.arrange(range_, skipped) for name, b in buffers.items() if isinstance(b, TokenBuffer)}
        arrays = {}
        with ThreadPoolExecutor(WRITERS) as pool:
            for spec in self._schema.arrays:
                if spec.ragged:
                    arrays[spec.name] = self._write_tokens(pool, spec, range_, arranged[spec.name])
                    continue
                if spec.pooled:
                    buffer = self.empty(spec)
                    source = source_of(self._schema.arrays, spec.site, spec.tokens)
                    if source is None:
                        raise StoreError(f"'{spec.name}' is pooled, but its site keeps no tokens to make it of")
                    buffers[source.name].pooled(spec, buffer, range_, skipped)
                else:
                    buffer = buffers[spec.name]
                arrays[spec.name] = self.write_rows(pool, spec, range_, buffer, skipped)
        # Of a range without a token the values are a folder without a chunk.
        values = [f"{tokens_folder(spec, range_)}/values" for spec in self._schema.arrays if spec.ragged]
        self._location.sync([*values, *(folder for array in arrays.values() for folder in array.folders)])
        commit = Commit(range_, arrays, skipped)
        commit.publish(self._location)
        return commit

    def write_rows(
        self,
        pool: ThreadPoolExecutor,
        spec: ArraySpec,
        range_: Range,
        buffer: NDArray[Any],
        skipped: Mapping[int, str],
    ) -> ArrayCommit:
        """Write one array's chunks of a range, without making them exist; arguments as of :meth:`commit`."""
        used = np.zeros(self._schema.range_size, dtype=bool)
        used[: len(range_)] = True
        used[[row - range_.start for row in skipped]] = False
        buffer[:, ~used] = np.nan
        keys = [spec.chunk_key(row, range_.index) for row in range(len(spec.layers))]
        unused = len(spec.layers) * (len(used) - int(used.sum())) * spec.hidden
        if self._schema.dtype == "int8":
            stored, scales = quantize(buffer)
            scale = write_chunk(self._location, f"{spec.scale_path}/c.0.{range_.index}", scales)
            chunks = pool.map(self._write, keys, stored)
            nonfinite = sum(map(count_nonfinite, buffer))
            return ArrayCommit(tuple(chunks), nonfinite - unused, scale)
        written = list(pool.map(self._write_and_count, keys, buffer))
        return ArrayCommit(tuple(chunk for chunk, _ in written), sum(n for _, n in written) - unused)

    def _write_tokens(self, pool: ThreadPoolExecutor, spec: ArraySpec, range_: Range, tokens: Any) -> ArrayCommit:
        folder = tokens_folder(spec, range_)
        self._location.clear(folder)
        objects = metadata.tokens_group(self._schema, spec, tokens).items()
        described = pool.map(lambda item: self._location.write(f"{folder}/{item[0]}", [item[1]]), objects)
        index = {
            name: pool.submit(write_chunk, self._location, f"{folder}/{name}/c.0", getattr(tokens, name))
            for name in ("offsets", "token_ids", "modality")
        }
        places = [(row, index) for row in range(len(spec.layers)) for index in range(tokens.n_chunks)]
        scales = np.full((len(spec.layers), tokens.n_chunks * tokens.chunk_tokens), np.nan, dtype=np.float32)

        # One chunk's memory for each thread: new memory costs as much as the copy into it.
        room = local()

        def write(place: tuple[int, int]) -> tuple[Chunk, int]:
            row, index = place
            key = f"{folder}/values/c.{row}.{index}.0"
            if not hasattr(room, "x"):
                room.x = tokens.empty_chunk()
            x = tokens.chunk(row, index, room.x)
            if self._schema.dtype != "int8":
                return self._write_and_count(key, x)
            start = index * tokens.chunk_tokens
            q, scales[row, start : start + tokens.chunk_tokens] = quantize(x)
            return self._write(key, q), count_nonfinite(x)

        written = list(pool.map(write, places))
        padding = len(spec.layers) * (tokens.n_chunks * tokens.chunk_tokens - tokens.n_tokens) * spec.hidden
        nonfinite = sum(n for _, n in written) - padding
        chunks = tuple(chunk for chunk, _ in written)
        scale = None
        if self._schema.dtype == "int8":
            kept = np.ascontiguousarray(scales[:, : tokens.n_tokens])
            scale = write_chunk(self._location, f"{folder}/scale/c.0.0", kept)
        for _ in described:
            pass
        small = {name: future.result() for name, future in index.items()}
        layout = TokenCommit(tokens.n_tokens, tokens.chunk_tokens, **small)
        return ArrayCommit(chunks, nonfinite, scale, layout)

    def _write(self, key: str, x: NDArray[Any]) -> Chunk:
        return write_chunk(self._location, key, x, self._codec)

    def _write_and_count(self, key: str, x: NDArray[Any]) -> tuple[Chunk, int]:
        """Write a chunk and count its values that are NaN or infinite while they are at hand."""
        counts: list[int] = []

        def look(block: NDArray[Any]) -> None:
            counts.append(count_nonfinite(block))

        return write_chunk(self._location, key, x, self._codec, look=look), sum(counts)

    def empty(self, spec: ArraySpec) -> NDArray[Any]:
        """Room for one range of one array: ``[layer, range_size, hidden]``, all NaN."""
        shape = (len(spec.layers), self._schema.range_size, spec.hidden)
        return np.full(shape, np.nan, dtype=self._schema.numpy_dtype)

    def _check(self, range_: Range, buffers: Mapping[str, Any], skipped: Mapping[int, str]) -> None:
        for spec in self._schema.arrays:
            buffer = buffers.get(spec.name)
            if spec.pooled or (spec.ragged and isinstance(buffer, TokenBuffer)):
                continue
            shape = (len(spec.layers), self._schema.range_size, spec.hidden)
            wanted = "a TokenBuffer" if spec.ragged else f"a buffer {self._schema.numpy_dtype} {list(shape)}"
            if not isinstance(buffer, np.ndarray) or (buffer.shape, buffer.dtype) != (shape, self._schema.numpy_dtype):
                found = f"{buffer.dtype} {list(buffer.shape)}" if isinstance(buffer, np.ndarray) else repr(buffer)
                raise InputError(
                    f"range {range_.index} of {spec.name} needs {wanted}, got {found}: "
                    "take it from RangeWriter.buffers()"
                )
        outside = [row for row in skipped if not range_.start <= row < range_.stop]
        if outside:
            raise InputError(
                f"range {range_.index} is rows {range_.start} to {range_.stop - 1}: it cannot skip {outside}"
            )
