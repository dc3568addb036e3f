"""Small Zarr hierarchies: made in memory by zarr-python, moved to and from a location as whole objects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from .codecs import decode_bounded
from .location import Location

_COMPRESSED = ("vlen-utf8", "zstd")
_PLAIN = (("bytes", "crc32c"), ("vlen-utf8", "crc32c"), _COMPRESSED)
_LARGEST_CONTENT = 2**28


def new_tree(attributes: dict[str, Any]) -> tuple[MemoryStore, zarr.Group]:
    """Make a hierarchy in memory; its root group has these attributes."""
    tree = MemoryStore()
    return tree, zarr.create_group(tree, zarr_format=3, attributes=attributes)


def read_tree(
    location: Location, prefix: str, keys: Sequence[str] | None = None, node: Callable[..., Any] = zarr.open_group
) -> Any:
    """Read a small group, or array, into memory through the location, which refuses links, and open it there."""
    from_bytes = default_buffer_prototype().buffer.from_bytes
    # Without hidden ones: what a killed writer left, and a living one is about to rename.
    visible = (key for key in location.walk(prefix) if not key.rpartition("/")[2].startswith("."))
    keys = list(visible) if keys is None else keys
    tree = {key.removeprefix(prefix): from_bytes(location.read(key)) for key in keys}
    return node(MemoryStore(tree, read_only=True), mode="r", zarr_format=3)


def bytes_of(tree: MemoryStore) -> dict[str, bytes]:
    """All objects of a hierarchy in memory, by key."""
    return {key: value.to_bytes() for key, value in tree._store_dict.items()}


def is_node(location: Location, folder: str) -> bool:
    """Whether a folder is a group or an array of Zarr."""
    return location.exists(f"{folder}/zarr.json")


def read_json(location: Location, key: str) -> dict[str, Any]:
    """Read a small JSON object; empty where there is none, or something else."""
    try:
        data = json.loads(location.read(key))
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def ensure_bounded(array: Any, largest: int) -> None:
    """Refuse an array that would take more memory than what it was read from, before its shape is believed.

    Its chunks are there and hold what they say, a text in four bytes at least; of one chunk that is not there, as of
    earlier stores where it held nothing but zeros, ``largest`` values are believed.
    """
    codecs = tuple(codec.to_dict()["name"] for codec in array.metadata.codecs)
    if codecs not in _PLAIN:
        raise ValueError(f"codecs {codecs} where no store has them")
    objects, n_values, missing = array.store._store_dict, math.prod(array.chunks), 0
    grid = tuple(-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True))
    if math.prod(grid) > len(objects):
        raise ValueError(f"{math.prod(grid)} chunks, but {len(objects)} objects")
    for index in np.ndindex(grid):
        chunk = objects.get(f"{array.path}/{array.metadata.encode_chunk_key(index)}".lstrip("/"))
        if chunk is None:
            missing += 1
            if missing > 1 or array.size > largest:
                raise ValueError(f"chunk {index} of {array.shape} is missing")
            continue
        data = chunk.to_bytes()
        if codecs == _COMPRESSED:
            data = decode_bounded(data, _LARGEST_CONTENT)
        texts = codecs[0] == "vlen-utf8"
        nbytes = n_values * (4 if texts else array.dtype.itemsize)
        if len(data) < nbytes or (texts and int.from_bytes(data[:4], "little") != n_values):
            raise ValueError(f"{array.shape} in chunks of {array.chunks}, but one of {len(data)} bytes")


def add_array(group: zarr.Group, name: str, values: NDArray[Any], dimensions: Sequence[str]) -> None:
    """Add an array in one chunk."""
    group.create_array(
        name,
        data=values,
        chunks=values.shape,
        dimension_names=dimensions,
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )


def add_strings(group: zarr.Group, name: str, values: Sequence[str], dimension: str) -> None:
    """Add an array of texts in one chunk."""
    array = group.create_array(
        name,
        shape=(len(values),),
        chunks=(max(1, len(values)),),
        dtype="string",
        dimension_names=[dimension],
        compressors=[Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    array[:] = np.asarray(values, dtype=object)
