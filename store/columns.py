"""Sample columns: one text per sample, aligned with the activations."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from sonde.errors import CorruptStoreError, InputError

from .location import Location
from .schema import Schema
from .trees import ensure_bounded, read_tree


def check_columns(columns: Mapping[str, Sequence[str]], n_samples: int) -> None:
    """Raise InputError unless there are a group and a unique id for each of ``n_samples``."""
    if not {"id", "group"} <= set(columns) or any(len(c) != n_samples for c in columns.values()) or not n_samples:
        lengths = {name: len(column) for name, column in columns.items()}
        raise InputError(f"a store of {n_samples} samples needs columns id and group of that length, got {lengths}")
    if len(set(columns["id"])) != n_samples:
        twice = Counter(columns["id"]).most_common(1)[0][0]
        raise InputError(f"sample id {twice!r} is given more than once: ids must be unique")
    if any("\0" in text for column in columns.values() for text in column):
        raise InputError("ids, groups and splits cannot contain the character NUL")
    for name, column in columns.items():
        if _too_wide(column):
            raise InputError(
                f"the longest text of the column {name!r} has {max(map(len, column))} characters, and in memory all "
                "are as wide as the longest: shorten it"
            )


def _too_wide(texts: Sequence[str]) -> bool:
    """Whether numpy's array of texts, all as wide as the longest, is much larger than they are."""
    wide, narrow = len(texts) * max(map(len, texts), default=0), len(texts) + sum(map(len, texts))
    return wide > max(2**26, 256 * narrow)


def read_columns(location: Location, schema: Schema, digests: Sequence[str]) -> dict[str, NDArray[np.str_]]:
    """Read all sample columns, as numpy strings ``[sample]``.

    Raises
    ------
    CorruptStoreError
        If they are not what was written.
    """
    rows = schema.rows()
    try:
        samples = read_tree(location, "samples/")
        columns = {}
        for name, array in sorted(samples.arrays()):
            ensure_bounded(array, schema.n_rows())
            # An append that did not come to its end leaves longer columns.
            texts = np.asarray(array[: schema.n_rows()]).tolist()
            if _too_wide(texts):
                raise ValueError("one text is too long for an array of them")
            columns[name] = np.array(texts, dtype=str)[rows]
    except Exception as error:
        raise CorruptStoreError(
            f"{location}: the sample columns cannot be read ({error}); restore samples/ from a copy"
        ) from error
    if digests_of(schema, columns) != list(digests):
        raise CorruptStoreError(f"{location}: the sample columns are damaged; restore samples/ from a copy")
    return columns


def add_column(group: zarr.Group, name: str, values: Sequence[str] | NDArray[np.str_], schema: Schema) -> None:
    """Add one text per sample, aligned with the arrays; rows without a sample are empty.

    A chunk holds what was there at first, so that an append adds chunks behind it.
    """
    padded = np.full(schema.n_rows(), "", dtype=object)
    padded[schema.rows()] = np.asarray(values, dtype=object)
    first = -(-schema.parts[0].n_samples // schema.range_size) * schema.range_size
    array = group.create_array(
        name,
        shape=padded.shape,
        chunks=(first,),
        dtype="string",
        dimension_names=["sample"],
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[:] = padded


def digests_of(schema: Schema, columns: Mapping[str, Sequence[str] | NDArray[np.str_]]) -> list[str]:
    """SHA-256 of the columns of each part."""
    digests, end = [], 0
    for part in schema.parts:
        start, end = end, end + part.n_samples
        digest = hashlib.sha256()
        for name in sorted(columns):
            for text in (name, *columns[name][start:end]):
                data = str(text).encode()
                digest.update(len(data).to_bytes(8, "little") + data)
        digests.append(digest.hexdigest())
    return digests
