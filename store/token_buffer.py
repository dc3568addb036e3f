"""All tokens of the samples of one range, until they are committed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .pooling import MODALITIES, pool
from .quantize import dequantize, quantize
from .ranges import MAX_CHUNK_BYTES, Range
from .schema import ArraySpec, Schema


class TokenBuffer:
    """Vectors of every token of the samples of a range, ``[layer, token, hidden]`` each.

    Parameters
    ----------
    spec, schema
        The array of all tokens, and its store.
    """

    def __init__(self, spec: ArraySpec, schema: Schema) -> None:
        self._spec = spec
        self._dtype = schema.numpy_dtype
        self._quantized = schema.dtype == "int8"
        self._chunk_limit = max(1, MAX_CHUNK_BYTES // (spec.hidden * schema.storage_dtype.itemsize))
        self._samples: dict[int, tuple[NDArray[Any], NDArray[np.int32], NDArray[np.uint8]]] = {}

    def put(self, row: int, values: NDArray[Any], token_ids: NDArray[Any], modality: NDArray[Any]) -> None:
        """Take the tokens of one sample; they are kept as they are, not copied.

        Parameters
        ----------
        row
            Number of the sample in the store.
        values
            ``[layer, token, hidden]`` in the store's dtype (float32 for int8).
        token_ids
            Integers ``[token]``.
        modality
            ``[token]``, indices into `MODALITIES`.

        Raises
        ------
        InputError
            If they are of another shape or dtype.
        """
        n_tokens = len(token_ids)
        shape = (len(self._spec.layers), n_tokens, self._spec.hidden)
        if (values.shape, values.dtype, len(modality)) != (shape, self._dtype, n_tokens):
            raise InputError(
                f"sample {row} of {self._spec.name} needs {self._dtype} {list(shape)} and {n_tokens} modalities, "
                f"got {values.dtype} {list(values.shape)} and {len(modality)}"
            )
        kinds = np.asarray(modality, dtype=np.uint8)
        if kinds.size and kinds.max() >= len(MODALITIES):
            raise InputError(f"sample {row}: modality {kinds.max()} is none of 0 to {len(MODALITIES) - 1}")
        self._samples[row] = values, np.asarray(token_ids, dtype=np.int32), kinds

    def arrange(self, range_: Range, skipped: Mapping[int, str]) -> Tokens:
        """Line up the samples of a range.

        Raises
        ------
        InputError
            If a sample that is not skipped was not put in, or one is not of this range.
        """
        wanted = [row for row in range(range_.start, range_.stop) if row not in skipped]
        missing, extra = set(wanted) - self._samples.keys(), self._samples.keys() - set(wanted) - skipped.keys()
        if missing or extra:
            raise InputError(
                f"range {range_.index} is rows {range_.start} to {range_.stop - 1}, but the buffer of "
                f"{self._spec.name} lacks {sorted(missing)[:5]} and has {sorted(extra)[:5]} besides"
            )
        samples = [self._samples[row] for row in wanted]
        lengths = np.zeros(len(range_), dtype=np.int64)
        lengths[[row - range_.start for row in wanted]] = [len(ids) for _, ids, _ in samples]
        return Tokens(
            self._spec,
            self._dtype,
            [values for values, _, _ in samples],
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            np.concatenate([np.empty(0, np.int32), *(ids for _, ids, _ in samples)]),
            np.concatenate([np.empty(0, np.uint8), *(kinds for _, _, kinds in samples)]),
            self._chunk_limit,
        )

    def pooled(self, spec: ArraySpec, out: NDArray[Any], range_: Range, skipped: Mapping[int, str]) -> None:
        """Fill ``out`` ``[layer, range_size, hidden]`` with one vector per sample, as `Store.pool` would."""
        for row, (values, _, kinds) in self._samples.items():
            if row not in skipped:
                out[:, row - range_.start] = pool(_as_stored(values, self._quantized), kinds, spec.tokens)


class Tokens:
    """All tokens of a range in the order of its samples.

    Attributes
    ----------
    offsets
        int64 ``[sample + 1]``.
    token_ids
        int32 ``[token]``.
    modality
        uint8 ``[token]``.
    chunk_tokens
        Tokens that fill a chunk: at most 16 MiB, and chunks of equal length to one token a chunk.
    """

    def __init__(
        self,
        spec: ArraySpec,
        dtype: np.dtype[Any],
        samples: list[NDArray[Any]],
        offsets: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        modality: NDArray[np.uint8],
        chunk_limit: int,
    ) -> None:
        self._spec = spec
        self._dtype = dtype
        self._samples = samples
        self._starts = np.cumsum([0] + [values.shape[1] for values in samples])
        self.offsets = offsets
        self.token_ids = token_ids
        self.modality = modality
        n_chunks = max(1, -(-self.n_tokens // chunk_limit))
        self.chunk_tokens = max(1, -(-self.n_tokens // n_chunks))

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples."""
        return len(self.token_ids)

    @property
    def n_chunks(self) -> int:
        """Chunks of each layer."""
        return -(-self.n_tokens // self.chunk_tokens)

    def empty_chunk(self) -> NDArray[Any]:
        """Room for one chunk of one layer, ``[chunk_tokens, hidden]``."""
        return np.empty((self.chunk_tokens, self._spec.hidden), dtype=self._dtype)

    def chunk(self, row: int, index: int, out: NDArray[Any]) -> NDArray[Any]:
        """Gather one chunk of one layer into ``out``; NaN behind the last token."""
        start, stop = index * self.chunk_tokens, (index + 1) * self.chunk_tokens
        out[max(0, self.n_tokens - start) :] = np.nan
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for i in range(first, len(self._samples)):
            low, high = int(self._starts[i]), int(self._starts[i + 1])
            if low >= stop:
                break
            a, b = max(low, start), min(high, stop)
            out[a - start : b - start] = self._samples[i][row, a - low : b - low]
        return out


def _as_stored(values: NDArray[Any], quantized: bool) -> NDArray[Any]:
    if not quantized:
        return values
    q, scale = quantize(values)
    out = np.empty(values.shape, dtype=np.float32)
    dequantize(q, scale, out)
    return out
