"""One layer of one activations array, read chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sonde.errors import InputError

from .chunks import read_chunk, room
from .dtype import as_numpy, as_torch
from .flight import share
from .quantize import dequantize
from .ranges import Range
from .reader import LayerReader

if TYPE_CHECKING:
    import torch


class Layer(LayerReader):
    """Activations of one (site, tokens, layer): a lazy ``[sample, hidden]`` in the store's dtype, bfloat16 by default.

    Iterating gives ``(rows, x)`` per committed range, ``rows`` a slice of the samples and ``x``
    ``[len(rows), hidden]``, with a few chunks in memory: the next ones are read while the caller works. Every chunk is
    checked against its commit as it is read. Rows of skipped samples are NaN; int8 is read as float32.
    """

    def __repr__(self) -> str:
        return f"<Layer {self.spec.name} {self.layer}: {self.dtype} [{self.shape[0]}, {self.shape[1]}]>"

    @property
    def shape(self) -> tuple[int, int]:
        """(samples, hidden)."""
        return self._schema.n_samples, self.spec.hidden

    def __iter__(self) -> Iterator[tuple[slice, NDArray[Any]]]:
        for range_, x in zip(self._committed, self._ahead(self._read, self._committed), strict=True):
            yield range_.rows, x

    def range(self, index: int) -> NDArray[Any]:
        """Read one range: ``[len(range), hidden]``.

        Raises
        ------
        StoreError
            If the range is not committed, or there is no such range.
        CorruptStoreError
            If its chunk is not what was committed.
        """
        return self._read(self._range(index))

    def numpy(self, out: NDArray[Any] | None = None) -> NDArray[Any]:
        """Read the layer, several chunks at a time, straight into one array.

        Parameters
        ----------
        out
            C-contiguous ``[sample, hidden]`` of :attr:`dtype`, to be read into and returned; a new one if left out.

        Returns
        -------
        ndarray
            ``[sample, hidden]``, by default of ``ml_dtypes.bfloat16``.

        Raises
        ------
        StoreError
            If some ranges are not committed yet, or the layer is larger than the memory.
        CorruptStoreError
            If a chunk is not what was committed.
        InputError
            If ``out`` is of another shape, dtype or order.
        """
        for range_ in self._ranges:
            self._array(range_)
        if out is None:
            out = room(self.shape, dtype=self.dtype)
        elif (out.shape, out.dtype) != (self.shape, self.dtype) or not out.flags.c_contiguous:
            raise InputError(
                f"out must be C-contiguous {self.dtype} {list(self.shape)}, got {out.dtype} {list(out.shape)}"
            )
        target = out

        def fill(mine: Iterator[Range]) -> None:
            for range_ in mine:
                self._read_into(range_, target[range_.rows])

        share(fill, self._ranges, self._location.in_flight)
        return out

    def torch(self, out: torch.Tensor | None = None, *, pin_memory: bool | None = None) -> torch.Tensor:
        """Read the layer as a tensor in host memory, without a second copy; arguments as of :meth:`numpy`.

        Parameters
        ----------
        out
            Contiguous CPU tensor ``[sample, hidden]`` to be read into and returned.
        pin_memory
            Whether a new tensor is page-locked, for fast copies to a GPU; left out, where CUDA is there.
        """
        import torch

        if out is None:
            pinned = torch.cuda.is_available() if pin_memory is None else pin_memory
            dtype = as_torch(np.empty(0, dtype=self.dtype)).dtype
            out = torch.empty(self.shape, dtype=dtype, pin_memory=pinned)
        self.numpy(as_numpy(out))
        return out

    def rows(self, rows: ArrayLike) -> NDArray[Any]:
        """Read some samples: ``[len(rows), hidden]`` in the order asked for; each chunk is read once.

        Raises
        ------
        InputError
            If a row is not an integer from 0 to the number of samples.
        """
        wanted, index = self._locate(rows)
        out = room((len(wanted), self.spec.hidden), dtype=self.dtype)

        def pick(mine: Iterator[Range]) -> None:
            # One chunk's memory for all that this thread reads: new memory costs as much as the read.
            x = room((self._schema.range_size, self.spec.hidden), dtype=self.dtype)
            for range_ in mine:
                self._read_into(range_, x)
                here = index == range_.index
                out[here] = x[wanted[here] - range_.start]

        share(pick, [self._ranges[i] for i in np.unique(index)], self._location.in_flight)
        return out

    def _read(self, range_: Range) -> NDArray[Any]:
        out = room((self._schema.range_size, self.spec.hidden), dtype=self.dtype)
        self._read_into(range_, out)
        return out[: len(range_)]

    def _read_into(self, range_: Range, out: NDArray[Any]) -> None:
        """Read a range's chunk into ``out``, which has room for the whole chunk or for the range alone."""
        size = self._schema.range_size
        if len(out) < size:
            # Chunks are of equal size on the disk: the padding behind a short range needs a place of its own.
            out[:] = self._read(range_)
            return
        array = self._array(range_)
        chunk = array.chunks[self._row]
        what = f"range {range_.index} of layer {self.layer} of {self.spec.name}"
        if array.scale is None:
            read_chunk(self._location, chunk, out, what, self._codec)
            return
        q = room(out.shape, dtype=np.int8)
        scale = room((len(self.spec.layers), size), dtype=np.float32)
        read_chunk(self._location, chunk, q, what, self._codec)
        read_chunk(self._location, array.scale, scale, f"the scale of {what}")
        dequantize(q, scale[self._row], out)
