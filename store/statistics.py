"""Sums that were computed from a store's activations once, kept in the store under a key of their content."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec

from sonde.errors import StoreError

from .chunks import Chunk, read_chunk, room, write_chunk
from .location import Location
from .trees import bytes_of, is_node, new_tree, read_json

_FOLDER = "statistics"
_MAKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the cache.

    Attributes
    ----------
    key
        Its name below ``statistics/``.
    about
        What it was computed from, as JSON.
    nbytes
        Bytes of its arrays.
    """

    key: str
    about: dict[str, Any]
    nbytes: int


class Statistics:
    """The cache of one store: arrays under keys, each entry there whole or not at all.

    An entry is a Zarr group ``statistics/<key>``, every array one chunk in C order with its crc32c. Two writers of one
    key write the same; what is damaged counts as not there, and is replaced by the next `put`.
    """

    def __init__(self, location: Location) -> None:
        self._location = location

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Read the arrays of an entry; None where there is none, or a damaged one."""
        described = self._described(key)
        if described is None:
            return None
        arrays = {}
        try:
            for name, (dtype, shape, chunk) in described.items():
                arrays[name] = room(shape, dtype)
                read_chunk(self._location, chunk, arrays[name], f"{name} of the statistics {key}")
        except StoreError:  # damaged, or of a size that nobody wrote
            return None
        return arrays

    def put(self, key: str, arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any]) -> None:
        """Write an entry; it appears whole or not at all.

        Parameters
        ----------
        key
            A name of letters, digits and hyphens.
        arrays
            Of at least one dimension and one element each.
        about
            What it was computed from, as JSON.

        Raises
        ------
        StoreError
            If the store cannot be written.
        """
        folder = f"{_FOLDER}/{key}"
        tree, root = new_tree({})
        for name, x in arrays.items():
            root.create_array(name, shape=x.shape, chunks=x.shape, dtype=x.dtype, compressors=[Crc32cCodec()])
        objects = bytes_of(tree)
        try:
            self._location.clear(folder)
            chunks = {
                name: write_chunk(self._location, f"{folder}/{name}/c{'/0' * x.ndim}", x) for name, x in arrays.items()
            }
            for name in arrays:
                self._location.write(f"{folder}/{name}/zarr.json", [objects[f"{name}/zarr.json"]])
            self._location.sync([f"{folder}/{name}" for name in arrays])
            described = {
                name: {
                    "dtype": x.dtype.str,
                    "shape": x.shape,
                    "nbytes": chunks[name].nbytes,
                    "crc32c": chunks[name].crc32c,
                }
                for name, x in arrays.items()
            }
            attributes = {"about": dict(about), "arrays": described}
            self._make_group()
            self._location.publish(f"{folder}/zarr.json", bytes_of(new_tree(attributes)[0])["zarr.json"])
        except OSError as error:
            raise StoreError(
                f"cannot keep statistics in {self._location} ({error.strerror or error}): free space, or probe without "
                "the cache"
            ) from error

    def entries(self) -> list[Entry]:
        """List what is there, damaged entries left out."""
        keys = [key for key in self._location.list(_FOLDER) if is_node(self._location, f"{_FOLDER}/{key}")]
        return [
            Entry(key, self._attributes(key)["about"], sum(chunk.nbytes for _, _, chunk in described.values()))
            for key in keys
            if (described := self._described(key)) is not None
        ]

    def clear(self) -> None:
        """Remove every entry, and what cut-off writers left."""
        self._location.clear(_FOLDER)

    def _make_group(self) -> None:
        """Make the group of all entries, which several layers may need at once."""
        with _MAKING:
            try:
                if not is_node(self._location, _FOLDER):
                    self._location.publish(f"{_FOLDER}/zarr.json", bytes_of(new_tree({})[0])["zarr.json"])
            except OSError:
                if not is_node(self._location, _FOLDER):  # nor has another process made it
                    raise

    def _attributes(self, key: str) -> dict[str, Any]:
        attributes = read_json(self._location, f"{_FOLDER}/{key}/zarr.json").get("attributes")
        return attributes if isinstance(attributes, dict) else {}

    def _described(self, key: str) -> dict[str, tuple[np.dtype[Any], tuple[int, ...], Chunk]] | None:
        """What an entry says of its arrays; None if it says nothing that makes sense."""
        attributes = self._attributes(key)
        described = {}
        try:
            if not isinstance(attributes["about"], dict):
                return None
            for name, each in attributes["arrays"].items():
                dtype, shape = np.dtype(each["dtype"]), tuple(map(int, each["shape"]))
                chunk = Chunk(f"{_FOLDER}/{key}/{name}/c{'/0' * len(shape)}", int(each["nbytes"]), str(each["crc32c"]))
                if dtype.kind not in "fiu" or chunk.nbytes != math.prod(shape) * dtype.itemsize + 4:
                    return None
                described[name] = (dtype, shape, chunk)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        return described
