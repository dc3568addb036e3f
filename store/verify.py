"""Looking at every byte of a store, and marking what is broken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sonde.errors import CorruptStoreError

from . import metadata
from .chunks import Chunk, check_chunk
from .commit import Commit
from .contents import Contents
from .flight import in_flight
from .ranges import Range


@dataclass(frozen=True, slots=True)
class Damage:
    """What is not what it was when it was written.

    Attributes
    ----------
    range
        The range whose commit or chunks are damaged, to be extracted again; None for metadata, columns and labels.
    errors
        One sentence for each thing that is damaged, with its remedy.
    """

    range: Range | None
    errors: tuple[str, ...]


def find_damage(store: Contents) -> list[Damage]:
    """Read every object that a store's commits name, its metadata, columns and labels; return what is damaged."""
    found = [Damage(None, (error,)) for error in _outside_ranges(store)]
    for range_ in store.ranges:
        if range_.index in store.damaged_records:
            found.append(Damage(range_, (str(store.damaged_records[range_.index]),)))
        elif range_.index in store.commits:
            errors = tuple(_of_range(store, store.commits[range_.index]))
            if errors:
                found.append(Damage(range_, errors))
    return found


def restore(store: Contents) -> list[Damage]:
    """Write the metadata of the arrays anew where it is damaged; return what is damaged still, outside of ranges."""
    columns, _ = _columns(store)
    if columns is not None and metadata.damage(store.location, store.schema, columns["id"]):
        metadata.restore(store.location, store.schema, columns)
    return [Damage(None, (error,)) for error in _outside_ranges(store)]


def _columns(store: Contents) -> tuple[dict[str, NDArray[np.str_]] | None, list[str]]:
    try:
        return store.columns, []
    except CorruptStoreError as error:
        return None, [str(error)]


def _outside_ranges(store: Contents) -> Iterator[str]:
    columns, errors = _columns(store)
    yield from metadata.damage(store.location, store.schema, None if columns is None else columns["id"])
    yield from errors
    for name in store.label_names:
        try:
            store.labels(name)
        except CorruptStoreError as error:
            yield str(error)


def _of_range(store: Contents, commit: Commit) -> Iterator[str]:
    parts: list[tuple[Chunk, str]] = []
    for spec in store.arrays:
        array = commit.arrays[spec.name]
        where = f"range {commit.range.index} of"
        n_chunks = array.tokens.n_chunks if array.tokens else 1
        for i, chunk in enumerate(array.chunks):
            piece = f"chunk {i % n_chunks} of " if array.tokens else ""
            parts.append((chunk, f"{piece}{where} layer {spec.layers[i // n_chunks]} of {spec.name}"))
        if array.scale is not None:
            parts.append((array.scale, f"the scale of {where} {spec.name}"))
        if array.tokens is not None:
            parts += [(getattr(array.tokens, n), f"{n} of {where} {spec.name}") for n in _INDEX]

    def check(part: tuple[Chunk, str]) -> str | None:
        try:
            check_chunk(store.location, *part)
        except CorruptStoreError as error:
            return str(error)
        return None

    yield from (error for error in in_flight(check, parts, store.location.in_flight) if error is not None)


_INDEX = ("offsets", "token_ids", "modality")
