"""One layer of a store as a dataset of torch: by row, or streamed in a shuffled order."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError, StoreError

from .contents import Contents
from .dtype import as_torch
from .views import ArraySource, pooled_arrays, require_complete

if TYPE_CHECKING:
    import torch

    from .labels import Labels
    from .schema import ArraySpec

# Chunks, of up to 16 MiB, that stay in memory.
_CACHED_CHUNKS = 4
_POOLED_CHUNKS = 4
_MAX_WORKERS = 1024


def torch_dataset(
    store: Contents,
    layer: int,
    *,
    site: str | None = None,
    tokens: str | None = None,
    labels: str | None = None,
    iterable: bool = False,
    shuffle: bool = True,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
) -> LayerRows | LayerStream:
    """Make a torch dataset of one layer: items ``x``, or ``(x, y)`` with labels.

    ``x`` is a tensor ``[hidden]``. ``y`` is what torch's losses take: of ``binary`` labels a float32 0 or 1 and of
    ``multilabel`` a float32 ``[target]`` (`BCEWithLogitsLoss`), of ``multiclass`` an int64 class (`CrossEntropyLoss`),
    of ``regression`` a float32 (`MSELoss`). Samples that were skipped, or lack the label, are left out; ``rows`` tells
    which are there.

    A map-style dataset reads every chunk that a batch touches once, which for a batch drawn from all over a large store
    is much more than the batch: to train on shuffled rows at the speed of the disk, take ``iterable=True``.

    Parameters
    ----------
    store
        A complete store.
    layer
        The model's number of the layer.
    site, tokens
        Which array; may be left out where one array alone fits.
    labels
        Name of labels in the store.
    iterable
        Make an ``IterableDataset``, which reads every chunk once per epoch; see `LayerStream`.
    shuffle, seed
        Of an iterable dataset: a new order in every epoch, determined by the seed. The order of a map-style dataset is
        its sampler's, ``DataLoader(dataset, shuffle=True)``.
    dtype
        Floating-point dtype of ``x``, ``"float32"`` or ``torch.float32``; by default as stored.

    Raises
    ------
    StoreError
        If the store is not complete, lacks what was asked for, or has several arrays that fit.
    InputError
        If the dtype or the seed cannot be used.
    """
    require_complete(store)
    spec = _choose(store, site, tokens)
    stored = store.layer(spec.site, spec.tokens, layer).dtype
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}")
    known = store.labels(labels) if labels is not None else None
    present = store.valid if known is None else store.valid & known.present
    rows = np.flatnonzero(present)
    items = Items(
        source=ArraySource.of(store, spec),
        layer=int(layer),
        hidden=spec.hidden,
        dtype=as_torch(np.empty(0, dtype=stored)).dtype if dtype is None else _float_dtype(dtype),
        starts=np.array([range_.start for range_ in store.ranges], dtype=np.int64),
        rows=rows.astype(np.int64),
        targets=None if known is None else _targets(known, rows),
    )
    dataset: LayerRows | LayerStream = (
        _of_torch(LayerStream)(items, seed if shuffle else None) if iterable else _of_torch(LayerRows)(items)
    )
    return dataset


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """What a dataset is made of: a layer of an array, the rows that count, and their targets.

    Attributes
    ----------
    source, layer, hidden, dtype
        The array, the layer of it, the length of its vectors, and what they become.
    starts
        First row of every range, int64 ``[range]``.
    rows
        Rows of the store, ascending, int64 ``[item]``.
    targets
        ``[item]`` or ``[item, target]``, or None.
    """

    source: ArraySource
    layer: int
    hidden: int
    dtype: torch.dtype
    starts: NDArray[np.int64]
    rows: NDArray[np.int64]
    targets: torch.Tensor | None

    def chunk(self, index: int) -> torch.Tensor:
        """Read one range as it is stored, ``[len(range), hidden]``."""
        return as_torch(self.source.read(self.layer, index))


class _LayerDataset:
    def __init__(self, items: Items) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Row of the store of every item, ascending, int64 ``[item]``."""
        return self._items.rows

    def _arguments(self) -> tuple[Any, ...]:
        return (self._items,)


class LayerRows(_LayerDataset):
    """A map-style ``torch.utils.data.Dataset`` of the rows of one layer; make it with `torch_dataset`.

    A few chunks stay in memory. What is handed out is a copy.
    """

    def __init__(self, items: Items) -> None:
        super().__init__(items)
        self._chunk = functools.lru_cache(_CACHED_CHUNKS)(items.chunk)

    def __getitem__(self, item: int) -> Any:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[Any]:
        """Read some items in the order asked for; each chunk is read once.

        Raises
        ------
        IndexError
            If there is no such item.
        CorruptStoreError
            If a chunk is not what was committed.
        """
        import torch

        index = np.array([self._index(item) for item in items], dtype=np.int64)
        rows = self.rows[index]
        chunks = np.searchsorted(self._items.starts, rows, side="right") - 1
        x = torch.empty((len(index), self._items.hidden), dtype=self._items.dtype)
        for chunk in np.unique(chunks):
            here = np.flatnonzero(chunks == chunk)
            found = self._chunk(int(chunk))[rows[here] - self._items.starts[chunk]]
            x[here] = found.to(self._items.dtype)
        if self._items.targets is None:
            return list(x)
        return list(zip(x, self._items.targets[index], strict=True))

    def _index(self, item: int) -> int:
        index = operator.index(item)
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no item {index}: the dataset has {len(self)}")
        return index % len(self)


class LayerStream(_LayerDataset):
    """A ``torch.utils.data.IterableDataset`` of the rows of one layer; make it with `torch_dataset`.

    Reads every chunk once per epoch: the chunks in a shuffled order, then the rows of a few of them shuffled together,
    so that memory does not grow with the store. Of n ``DataLoader`` workers, worker w has every n-th range from w on,
    whatever the epoch: none is lost or read twice. Every ``iter`` begins an epoch with an order of its own, determined
    by the seed, the worker and the number of epochs before; workers that are started anew for each epoch go on
    counting. Without a seed the order is that of the store, within each worker.

    Every worker ends with a batch of its own that may not be full: there can be more batches than ``len(DataLoader)``,
    which torch then warns of.
    """

    def __init__(self, items: Items, seed: int | None, epochs: torch.Tensor | None = None) -> None:
        import torch

        super().__init__(items)
        self._seed = seed
        shared: Any = torch.zeros(_MAX_WORKERS, dtype=torch.int64) if epochs is None else epochs
        # Begun epochs by worker. Shared, because the workers of the next epoch may be other processes.
        self._epochs = shared.share_memory_()
        # Items of range i are bounds[i] to bounds[i + 1].
        self._bounds = np.append(np.searchsorted(items.rows, items.starts), len(items.rows))

    def __iter__(self) -> Iterator[Any]:
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        part, n_parts = (0, 1) if worker is None else (worker.id, worker.num_workers)
        occupied = np.flatnonzero(np.diff(self._bounds))[part::n_parts]
        if self._seed is None:
            return self._read(occupied.tolist(), None)
        slot = part % _MAX_WORKERS
        epoch = int(self._epochs[slot])
        self._epochs[slot] += 1
        order = np.random.default_rng([self._seed, part, epoch])
        return self._read(order.permutation(occupied).tolist(), order)

    def _read(self, ranges: Sequence[int], order: np.random.Generator | None) -> Iterator[Any]:
        step = 1 if order is None else _POOLED_CHUNKS
        for first in range(0, len(ranges), step):
            yield from self._read_pool(ranges[first : first + step], order)

    def _read_pool(self, ranges: Sequence[int], order: np.random.Generator | None) -> Iterator[Any]:
        rows, targets = self._items.rows, self._items.targets
        chunks = {index: self._items.chunk(index) for index in ranges}
        places = [(index, item) for index in ranges for item in range(self._bounds[index], self._bounds[index + 1])]
        for place in range(len(places)) if order is None else order.permutation(len(places)):
            index, item = places[place]
            # A copy: a view would keep its whole chunk, and take it along from a worker's process.
            x = chunks[index][rows[item] - self._items.starts[index]].to(self._items.dtype, copy=True)
            yield x if targets is None else (x, targets[item].clone())

    def _arguments(self) -> tuple[Any, ...]:
        return self._items, self._seed, self._epochs


@functools.cache
def _of_torch(dataset: Any) -> Any:
    """The class with torch's base, made on demand: this module is imported without torch."""
    from torch.utils import data

    base: type[Any] = data.IterableDataset if dataset is LayerStream else data.Dataset
    members = {"__module__": __name__, "__reduce__": lambda self: (_rebuild, (dataset, self._arguments()))}
    return types.new_class(dataset.__name__, (dataset, base), exec_body=lambda body: body.update(members))


def _rebuild(dataset: Any, arguments: tuple[Any, ...]) -> Any:
    return _of_torch(dataset)(*arguments)


def _choose(store: Contents, site: str | None, tokens: str | None) -> ArraySpec:
    if site is not None and tokens is not None:
        return store.array(site, tokens)
    there = pooled_arrays(store)
    fits = [spec for spec in there if site in (None, spec.site) and tokens in (None, spec.tokens)]
    if len(fits) != 1:
        raise StoreError(
            f"{store.location}: {len(fits)} arrays fit site {site!r} and tokens {tokens!r}: name both, of "
            f"{', '.join(repr(spec.name) for spec in there) or 'none with a row per sample'}"
        )
    return fits[0]


def _targets(labels: Labels, rows: NDArray[np.int64]) -> torch.Tensor:
    import torch

    dtype = torch.int64 if labels.kind == "multiclass" else torch.float32
    return torch.from_numpy(labels.values[rows]).to(dtype)


def _float_dtype(dtype: torch.dtype | str) -> torch.dtype:
    import torch

    wanted = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(wanted, torch.dtype) or not wanted.is_floating_point:
        raise InputError(f"dtype {dtype!r} is not of floating point: choose bfloat16, float16, float32 or float64")
    return wanted
