"""One layer of an array of all tokens: ragged, read sample by sample or range by range."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sonde.errors import CorruptStoreError

from .chunks import read_chunk, room
from .commit import TokenCommit
from .flight import share
from .quantize import dequantize
from .ranges import Range
from .reader import LayerReader


@dataclass(frozen=True, slots=True, eq=False)
class TokenRange:
    """The tokens of one range's samples.

    Attributes
    ----------
    rows
        Which samples.
    values
        ``[token, hidden]`` of one layer.
    offsets
        int64 ``[sample + 1]``: sample i has the tokens ``offsets[i]`` to ``offsets[i + 1]``, exclusive.
    token_ids
        int32 ``[token]``.
    modality
        uint8 ``[token]``: 0 text, 1 image.
    """

    rows: slice
    values: NDArray[Any]
    offsets: NDArray[np.int64]
    token_ids: NDArray[np.int32]
    modality: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, i: int) -> NDArray[Any]:
        """Tokens of the i-th sample of the range, ``[token, hidden]``: a view."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class TokenLayer(LayerReader):
    """All tokens of one (site, layer): a lazy, ragged ``[sample][token, hidden]``.

    Iterating gives a `TokenRange` per committed range, with one in memory. ``layer[i]`` is the
    ``[token, hidden]`` of sample i; a skipped sample has no tokens. Every chunk is checked against its commit as it
    is read.
    """

    def __repr__(self) -> str:
        return f"<TokenLayer {self.spec.name} {self.layer}: {self.dtype}, {len(self)} samples of {self.spec.hidden}>"

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sample, int64 ``[sample]``; 0 where it was skipped or its range is not committed."""
        lengths = np.zeros(len(self), dtype=np.int64)
        for range_, offsets in zip(self._committed, self._ahead(self._offsets, self._committed), strict=True):
            lengths[range_.rows] = np.diff(offsets)
        return lengths

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where the tokens of each sample begin if all are laid end to end, int64 ``[sample + 1]``."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    def __iter__(self) -> Iterator[TokenRange]:
        for range_ in self._committed:
            yield self.range(range_.index)

    def __getitem__(self, row: int) -> NDArray[Any]:
        return self.samples([row])[0]

    def range(self, index: int) -> TokenRange:
        """Read one range.

        Raises
        ------
        StoreError
            If the range is not committed, or there is no such range.
        CorruptStoreError
            If a chunk is not what was committed.
        """
        range_ = self._range(index)
        layout = self._layout(range_)
        offsets, token_ids, modality = self.index(index)
        values = room((layout.n_chunks * layout.chunk_tokens, self.spec.hidden), dtype=self.dtype)

        def fill(mine: Iterator[int]) -> None:
            for i in mine:
                self._read_chunk(range_, i, values)

        share(fill, range(layout.n_chunks), self._location.in_flight)
        return TokenRange(range_.rows, values[: layout.n_tokens], offsets, token_ids, modality)

    def index(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.uint8]]:
        """Offsets, token ids and modality of one range, without its activations; raises as :meth:`range`."""
        range_ = self._range(index)
        layout = self._layout(range_)
        token_ids = room(layout.n_tokens, dtype=np.int32)
        modality = room(layout.n_tokens, dtype=np.uint8)
        read_chunk(self._location, layout.token_ids, token_ids, f"token_ids of range {index} of {self.spec.name}")
        read_chunk(self._location, layout.modality, modality, f"modality of range {index} of {self.spec.name}")
        return self._offsets(range_), token_ids, modality

    def samples(self, rows: ArrayLike) -> list[NDArray[Any]]:
        """Read the tokens of some samples: a ``[token, hidden]`` for each; every chunk is read once.

        Raises
        ------
        InputError
            If a row is not an integer from 0 to the number of samples.
        StoreError
            If the range of one is not committed.
        CorruptStoreError
            If a chunk is not what was committed.
        """
        wanted, index = self._locate(rows)
        out: list[NDArray[Any]] = [np.empty(0)] * len(wanted)
        for i in np.unique(index):
            range_ = self._ranges[i]
            offsets, size = self._offsets(range_), self._layout(range_).chunk_tokens
            here = np.flatnonzero(index == i).tolist()
            spans = {place: slice(*offsets[wanted[place] - range_.start :][:2].tolist()) for place in here}
            for place, span in spans.items():
                out[place] = room((span.stop - span.start, self.spec.hidden), dtype=self.dtype)
            touched = sorted({c for span in spans.values() for c in range(span.start // size, -(-span.stop // size))})
            for c, x in zip(touched, self._ahead(partial(self._chunk, range_), touched), strict=True):
                for place, span in spans.items():
                    low, high = max(span.start, c * size), min(span.stop, (c + 1) * size)
                    if low < high:
                        out[place][low - span.start : high - span.start] = x[low - c * size : high - c * size]
        return out

    def _layout(self, range_: Range) -> TokenCommit:
        layout = self._array(range_).tokens
        assert layout is not None
        return layout

    def _offsets(self, range_: Range) -> NDArray[np.int64]:
        layout = self._layout(range_)
        offsets = np.empty(len(range_) + 1, dtype=np.int64)
        what = f"offsets of range {range_.index} of {self.spec.name}"
        read_chunk(self._location, layout.offsets, offsets, what)
        if offsets[0] != 0 or offsets[-1] != layout.n_tokens or (offsets[1:] < offsets[:-1]).any():
            raise CorruptStoreError(f"{self._location}: {what} do not ascend from 0 to {layout.n_tokens}")
        return offsets

    def _chunk(self, range_: Range, index: int) -> NDArray[Any]:
        size = self._layout(range_).chunk_tokens
        out = room((size, self.spec.hidden), dtype=self.dtype)
        self._read_chunk(range_, index, out, 0)
        return out

    def _read_chunk(self, range_: Range, index: int, out: NDArray[Any], at: int | None = None) -> None:
        """Read one chunk to its place in ``out``, or to row ``at``."""
        array, layout = self._array(range_), self._layout(range_)
        start = index * layout.chunk_tokens
        place = out[start if at is None else at :][: layout.chunk_tokens]
        chunk = array.chunks[self._row * layout.n_chunks + index]
        what = f"chunk {index} of range {range_.index} of layer {self.layer} of {self.spec.name}"
        if array.scale is None:
            read_chunk(self._location, chunk, place, what, self._codec)
            return
        q = room(place.shape, dtype=np.int8)
        scale = room((len(self.spec.layers), layout.n_tokens), dtype=np.float32)
        read_chunk(self._location, chunk, q, what, self._codec)
        read_chunk(self._location, array.scale, scale, f"the scale of {what}")
        here = scale[self._row, start : start + layout.chunk_tokens]
        dequantize(q[: len(here)], here, place[: len(here)])
        place[len(here) :] = np.nan
