"""What an open store holds: its samples, ranges, activations and labels, to be read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sonde.errors import CorruptStoreError, InputError, StoreError

from . import label_groups, metadata
from .columns import read_columns
from .commit import Commit
from .flight import share
from .labels import Labels
from .layer import Layer
from .locate import locate
from .location import Location
from .ranges import Range
from .schema import ALL, RAGGED, ArraySpec, Schema
from .statistics import Statistics
from .token_layer import TokenLayer


class Contents:
    """The reading side of a `Store`."""

    def __init__(self, location: Location, schema: Schema, digests: tuple[str, ...]) -> None:
        self.location = location
        self.schema = schema
        self.statistics = Statistics(location)
        self._digests = digests
        self.commits: dict[int, Commit] = {}
        self.damaged_records: dict[int, CorruptStoreError] = {}
        self.refresh()

    @classmethod
    def open(cls, url: str | os.PathLike[str] | Location, *, strict: bool = True, fsync: bool = True) -> Self:
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

    def refresh(self) -> None:
        """Look again which ranges are committed."""
        names = set(self.location.list("commits"))
        present = [range_ for range_ in self.ranges if f"{range_.name}.json" in names]
        found: dict[int, Commit | CorruptStoreError | None] = {}

        def read(mine: Iterator[Range]) -> None:
            for range_ in mine:
                found[range_.index] = self._read_commit(range_)

        share(read, present, self.location.in_flight)
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
            kind = tokens.removeprefix(ALL).removeprefix(":")
            which, rows = (f"{kind} token", f"{kind}_mean") if kind else ("token", "mean")
            raise StoreError(
                f"{self.location}: '{spec.name}' keeps every {which}, not one row per sample: read it with "
                f"store.tokens({site!r}, {layer}{f', {tokens!r}' if kind else ''}), or make rows of it with "
                f"store.pool({rows!r})"
            )
        return Layer(self.location, self.schema, *self._ensure_layer(spec, layer), self.commits)

    def tokens(self, site: str, layer: int, tokens: str = ALL) -> TokenLayer:
        """The tokens of one layer of a site, to be read by sample or by range.

        Parameters
        ----------
        site, layer
            Where.
        tokens
            ``all``, or those of one modality where they were kept: ``all:image``, ``all:text``.

        Raises
        ------
        StoreError
            If the store does not keep these tokens of this site, or has no such layer.
        InputError
            If ``tokens`` is none of these.
        """
        if tokens not in RAGGED:
            raise InputError(
                f"{tokens!r} keeps one row per sample: read it with store.layer, or give one of {', '.join(RAGGED)}"
            )
        spec = self.array(site, tokens)
        return TokenLayer(self.location, self.schema, *self._ensure_layer(spec, layer), self.commits)

    def _ensure_layer(self, spec: ArraySpec, layer: int) -> tuple[ArraySpec, int]:
        if layer not in spec.layers:
            raise StoreError(f"{self.location}: '{spec.name}' has no layer {layer}; it has {list(spec.layers)}")
        return spec, layer

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

    def reopen(self) -> None:
        """Look again at everything: samples and arrays that were added since, and what is committed."""
        fresh = type(self)(self.location, *metadata.open_schema(self.location))
        self.__dict__.pop("columns", None)
        self.__dict__.update(fresh.__dict__)

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.commits)} of {len(self.ranges)} ranges"
        rows = {True: "tokens", False: self.n_samples}
        arrays = ", ".join(f"{a.name} [{len(a.layers)}, {rows[a.ragged]}, {a.hidden}]" for a in self.arrays)
        labels = ", ".join(self.label_names) or "none"
        return f"<Store {self.location}: {self.schema.model.get('name')}; {arrays}; labels: {labels}; {state}>"
