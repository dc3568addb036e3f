"""The store: create, open, read, extend with labels, verify."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sonde.errors import CorruptStoreError, InputError, StoreError

from . import label_groups, metadata
from .codecs import CODECS
from .columns import check_columns, read_columns
from .commit import Commit
from .directory import Directory
from .flight import share
from .grow import add_pooled, add_samples
from .labels import Kind, Labels
from .layer import Layer
from .locate import locate
from .location import Location
from .ranges import Range
from .schema import ALL, DTYPES, ArraySpec, Schema
from .token_layer import TokenLayer
from .verify import Damage, find_damage, restore
from .writer import RangeWriter

if TYPE_CHECKING:
    import dask.array
    import torch
    import xarray

    from .datasets import LayerRows, LayerStream

_RECORDS_IN_FLIGHT = 16


class Store:
    """Activations of a model over a data set, in a Zarr v3 group.

    Open one with ``sonde.open(url)``; extraction makes them. Rows are samples in the order of the data set.
    What has no commit record is not there.

    Examples
    --------
    >>> store = sonde.open("run.zarr")                       # doctest: +SKIP
    >>> store.layer("resid_post", "last", 8).torch()         # bfloat16 [sample, hidden]; doctest: +SKIP
    """

    def __init__(self, location: Location, schema: Schema, digests: tuple[str, ...]) -> None:
        self.location = location
        self.schema = schema
        self._digests = digests
        self.commits: dict[int, Commit] = {}
        self.damaged_records: dict[int, CorruptStoreError] = {}
        self.refresh()

    @classmethod
    def open(cls, url: str | os.PathLike[str] | Location, *, strict: bool = True, fsync: bool = True) -> Store:
        """Open a store by path or URL.

        Parameters
        ----------
        url
            A path, a URL of any scheme that `locate` knows (``s3://bucket/run.zarr``), or a location.
        strict
            Refuse a store with a damaged commit record.
        fsync
            Whether what is written through this store waits for the disk; see `Directory`.

        Raises
        ------
        StoreError
            If there is none, or it is of another kind or version.
        CorruptStoreError
            If a commit record is damaged, unless ``strict`` is off: then its range counts as not committed, and
            :meth:`verify` tells of it.
        """
        location = locate(url, fsync=fsync)
        store = cls(location, *metadata.open_schema(location))
        if strict and store.damaged_records:
            raise next(iter(store.damaged_records.values()))
        return store

    @classmethod
    def create(
        cls,
        url: str | os.PathLike[str] | Location,
        schema: Schema,
        columns: Mapping[str, Sequence[str]],
        *,
        fsync: bool = True,
    ) -> Store:
        """Make an empty store.

        Parameters
        ----------
        url
            A path that does not exist yet or is an empty folder, or the remains of a creation that was cut off.
        schema
            Arrays, sizes and provenance.
        columns
            Text per sample; ``id`` (unique) and ``group`` are required.
        fsync
            Whether what is written waits for the disk; see `Directory`.

        Raises
        ------
        StoreError
            If something is there already.
        InputError
            If the columns do not fit the schema, or the schema has no samples or contradicts itself.
        """
        location = locate(url, fsync=fsync)
        if schema.n_samples < 1 or schema.range_size < 1 or not schema.arrays:
            raise InputError("a store needs at least one sample, one row a range and one array")
        if schema.dtype not in DTYPES or schema.codec not in CODECS:
            raise InputError(
                f"a store of dtype {schema.dtype!r} and codec {schema.codec!r}: there are {', '.join(DTYPES)}, "
                f"and {', '.join(CODECS)}"
            )
        check_columns(columns, schema.n_samples)
        for site in {a.site for a in schema.arrays}:
            if len({a.layers for a in schema.arrays if a.site == site}) > 1:
                raise InputError(f"all arrays of the site {site!r} must have the same layers")
        try:
            Schema.from_json(json.loads(json.dumps(schema.to_json())), str(location))
        except StoreError as error:
            raise InputError(f"a store of this schema could not be opened again: {error}") from error
        ensure_vacant(location)
        metadata.create(location, schema, columns)
        return cls.open(location)

    def refresh(self) -> None:
        """Look again which ranges are committed."""
        names = set(self.location.list("commits"))
        present = [range_ for range_ in self.ranges if f"{range_.name}.json" in names]
        found: dict[int, Commit | CorruptStoreError | None] = {}

        def read(mine: Iterator[Range]) -> None:
            for range_ in mine:
                found[range_.index] = self._read_commit(range_)

        share(read, present, _RECORDS_IN_FLIGHT)
        records = sorted(found.items())
        self.commits = {index: record for index, record in records if isinstance(record, Commit)}
        self.damaged_records = {index: error for index, error in records if isinstance(error, CorruptStoreError)}

    def _read_commit(self, range_: Range) -> Commit | CorruptStoreError | None:
        try:
            return Commit.read(self.location, range_, self.schema)
        except CorruptStoreError as error:
            return error
        except FileNotFoundError:
            # Withdrawn since it was listed.
            return None

    # What it holds

    @property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges, whether committed or not."""
        return self.schema.ranges

    @property
    def n_samples(self) -> int:
        """Samples, those without activations counted."""
        return self.schema.n_samples

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """The activations arrays."""
        return self.schema.arrays

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were captured."""
        return tuple(dict.fromkeys(a.site for a in self.arrays))

    @property
    def complete(self) -> bool:
        """Whether every range is committed."""
        return len(self.commits) == len(self.ranges)

    @property
    def missing(self) -> tuple[Range, ...]:
        """Ranges without a commit."""
        return tuple(r for r in self.ranges if r.index not in self.commits)

    @property
    def skipped(self) -> dict[int, str]:
        """Row -> why this sample has no activations."""
        return {row: why for _, c in sorted(self.commits.items()) for row, why in c.skipped.items()}

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Which rows have activations: committed and not skipped, bool ``[sample]``."""
        valid = np.zeros(self.n_samples, dtype=bool)
        for commit in self.commits.values():
            valid[commit.range.rows] = True
        valid[list(self.skipped)] = False
        return valid

    @cached_property
    def columns(self) -> dict[str, NDArray[np.str_]]:
        """Sample columns as numpy strings ``[sample]``: ``id``, ``group``, and ``split`` where it was given."""
        return read_columns(self.location, self.schema, self._digests)

    @property
    def ids(self) -> NDArray[np.str_]:
        """Sample ids, ``[sample]``."""
        return self.columns["id"]

    @property
    def groups(self) -> NDArray[np.str_]:
        """Group of each sample, ``[sample]``."""
        return self.columns["group"]

    # Activations

    def array(self, site: str, tokens: str) -> ArraySpec:
        """Description of one activations array.

        Raises
        ------
        StoreError
            If the store has no such array; the message lists those that it has.
        """
        for spec in self.arrays:
            if (spec.site, spec.tokens) == (site, tokens):
                return spec
        there = ", ".join(a.name for a in self.arrays)
        raise StoreError(f"{self.location} has no activations '{site}/{tokens}': it has {there}")

    def layer(self, site: str, tokens: str, layer: int) -> Layer:
        """One layer of one array, to be read whole, by range or by rows.

        Raises
        ------
        StoreError
            If the store has no such array or layer.
        """
        spec = self.array(site, tokens)
        if spec.ragged:
            raise StoreError(
                f"{self.location}: '{spec.name}' keeps every token, not one row per sample: read it with "
                f"store.tokens({site!r}, {layer}), or make rows of it with store.pool('mean')"
            )
        return Layer(self.location, self.schema, *self._ensure_layer(spec, layer), self.commits)

    def tokens(self, site: str, layer: int) -> TokenLayer:
        """All tokens of one layer of a site, to be read by sample or by range.

        Raises
        ------
        StoreError
            If the store does not keep all tokens of this site, or has no such layer.
        """
        return TokenLayer(self.location, self.schema, *self._ensure_layer(self.array(site, ALL), layer), self.commits)

    def _ensure_layer(self, spec: ArraySpec, layer: int) -> tuple[ArraySpec, int]:
        if layer not in spec.layers:
            raise StoreError(f"{self.location}: '{spec.name}' has no layer {layer}; it has {list(spec.layers)}")
        return spec, layer

    def pool(self, tokens: str, *, sites: Sequence[str] | None = None) -> tuple[ArraySpec, ...]:
        """Make an array of one row per sample out of all tokens, without the model.

        The mean and the maximum are taken in float32. Ranges that are extracted later fill the array as well.

        Parameters
        ----------
        tokens
            ``last``, ``first``, ``mean``, ``max``, ``image_mean`` or ``text_mean``, and the new array's name. A sample
            without such a token gets a row of NaN.
        sites
            Which; all that keep every token if left out.

        Returns
        -------
        tuple of ArraySpec
            The new arrays.

        Raises
        ------
        InputError
            If there is no such pooling.
        StoreError
            If a site does not keep all tokens, or has such an array already.
        """
        new = add_pooled(self, tokens, sites)
        self._reopen()
        return new

    def _reopen(self) -> None:
        """See what has been added since."""
        fresh = type(self)(self.location, *metadata.open_schema(self.location))
        self.__dict__.pop("columns", None)
        self.__dict__.update(fresh.__dict__)

    # Labels

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the store."""
        return label_groups.label_names(self.location)

    def labels(self, name: str) -> Labels:
        """Labels by name, aligned to the samples; those that were appended after them have none.

        Raises
        ------
        StoreError
            If the store has no such labels; the message lists those that it has.
        CorruptStoreError
            If they are not what was written.
        """
        try:
            return label_groups.read_labels(self.location, name, self.schema)
        except CorruptStoreError:
            # They may have been replaced between two of the reads that this takes.
            return label_groups.read_labels(self.location, name, self.schema)

    def write_labels(self, labels: Labels, *, overwrite: bool = False) -> None:
        """Put labels that are aligned to the samples into the store.

        Raises
        ------
        InputError
            If their number is not that of the samples.
        StoreError
            If labels of this name are there and ``overwrite`` is not set.
        """
        if len(labels) != self.n_samples:
            raise InputError(f"labels {labels.name!r} have {len(labels)} rows for {self.n_samples} samples")
        if labels.name in self.label_names and not overwrite:
            raise StoreError(f"{self.location} has labels {labels.name!r} already; replace them with --overwrite")
        label_groups.write_labels(self.location, labels, self.schema)

    def join_labels(
        self,
        name: str,
        ids: Sequence[str],
        values: Sequence[Any],
        *,
        kind: Kind | None = None,
        ignore_unknown: bool = False,
    ) -> Labels:
        """Align values to the samples by id, without writing them; samples without a value are masked.

        Raises
        ------
        InputError
            If there are more or fewer ids than values, an id is given twice, or is not in the store and
            ``ignore_unknown`` is not set.
        """
        if len(ids) != len(values):
            raise InputError(f"labels {name!r}: {len(ids)} sample ids, but {len(values)} values")
        table = dict(zip(map(str, ids), values, strict=True))
        if len(table) != len(ids):
            twice = Counter(map(str, ids)).most_common(1)[0][0]
            raise InputError(f"labels {name!r}: sample id {twice!r} is given more than once")
        known = set(self.ids.tolist())
        unknown = [] if ignore_unknown else [i for i in table if i not in known]
        if unknown:
            raise InputError(
                f"labels {name!r}: {len(unknown)} ids are not in the store, the first is {unknown[0]!r}; "
                "correct them or pass --ignore-unknown"
            )
        return Labels.from_column(name, [table.get(i) for i in self.ids.tolist()], kind=kind)

    def add_labels(
        self,
        name: str,
        ids: Sequence[str],
        values: Sequence[Any],
        *,
        kind: Kind | None = None,
        ignore_unknown: bool = False,
        overwrite: bool = False,
    ) -> Labels:
        """Join values to the samples by id, as `join_labels` does, and put them into the store.

        Raises
        ------
        InputError
            If they cannot be joined.
        StoreError
            If labels of this name are there and ``overwrite`` is not set.
        """
        labels = self.join_labels(name, ids, values, kind=kind, ignore_unknown=ignore_unknown)
        self.write_labels(labels, overwrite=overwrite)
        return labels

    # Writing and keeping

    def writer(self) -> RangeWriter:
        """The range writer of this store."""
        return RangeWriter(self.location, self.schema)

    def append(self, columns: Mapping[str, Sequence[str]], *, fingerprint: str = "") -> range:
        """Make room for more samples, in ranges of their own behind those that are there.

        Who reads the earlier samples goes on undisturbed. It is for the caller to hold ``store.location.lock()``, and
        to see to it that the new activations are of the same model and data settings: `sonde.extract` does both.

        Parameters
        ----------
        columns
            Text per new sample; the same columns as the store has, ids that are not in it.
        fingerprint
            Of the data set that they are of. If it is that of the latest part, as after an append that was cut off,
            nothing is added.

        Returns
        -------
        range
            The new samples' numbers; their ranges are missing until they are committed.

        Raises
        ------
        InputError
            If the columns are others than the store's, or an id is in it already.
        StoreError
            If the store is of an older schema, which cannot grow.
        """
        n_before = add_samples(self, columns, fingerprint)
        self._reopen()
        return range(n_before, self.n_samples)

    def verify(self) -> list[Damage]:
        """Read every object and hold it against its commit record or digest; return what is damaged."""
        return find_damage(self)

    def repair(self, damaged: Sequence[Damage]) -> list[Damage]:
        """Withdraw the commits of damaged ranges and write damaged metadata of arrays anew; return what is left.

        ``sonde extract --resume`` extracts the ranges again. Columns and labels cannot be made here.
        """
        with self.location.lock():
            self.forget([damage.range for damage in damaged if damage.range is not None])
            return restore(self)

    def forget(self, ranges: Sequence[Range]) -> None:
        """Withdraw the commits of these ranges, so that ``sonde extract --resume`` extracts them again."""
        for range_ in ranges:
            if range_.index in self.commits or range_.index in self.damaged_records:
                self.location.remove(Commit.key_of(range_))
        self.refresh()

    def info(self) -> dict[str, Any]:
        """What ``sonde info`` prints, ready for JSON."""
        return {
            "store": str(self.location),
            "samples": self.n_samples,
            "skipped": len(self.skipped),
            "ranges": {
                "committed": len(self.commits),
                "planned": len(self.ranges),
                "size": self.schema.range_size,
            },
            "arrays": {
                a.name: {"layers": list(a.layers), "hidden": a.hidden, "dtype": self.schema.dtype} for a in self.arrays
            },
            "codec": self.schema.codec,
            "parts": [part.n_samples for part in self.schema.parts],
            "labels": {name: self.labels(name).kind for name in self.label_names},
            "bytes": sum(commit.nbytes for commit in self.commits.values()),
            "nonfinite": sum(a.nonfinite for c in self.commits.values() for a in c.arrays.values()),
            "model": dict(self.schema.model),
            "data": dict(self.schema.data),
            "capture": dict(self.schema.capture),
            "versions": dict(self.schema.versions),
        }

    def throughput(self) -> dict[str, float]:
        """Rates of the longest run that wrote to this store: samples, tokens and bytes per second, where logged."""
        runs = []
        for name in self.location.list("log"):
            try:
                run = json.loads(self.location.read(f"log/{name}"))
                runs.append({key: float(run[key]) for key in ("seconds", "samples", "tokens", "nbytes")})
            except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
                continue
        longest = max((run for run in runs if run["seconds"] > 0), key=lambda run: run["samples"], default=None)
        if longest is None:
            return {}
        rates = {"samples_per_s": "samples", "tokens_per_s": "tokens", "bytes_per_s": "nbytes"}
        return {rate: longest[count] / longest["seconds"] for rate, count in rates.items()}

    # Views for others

    def dask_array(self, site: str, tokens: str, *, dtype: DTypeLike | None = None) -> dask.array.Array:
        """One array ``[layer, sample, hidden]`` for dask, read block by block: see `sonde.store.views.dask_array`."""
        from .views import dask_array

        return dask_array(self, site, tokens, dtype=dtype)

    def to_xarray(self, *, dtype: DTypeLike | None = None) -> xarray.DataTree:
        """All arrays, coordinates and labels as a lazy tree of xarray: see `sonde.store.views.to_xarray`."""
        from .views import to_xarray

        return to_xarray(self, dtype=dtype)

    def torch_dataset(
        self,
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
        """One layer as a torch ``Dataset``, or ``IterableDataset``: see `sonde.store.datasets.torch_dataset`."""
        from .datasets import torch_dataset

        return torch_dataset(
            self,
            layer,
            site=site,
            tokens=tokens,
            labels=labels,
            iterable=iterable,
            shuffle=shuffle,
            seed=seed,
            dtype=dtype,
        )

    def _repr_html_(self) -> str:
        from .notebook import card

        return card(self)

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.commits)} of {len(self.ranges)} ranges"
        rows = {True: "tokens", False: self.n_samples}
        arrays = ", ".join(f"{a.name} [{len(a.layers)}, {rows[a.ragged]}, {a.hidden}]" for a in self.arrays)
        labels = ", ".join(self.label_names) or "none"
        return f"<Store {self.location}: {self.schema.model.get('name')}; {arrays}; labels: {labels}; {state}>"


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open a store; the same as `Store.open`."""
    return Store.open(url)


def ensure_vacant(location: Location) -> None:
    """Raise StoreError if a store, or something else than the remains of a creation, is at this place."""
    if location.exists("zarr.json"):
        raise StoreError(f"{location} exists already; go on with it by --resume, or choose another --out")
    if isinstance(location, Directory) and location.root.exists() and not location.root.is_dir():
        raise StoreError(f"{location} is a file; choose another --out")
    if not all(metadata.is_remnant(key) for key in location.walk()):
        raise StoreError(f"{location} exists and is not a store; choose another --out")
