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

from .location import Location


def new_tree(attributes: dict[str, Any]) -> tuple[MemoryStore, zarr.Group]:
    """Make a hierarchy in memory; its root group has these attributes."""
    tree = MemoryStore()
    return tree, zarr.create_group(tree, zarr_format=3, attributes=attributes)


def read_tree(
    location: Location, prefix: str, keys: Sequence[str] | None = None, node: Callable[..., Any] = zarr.open_group
) -> Any:
    """Read a small group, or array, into memory through the location, which refuses links, and open it there."""
    from_bytes = default_buffer_prototype().buffer.from_bytes
    keys = list(location.walk(prefix)) if keys is None else keys
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
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def ensure_bounded(array: Any, n_dims: int, largest: int) -> None:
    """Refuse an array before its size is believed: other data than an attacker's is far below these bounds."""
    chunk = math.prod(array.chunks)
    if array.ndim > n_dims or array.size > largest or chunk > max(largest, 2**24):
        raise ValueError(f"impossible shape {array.shape} in chunks of {array.chunks}")


def add_array(group: zarr.Group, name: str, values: NDArray[Any], dimensions: Sequence[str]) -> None:
    """Add an array in one chunk."""
    group.create_array(name, data=values, chunks=values.shape, dimension_names=dimensions, compressors=[Crc32cCodec()])


def add_strings(group: zarr.Group, name: str, values: Sequence[str], dimension: str) -> None:
    """Add an array of texts in one chunk."""
    array = group.create_array(
        name,
        shape=(len(values),),
        chunks=(max(1, len(values)),),
        dtype="string",
        dimension_names=[dimension],
        compressors=[Crc32cCodec()],
    )
    array[:] = np.asarray(values, dtype=object)
