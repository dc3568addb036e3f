"""A store's arrays as the lazy arrays of dask and xarray."""

from __future__ import annotations

import functools
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sonde.errors import InputError, StoreError

from .contents import Contents
from .dtype import as_float32, bfloat16

if TYPE_CHECKING:
    import dask.array
    import xarray

    from .schema import ArraySpec

_FLOATS = tuple(np.dtype(dtype) for dtype in (bfloat16, np.float16, np.float32, np.float64))
# Open stores of one process: tasks of one graph speak of one store, a notebook of few.
_OPEN_STORES = 8


@dataclass(frozen=True, slots=True)
class ArraySource:
    """Where another process finds an array: small, picklable, and never mistaken for a later store at the same place.

    Attributes
    ----------
    open
        What opens the store: ``Store.open``.
    url, site, tokens
        Which array of which store.
    identity
        Digest of what the array is made of; appending to the store does not change it.
    """

    open: Callable[[str], Contents]
    url: str
    site: str
    tokens: str
    identity: str

    @classmethod
    def of(cls, store: Contents, spec: ArraySpec) -> ArraySource:
        """The source of an array of an open store."""
        return cls(type(store).open, str(store.location), spec.site, spec.tokens, _identity(store, spec))

    def read(self, layer: int, index: int) -> NDArray[Any]:
        """Read one range of one layer, ``[len(range), hidden]``; each process opens the store once.

        Raises
        ------
        StoreError
            If the store is gone, or another one is in its place.
        CorruptStoreError
            If the chunk is not what was committed.
        """
        try:
            return self._read(layer, index)
        except StoreError:
            # The store may have grown, or been repaired, since this process opened it.
            _open.cache_clear()
            return self._read(layer, index)

    def _read(self, layer: int, index: int) -> NDArray[Any]:
        store = _open(self.open, self.url, os.getpid())
        if _identity(store, store.array(self.site, self.tokens)) != self.identity:
            raise StoreError(
                f"{self.url} is not the store that this view was made of: open it and make the view of it again"
            )
        return store.layer(self.site, self.tokens, layer).range(index)


@functools.lru_cache(_OPEN_STORES)
def _open(opener: Callable[[str], Contents], url: str, pid: int) -> Contents:
    # By process: connections and locks do not survive a fork.
    return opener(url)


def _identity(store: Contents, spec: ArraySpec) -> str:
    schema = store.schema
    content = (dict(schema.model), dict(schema.data), schema.dtype, spec.name, spec.layers, spec.hidden)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def pooled_arrays(store: Contents) -> list[ArraySpec]:
    """Arrays with one row per sample."""
    return [spec for spec in store.arrays if not spec.ragged]


def require_complete(store: Contents) -> None:
    """Raise StoreError if a range is not committed."""
    if not store.complete:
        raise StoreError(
            f"{store.location} is not finished: {len(store.missing)} of {len(store.ranges)} ranges are not committed; "
            "finish it with `sonde extract --resume`, or iterate over `store.layer` to read what is there"
        )


def dask_array(store: Contents, site: str, tokens: str, *, dtype: DTypeLike | None = None) -> dask.array.Array:
    """One array as a lazy dask array ``[layer, sample, hidden]``; a block is one chunk of the store.

    Every block is checked against its commit as it is read. Tasks carry the store's URL, not its data, and may run in
    any process that can open it.

    Parameters
    ----------
    store
        A complete store.
    site, tokens
        Which array.
    dtype
        ``bfloat16``, ``float16``, ``float32`` or ``float64``; by default as stored. Ask for float32 to compute with
        bfloat16: numpy would add in bfloat16.

    Raises
    ------
    StoreError
        If the store is not complete, or has no such array of one row per sample.
    InputError
        If the dtype is none of these.
    """
    import dask.array
    from dask.base import tokenize

    spec = store.array(site, tokens)
    require_complete(store)
    stored = store.layer(site, tokens, spec.layers[0]).dtype
    wanted = np.dtype(stored) if dtype is None else _float_dtype(dtype)
    chunks = ((1,) * len(spec.layers), tuple(map(len, store.ranges)), (spec.hidden,))
    source = ArraySource.of(store, spec)
    array: dask.array.Array = dask.array.map_blocks(
        functools.partial(_read_block, source, spec.layers, wanted),
        chunks=chunks,
        meta=np.empty((0, 0, 0), dtype=wanted),
        name=f"sonde-{tokenize(source, wanted.name, chunks)}",
    )
    return array


def _read_block(
    source: ArraySource, layers: tuple[int, ...], dtype: np.dtype[Any], block_id: tuple[int, int, int]
) -> NDArray[Any]:
    return _converted(source.read(layers[block_id[0]], block_id[1]), dtype)[None]


def _converted(x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    if x.dtype == dtype:
        return x
    return as_float32(x).astype(dtype, copy=False)


def _float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        return _FLOATS[_FLOATS.index(np.dtype(dtype))]
    except (TypeError, ValueError) as error:
        names = ", ".join(float_.name for float_ in _FLOATS)
        raise InputError(f"dtype {dtype!r} is none of {names}: choose one of them") from error


def to_xarray(store: Contents, *, dtype: DTypeLike | None = None) -> xarray.DataTree:
    """The store as a tree of xarray, in the store's own shape.

    ``tree["resid_post/last"]`` is a lazy DataArray ``(layer, sample, hidden)`` with the model's layer numbers, the
    sample ids and the sample columns (``group``, ``split``) as coordinates; ``tree["labels/<name>"]`` are labels
    ``(sample,)`` or ``(sample, target)`` with ``kind`` and ``names`` in their attributes, missing ones -1 or NaN.
    The targets of several multi-label columns that differ get dimensions of their own, ``target_<name>``.
    Arrays of all tokens have no such shape and are left out, and so are labels named ``sample``, with a warning.

    Parameters
    ----------
    store
        A complete store.
    dtype
        As for `dask_array`; xarray's reductions refuse bfloat16.

    Raises
    ------
    InputError
        If xarray is not installed, or the dtype is unknown.
    StoreError
        If the store is not complete.

    Examples
    --------
    >>> tree = store.to_xarray(dtype="float32")                          # doctest: +SKIP
    >>> tree["resid_post/last"].sel(layer=8).mean("sample").compute()    # doctest: +SKIP
    """
    try:
        from xarray import Dataset, DataTree
    except ImportError as error:
        raise InputError("this view needs xarray: `pip install 'xarray>=2025.1'`") from error

    require_complete(store)
    columns = {name: ("sample", column) for name, column in store.columns.items() if name != "id"}
    samples = {"sample": store.ids, **columns}
    nodes = {"/": Dataset(coords=samples, attrs=_attributes(store)), "/labels": _label_dataset(store, samples)}
    for site in dict.fromkeys(spec.site for spec in pooled_arrays(store)):
        specs = [spec for spec in pooled_arrays(store) if spec.site == site]
        nodes[f"/{site}"] = Dataset(
            {
                spec.tokens: (("layer", "sample", "hidden"), dask_array(store, site, spec.tokens, dtype=dtype))
                for spec in specs
            },
            coords={"layer": np.asarray(specs[0].layers, dtype=np.int64), **samples},
        )
    return DataTree.from_dict(nodes)


def _attributes(store: Contents) -> dict[str, Any]:
    """Plain text and numbers, which every file format takes."""
    model = {f"model_{key}": value for key, value in store.schema.model.items() if key != "name"}
    attributes = {"model": store.schema.model.get("name"), **model, "dtype": store.schema.dtype}
    attributes |= {"store": str(store.location), "skipped": len(store.skipped)}
    return {key: value if isinstance(value, int | float) else str(value) for key, value in attributes.items()}


def _label_dataset(store: Contents, samples: Mapping[str, Any]) -> xarray.Dataset:
    from xarray import Dataset

    labels = [store.labels(name) for name in store.label_names if name != "sample"]
    if len(labels) < len(store.label_names):
        warnings.warn(
            "labels 'sample' have no place beside the coordinate 'sample': read them with store.labels('sample')",
            stacklevel=4,
        )
    shared = len({one.names for one in labels if one.values.ndim == 2}) == 1
    # A label column may bear the name of a coordinate: the label is what was asked for here.
    taken = {one.name for one in labels}
    variables: dict[str, Any] = {}
    coordinates = {name: value for name, value in samples.items() if name not in taken}
    for one in labels:
        dimensions: tuple[str, ...] = ("sample",)
        if one.values.ndim == 2:
            target = "target" if shared and "target" not in taken else f"target_{one.name}"
            dimensions = ("sample", target)
            coordinates[target] = np.asarray(one.names, dtype=str)
        variables[one.name] = (dimensions, one.values, {"kind": one.kind, "names": list(one.names)})
    return Dataset(variables, coords=coordinates)
