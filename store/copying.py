"""Copies of a store at another place: byte for byte, checked on the way, and gone on with where they were cut off."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sonde.callbacks import Callback
from sonde.errors import StoreError
from sonde.watching import watched

from . import metadata
from .chunks import Chunk, copy_chunk
from .commit import Commit, tokens_folder
from .flight import in_flight
from .locate import locate
from .location import Location
from .schema import SCHEMA_VERSION, Schema
from .store import Store


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    Attributes
    ----------
    store
        The copy.
    ranges, present
        Ranges that were copied, and that were there already.
    nbytes
        Bytes of the chunks that were copied.
    """

    store: Store
    ranges: int
    present: int
    nbytes: int


def copy_store(
    source: Store | str | os.PathLike[str],
    destination: str | os.PathLike[str] | Location,
    *,
    callbacks: Sequence[Callback] | None = None,
) -> Copied:
    """Copy a store, range by range; a store of an older schema becomes one of this version.

    Every chunk is held against its commit as it is read, and read again at the destination before its range is
    committed there. A copy that was cut off is a store with ranges missing; copying again goes on with it, and takes
    over what the source has got since: samples, pooled arrays, labels.

    Parameters
    ----------
    source
        The store; of one that is not finished, what is committed is copied.
    destination
        A path or URL where nothing is yet, or an earlier copy.
    callbacks
        Who is told how it goes, after every range. Left out, a progress bar at a terminal or in a notebook; ``()`` for
        none.

    Raises
    ------
    StoreError
        If something else is at the destination, or another process is writing there.
    CorruptStoreError
        If an object of the source is damaged, or arrives damaged.
    """
    source = source if isinstance(source, Store) else Store.open(source)
    place = locate(destination)
    if str(place) == str(source.location):
        raise StoreError(f"{place} cannot be copied to itself: choose another destination")
    schema = replace(source.schema, version=SCHEMA_VERSION)
    copied = present = nbytes = 0
    # The columns are read, and so checked, before anything is written.
    columns = {name: column.tolist() for name, column in source.columns.items()}
    if not place.exists("zarr.json"):
        metadata.ensure_vacant(place)
    facts = {"run": "copy", "unit": "ranges", "store": str(source.location), "to": str(place)}
    with place.lock(), watched(callbacks, facts) as watch:
        if not place.exists("zarr.json"):
            metadata.create(place, schema, columns)
        target = Store.open(place, strict=False)
        _ensure_copy_of(source, target)
        committed = list(source.commits.values())
        for done, commit in enumerate(committed, start=1):
            if target.commits.get(commit.range.index) == commit:
                present += 1
            else:
                if commit.range.index in {*target.commits, *target.damaged_records}:
                    # Its chunks are about to change under it.
                    target.forget([commit.range])
                _copy_range(source, schema, commit, place)
                copied, nbytes = copied + 1, nbytes + commit.nbytes
            watch.on_progress(done, len(committed))
        if target.schema.parts != schema.parts or target.schema.arrays != schema.arrays:
            metadata.extend(place, schema, columns)
            target = Store.open(place, strict=False)
        _copy_labels(source, target)
        for name in source.location.list("log"):
            if not place.exists(f"log/{name}"):
                place.publish(f"log/{name}", source.location.read(f"log/{name}"))
    return Copied(Store.open(place), copied, present, nbytes)


def _copy_range(source: Store, schema: Schema, commit: Commit, place: Location) -> None:
    folders = {folder for array in commit.arrays.values() for folder in array.folders}
    for spec in schema.arrays:
        if not spec.ragged:
            continue
        folder = tokens_folder(spec, commit.range)
        place.clear(folder)
        for key in source.location.walk(folder):
            if key.endswith("/zarr.json"):
                place.write(key, [source.location.read(key)])
                folders.add(key.rpartition("/")[0])
    chunks = [(chunk, name) for name, array in commit.arrays.items() for chunk in array.all_chunks()]

    def copy(item: tuple[Chunk, str]) -> None:
        chunk, name = item
        copy_chunk(source.location, chunk, place, f"range {commit.range.index} of {name} ({chunk.key})")

    for _ in in_flight(copy, chunks, max(source.location.in_flight, place.in_flight)):
        pass
    place.sync(sorted(folders))
    commit.publish(place)


def _copy_labels(source: Store, target: Store) -> None:
    for name in source.label_names:
        labels = source.labels(name)
        if name in target.label_names:
            there = target.labels(name)
            if (there.kind, there.names, there.column()) == (labels.kind, labels.names, labels.column()):
                continue
        target.write_labels(labels, overwrite=True)


def _ensure_copy_of(source: Store, target: Store) -> None:
    """Raise StoreError unless the target is of the same activations as the source, or of a beginning of them."""
    for what in ("model", "data", "capture", "dtype", "codec", "range_size"):
        if getattr(source.schema, what) != getattr(target.schema, what):
            raise StoreError(
                f"{target.location} is no copy of {source.location}: its {what} is another; choose another destination"
            )
    n = len(target.schema.parts)
    same_samples = source.schema.parts[:n] == target.schema.parts and source.ids[: target.n_samples].tolist() == (
        target.ids.tolist()
    )
    if not same_samples or not {a.name for a in target.arrays} <= {a.name for a in source.arrays}:
        raise StoreError(
            f"{target.location} is no copy of {source.location}: it has other samples or arrays; choose another "
            "destination"
        )
