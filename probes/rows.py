"""The rows of one (site, tokens, layer), in chunks that can be read again and again."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np

from sonde.errors import InputError
from sonde.store import as_torch

from .backend import Array, Backend, to_numpy

HELD_BYTES = 2**30
"""Layers up to this size stay in memory between passes."""


class Rows(Protocol):
    """Activations of samples, streamed: every iteration gives the same chunks in the same order.

    Iteration yields ``(rows, chunk)``: a slice of sample rows, and their activations of shape
    [n_chunk, hidden_size] as float64, float32, float16 or bfloat16, of numpy, torch or cupy.
    Slices ascend and are disjoint; rows that no slice covers must not be asked for.
    """

    @property
    def hidden_size(self) -> int:
        """Number of columns, D."""
        ...

    def __iter__(self) -> Iterator[tuple[slice, Array]]: ...


class ArrayRows:
    """`Rows` over one array in memory.

    Parameters
    ----------
    x : array of shape [N, D]
    chunk_size : int
        Rows per chunk.
    """

    def __init__(self, x: Array, chunk_size: int = 1024) -> None:
        if x.ndim != 2:
            raise InputError(f"activations of shape {tuple(x.shape)} are not rows: give an array [samples, hidden]")
        if chunk_size < 1:
            raise InputError(f"chunk_size {chunk_size} is not positive: give at least 1")
        self._x = x
        self._chunk_size = chunk_size

    @property
    def hidden_size(self) -> int:
        """Number of columns, D."""
        return int(self._x.shape[1])

    def __iter__(self) -> Iterator[tuple[slice, Array]]:
        for start in range(0, self._x.shape[0], self._chunk_size):
            stop = min(start + self._chunk_size, self._x.shape[0])
            yield slice(start, stop), self._x[start:stop]


class Held:
    """Labelled arrays that stay in memory as they came in their first whole iteration, unless they are too large.

    Parameters
    ----------
    items
        Gives the arrays, with anything that is to be kept beside each; called again for every iteration that needs it.
    limit
        Bytes of all arrays, `HELD_BYTES` if left out; more come anew, one after the other, every time.
    """

    def __init__(self, items: Callable[[], Iterable[tuple[Any, Array]]], limit: int | None = None) -> None:
        self._items, self._limit = items, HELD_BYTES if limit is None else limit
        self._held: list[tuple[Any, Array]] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Array]]:
        if self._held is not None:
            yield from self._held
            return
        held: list[tuple[Any, Array]] = []
        n_bytes = 0
        for beside, x in self._items():
            n_bytes += int(x.nbytes)
            if n_bytes <= self._limit:
                held.append((beside, x))
            else:
                held.clear()
            yield beside, x
        if n_bytes <= self._limit:
            self._held = held


class HeldRows(Held):
    """Rows that stay in memory as they were read in their first whole pass, unless they are too many.

    Parameters
    ----------
    rows
        Where they are read.
    limit
        Bytes, `HELD_BYTES` if left out; more are read again for every pass, one chunk at a time.
    device
        Torch device of the computation; if it is a GPU, rows are held there.
    """

    def __init__(self, rows: Rows, limit: int | None = None, device: str | None = None) -> None:
        self._rows = rows
        self._gpu = device if device is not None and device.startswith("cuda") else None
        super().__init__(self._read, limit)

    @property
    def hidden_size(self) -> int:
        """Number of columns, D."""
        return self._rows.hidden_size

    def _read(self) -> Iterator[tuple[slice, Array]]:
        for span, chunk in self._rows:
            on_host = self._gpu is not None and isinstance(chunk, np.ndarray)
            yield span, as_torch(chunk).to(self._gpu) if on_host else chunk


def used_chunks(
    rows: Rows, folds: np.ndarray[Any, Any], device: str | None = None
) -> Iterator[tuple[Backend, np.ndarray[Any, Any], Array]]:
    """Iterate over the rows in use, widened.

    Parameters
    ----------
    rows : Rows
    folds : int array of shape [N]
        Rows whose fold is negative are left out and never computed with.
    device : str, optional
        Torch device that chunks are moved to; left out, they stay where they are.

    Yields
    ------
    backend : Backend
    positions : int64 array of shape [n], in host memory
        Sample rows of the chunk, those of a fold together and in ascending order, as are the folds; n > 0.
    x : array of shape [n, D], float32 or float64
        Their activations; may share memory with what `rows` gave.

    Raises
    ------
    InputError
        If chunks do not fit `folds` or each other, or if a row in use never came.
    """
    end = n_seen = 0
    dtype: str | None = None
    for span, chunk in rows:
        start, stop = int(span.start), int(span.stop)
        if chunk.ndim != 2 or tuple(chunk.shape) != (stop - start, rows.hidden_size):
            raise InputError(
                f"the chunk of rows {start}:{stop} has shape {tuple(chunk.shape)}, not "
                f"{(stop - start, rows.hidden_size)}: check the reader"
            )
        if start < end or stop > folds.shape[0]:
            raise InputError(
                f"the chunk of rows {start}:{stop} is out of order or beyond the {folds.shape[0]} samples "
                "that have a fold: give chunks in ascending order and one label and fold per sample"
            )
        if dtype is not None and str(chunk.dtype) != dtype:
            raise InputError(
                f"the chunk of rows {start}:{stop} is {chunk.dtype} and earlier ones were {dtype}: give one dtype"
            )
        end, dtype = stop, str(chunk.dtype)
        fold = folds[start:stop]
        positions = np.argsort(fold, kind="stable")[int((fold < 0).sum()) :]
        if positions.size == 0:
            continue
        n_seen += positions.size
        backend = Backend.of(chunk, device)
        yield backend, positions + start, backend.widen(_take(chunk, positions))
    n_wanted = int((folds >= 0).sum())
    if n_seen < n_wanted:
        raise InputError(
            f"{n_wanted - n_seen} of {n_wanted} rows that have a fold were never read: "
            "give rows without activations the fold -1"
        )


def runs(values: np.ndarray[Any, Any]) -> Iterator[tuple[int, slice]]:
    """Give out what neighbours of an int array have in common, and where they stand."""
    ends = [*(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    for start, stop in itertools.pairwise([0, *ends]):
        if start < stop:
            yield int(values[start]), slice(start, stop)


def _take(chunk: Array, positions: np.ndarray[Any, Any]) -> Array:
    """Return rows of a chunk in their order, before they are widened: half precision is half the copy."""
    if np.array_equal(positions, np.arange(chunk.shape[0])):
        return chunk
    if isinstance(chunk, np.ndarray):
        # As plain numbers of their size: numpy copies those of other packages one by one.
        plain = chunk.view(f"u{chunk.dtype.itemsize}") if chunk.dtype.name == "bfloat16" else chunk
        return np.take(plain, positions, axis=0).view(chunk.dtype)
    backend = Backend.of(chunk)
    return backend.xp.take(chunk, backend.indices(positions), axis=0)


def fold_array(folds: Any, n_folds: int | None = None) -> np.ndarray[Any, Any]:
    """Return checked folds as an int64 numpy array of shape [N]; raise InputError if none is in use."""
    fold = to_numpy(folds)
    if fold.ndim != 1 or fold.dtype.kind not in "iu":
        raise InputError(f"folds of shape {fold.shape} and dtype {fold.dtype}: give one integer per sample")
    fold = fold.astype(np.int64)
    if not (fold >= 0).any():
        raise InputError("no sample has a fold: give at least one row a fold of 0 or more")
    if n_folds is not None and fold.max() >= n_folds:
        raise InputError(f"fold {fold.max()} is not below n_folds={n_folds}: number folds from 0")
    return fold


def target_array(y: Any, used: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return targets as a float64 numpy array of shape [N, T]; raise InputError if one in use is not finite."""
    target = np.asarray(to_numpy(y), dtype=np.float64)
    target = target[:, None] if target.ndim == 1 else target
    if target.ndim != 2 or target.shape[0] != used.shape[0]:
        raise InputError(
            f"targets of shape {target.shape} for {used.shape[0]} samples: give an array [samples, targets]"
        )
    if not np.isfinite(target).all() and not np.isfinite(target[used]).all():
        row, column = np.argwhere(~np.isfinite(target) & used[:, None])[0].tolist()
        raise InputError(
            f"target {column} of row {row} is {target[row, column]}: give a finite value, or the row the fold -1"
        )
    target = target.copy()
    target[~used] = 0.0
    return target


def weight_array(sample_weight: Any, used: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
    """Return sample weights as a float64 numpy array of shape [N]; raise InputError if one in use is unusable."""
    if sample_weight is None:
        return None
    weight = to_numpy(sample_weight).astype(np.float64)
    if weight.shape != used.shape:
        raise InputError(f"sample_weight of shape {weight.shape} for {used.shape[0]} samples: give one per sample")
    bad = np.flatnonzero(used & ~((weight >= 0) & np.isfinite(weight)))
    if bad.size:
        raise InputError(f"sample_weight of row {bad[0]} is {weight[bad[0]]}: give finite weights of 0 or more")
    return np.where(used, weight, 0.0)
