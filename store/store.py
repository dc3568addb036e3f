"""The store: create, open, read, extend with labels, verify."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sonde.errors import InputError, StoreError

from . import label_groups, metadata
from .columns import check_columns
from .commit import Commit
from .contents import Contents
from .datasets import torch_dataset
from .grow import append_samples, pool_tokens
from .labels import Kind, Labels, align
from .locate import locate
from .location import Location
from .notebook import card
from .ranges import Range
from .schema import Schema
from .summary import describe, rates
from .verify import Damage, find_damage, restore
from .views import dask_array, to_xarray
from .writer import RangeWriter


class Store(Contents):
    """Activations of a model over a data set, in a Zarr v3 group.

    Open one with ``sonde.open(url)``; extraction makes them. Rows are samples in the order of the data set.
    What has no commit record is not there.

    Examples
    --------
    >>> store = sonde.open("run.zarr")                       # doctest: +SKIP
    >>> store.layer("resid_post", "last", 8).torch()         # bfloat16 [sample, hidden]; doctest: +SKIP
    """

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
        schema.check()
        check_columns(columns, schema.n_samples)
        metadata.ensure_vacant(location)
        metadata.create(location, schema, columns)
        return cls.open(location)

    # Labels

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
            raise InputError(
                f"labels {labels.name!r} have {len(labels)} rows for {self.n_samples} samples: give one for each"
            )
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
        return Labels.from_column(name, align(name, ids, values, self.ids.tolist(), ignore_unknown), kind=kind)

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

    append = append_samples
    pool = pool_tokens
    verify = find_damage

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

    # Views for others

    info = describe
    throughput = rates
    dask_array = dask_array
    to_xarray = to_xarray
    torch_dataset = torch_dataset
    _repr_html_ = card


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open a store; the same as `Store.open`."""
    return Store.open(url)
