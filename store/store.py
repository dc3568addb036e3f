"""The store: create, open, read, extend with labels, verify."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import CorruptStoreError, InputError, StoreError

from . import metadata
from .chunks import read_chunk
from .commit import Commit
from .labels import Kind, Labels
from .layer import Layer
from .location import Directory, locate
from .ranges import Range, plan_ranges
from .schema import ArraySpec, Schema
from .writer import RangeWriter


@dataclass(frozen=True, slots=True)
class Damage:
    """A range that is not what it was when it was committed."""

    range: Range
    errors: tuple[str, ...]


class Store:
    """Activations of a model over a data set, in a Zarr v3 group.

    Open one with ``sonde.open(url)``; extraction makes them. Rows are samples in the order of the data set.
    What has no commit record is not there.

    Examples
    --------
    >>> store = sonde.open("run.zarr")                       # doctest: +SKIP
    >>> store.layer("resid_post", "last", 8).torch()         # bfloat16 [sample, hidden]; doctest: +SKIP
    """

    def __init__(self, location: Directory, schema: Schema, digest: str) -> None:
        self.location = location
        self.schema = schema
        self._digest = digest
        self.ranges = plan_ranges(schema.n_samples, schema.range_size)
        self.commits: Mapping[int, Commit] = {}
        self.damaged_records: dict[int, CorruptStoreError] = {}
        self.refresh()

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, strict: bool = True) -> Store:
        """Open a store by path or ``file://`` URL.

        Raises
        ------
        StoreError
            If there is none, or it is of another kind or version.
        CorruptStoreError
            If a commit record is damaged, unless ``strict`` is off: then its range counts as not committed, and
            :meth:`verify` tells of it.
        """
        location = locate(url)
        store = cls(location, *metadata.open_schema(location))
        if strict and store.damaged_records:
            raise next(iter(store.damaged_records.values()))
        return store

    @classmethod
    def create(cls, url: str | os.PathLike[str], schema: Schema, columns: Mapping[str, Sequence[str]]) -> Store:
        """Make an empty store.

        Parameters
        ----------
        url
            A path that does not exist yet or is an empty folder, or the remains of a creation that was cut off.
        schema
            Arrays, sizes and provenance.
        columns
            Text per sample; ``id`` (unique) and ``group`` are required.

        Raises
        ------
        StoreError
            If something is there already.
        InputError
            If the columns do not fit the schema, or the schema has no samples or contradicts itself.
        """
        location = locate(url)
        if schema.n_samples < 1 or schema.range_size < 1 or not schema.arrays:
            raise InputError("a store needs at least one sample, one row a range and one array")
        if not {"id", "group"} <= set(columns) or any(len(c) != schema.n_samples for c in columns.values()):
            raise InputError(f"a store of {schema.n_samples} samples needs columns id and group of that length")
        if len(set(columns["id"])) != schema.n_samples:
            raise InputError("sample ids must be unique")
        if any("\0" in text for column in columns.values() for text in column):
            raise InputError("ids, groups and splits cannot contain the character NUL")
        for site in {a.site for a in schema.arrays}:
            if len({a.layers for a in schema.arrays if a.site == site}) > 1:
                raise InputError(f"all arrays of the site {site!r} must have the same layers")
        ensure_vacant(location)
        metadata.create(location, schema, columns)
        return cls.open(url)

    def refresh(self) -> None:
        """Look again which ranges are committed."""
        present = set(self.location.list("commits"))
        commits: dict[int, Commit] = {}
        self.damaged_records = {}
        for range_ in self.ranges:
            if f"{range_.name}.json" in present:
                try:
                    commits[range_.index] = Commit.read(self.location, range_, self.schema)
                except CorruptStoreError as error:
                    self.damaged_records[range_.index] = error
        self.commits = commits

    # What it holds

    @property
    def n_samples(self) -> int:
        """Rows of every array."""
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
        return metadata.read_columns(self.location, self._digest)

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
        if layer not in spec.layers:
            raise StoreError(f"{self.location}: '{spec.name}' has no layer {layer}; it has {list(spec.layers)}")
        return Layer(self.location, self.schema, spec, layer, self.ranges, self.commits)

    # Labels

    @property
    def label_names(self) -> list[str]:
        """Names of the labels in the store."""
        return metadata.label_names(self.location)

    def labels(self, name: str) -> Labels:
        """Labels by name, aligned to the samples.

        Raises
        ------
        StoreError
            If the store has no such labels; the message lists those that it has.
        CorruptStoreError
            If they are not what was written.
        """
        labels = metadata.read_labels(self.location, name)
        if len(labels) != self.n_samples:
            raise CorruptStoreError(
                f"{self.location}: labels {name!r} have {len(labels)} rows for {self.n_samples} samples: they are "
                "another store's; add them again with --overwrite"
            )
        return labels

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
        metadata.write_labels(self.location, labels)

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

    def verify(self) -> list[Damage]:
        """Read every committed chunk and hold it against its commit record; return what is damaged."""
        damaged = [Damage(self.ranges[index], (str(error),)) for index, error in self.damaged_records.items()]
        for index, commit in sorted(self.commits.items()):
            errors = []
            for spec in self.arrays:
                out = np.empty((self.schema.range_size, spec.hidden), dtype=self.schema.numpy_dtype)
                for layer, chunk in zip(spec.layers, commit.arrays[spec.name].chunks, strict=True):
                    try:
                        read_chunk(self.location, chunk, out, f"range {index} of layer {layer} of {spec.name}")
                    except CorruptStoreError as error:
                        errors.append(str(error))
            if errors:
                damaged.append(Damage(commit.range, tuple(errors)))
        return sorted(damaged, key=lambda damage: damage.range.index)

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
            except (OSError, ValueError, KeyError, TypeError):
                continue
        longest = max((run for run in runs if run["seconds"] > 0), key=lambda run: run["samples"], default=None)
        if longest is None:
            return {}
        rates = {"samples_per_s": "samples", "tokens_per_s": "tokens", "bytes_per_s": "nbytes"}
        return {rate: longest[count] / longest["seconds"] for rate, count in rates.items()}

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.commits)} of {len(self.ranges)} ranges"
        arrays = ", ".join(f"{a.name} [{len(a.layers)}, {self.n_samples}, {a.hidden}]" for a in self.arrays)
        labels = ", ".join(self.label_names) or "none"
        return f"<Store {self.location}: {self.schema.model.get('name')}; {arrays}; labels: {labels}; {state}>"


def open_store(url: str | os.PathLike[str]) -> Store:
    """Open a store; the same as `Store.open`."""
    return Store.open(url)


def ensure_vacant(location: Directory) -> None:
    """Raise StoreError if a store, or something else than the remains of a creation, is at this place."""
    if location.root.is_dir():
        if location.exists("zarr.json"):
            raise StoreError(f"{location} exists already; go on with it by --resume, or choose another --out")
        if not all(metadata.is_remnant(key) for key in location.walk()):
            raise StoreError(f"{location} exists and is not a store; choose another --out")
    elif location.root.exists():
        raise StoreError(f"{location} is a file; choose another --out")
