"""Where a store's objects lie: whole objects by key, published atomically."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sonde.errors import CorruptStoreError


class Location(ABC):
    """A folder of objects, on a disk or in an object store. Keys are relative POSIX paths; none may leave the folder.

    ``write`` puts data under its final name, ``publish`` makes one object appear (or be replaced) whole or not at all.
    The order *write, sync, publish* is what lets a reader trust a published record after a crash.

    Everything that takes a key raises CorruptStoreError for one that is absolute or climbs out of the folder, and
    OSError where the medium fails. ``str(location)`` is the URL or path that `locate` resolves to it again.
    """

    in_flight: int = 16
    """Reads at a time that are worth it: a network has room for more than a page cache."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Last part of the URL: ``run.zarr``."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """Whole content of an object.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """

    @abstractmethod
    def read_into(self, key: str, buffers: Iterable[memoryview]) -> int:
        """Fill ``buffers`` one after the other from an object and return the object's size in bytes.

        The next buffer is asked for when the one before is filled. Where the object is shorter than the buffers the
        rest of them is left as it was, where it is longer its end is not read.
        """

    @abstractmethod
    def write(self, key: str, parts: Iterable[Any]) -> None:
        """Write an object from bytes-like parts and return when its data is durable."""

    @abstractmethod
    def publish(self, key: str, data: bytes) -> None:
        """Make an object appear, or be replaced, atomically and durably."""

    @abstractmethod
    def sync(self, folders: Sequence[str]) -> None:
        """Make the names of what was written below these folders durable."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object, durably.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """

    @abstractmethod
    def clear(self, folder: str) -> None:
        """Remove a folder and all below it, if it is there; it stops being a node of Zarr before its parts go."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether an object has this key."""

    @abstractmethod
    def list(self, folder: str) -> list[str]:
        """Sorted names directly below a folder, hidden and partial ones left out; empty if there is no folder."""

    @abstractmethod
    def walk(self, folder: str = "") -> Iterator[str]:
        """Keys of all objects below a folder, hidden and partial ones too."""

    @abstractmethod
    def lock(self) -> AbstractContextManager[None]:
        """Hold the store for writing.

        Raises
        ------
        StoreError
            If another process is writing to this store.
        """


def checked_parts(location: Location, key: str) -> list[str]:
    """Split a key into its names.

    Raises
    ------
    CorruptStoreError
        If it is absolute or climbs out of the folder.
    """
    parts = key.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise CorruptStoreError(f"{location}: the key {key!r} leads out of the store; the store is not to be trusted")
    return parts
