"""Where a store's objects lie: whole objects by key, written once, published atomically."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from sonde.errors import CorruptStoreError, StoreError


class Directory:
    """A local folder. Keys are relative POSIX paths; none may leave the folder.

    ``write`` puts data on the disk under its final name, ``publish`` makes one object appear whole or not at all.
    The order *write, sync, publish* is what lets a reader trust a published record after a power cut.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __str__(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        """Path of an object.

        Raises
        ------
        CorruptStoreError
            If the key is absolute, climbs out of the folder, or is reached through a symbolic link.
        """
        parts = key.split("/")
        if key.startswith("/") or any(part in ("", ".", "..") for part in parts):
            raise CorruptStoreError(
                f"{self.root}: the key {key!r} leads out of the store; the store is not to be trusted"
            )
        path = self.root
        for part in parts:
            path = path / part
            if path.is_symlink():
                raise CorruptStoreError(
                    f"{self.root}: {key!r} is reached through a symbolic link; put the data it points at into its place"
                )
        return path

    def read(self, key: str) -> bytes:
        """Whole content of an object; FileNotFoundError if there is none."""
        return self.path(key).read_bytes()

    def read_into(self, key: str, buffers: Iterable[memoryview]) -> int:
        """Fill ``buffers`` one after the other from an object and return the object's size in bytes.

        The next buffer is asked for when the one before is filled.
        """
        with self.path(key).open("rb", buffering=0) as file:
            for buffer in buffers:
                filled = 0
                while filled < len(buffer):
                    n = file.readinto(buffer[filled:])
                    if not n:
                        break
                    filled += n
            return os.fstat(file.fileno()).st_size

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """Write an object from bytes-like parts and wait until its data is on the disk."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
            os.fsync(file.fileno())

    def publish(self, key: str, data: bytes) -> None:
        """Make an object appear (or be replaced) atomically and durably."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # One name for all attempts: what a killed process left is overwritten by the next, and no litter stays.
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.write(partial.relative_to(self.root).as_posix(), [data])
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self.sync([str(Path(key).parent)])

    def sync(self, folders: Sequence[str]) -> None:
        """Wait until the entries of these folders, and of the folders above them, are on the disk."""
        wanted = {path for folder in folders for path in (self.root / folder, *(self.root / folder).parents)}
        for path in wanted:
            if path == self.root or self.root in path.parents or path == self.root.parent:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def remove(self, key: str) -> None:
        """Remove an object, durably."""
        self.path(key).unlink()
        self.sync([str(Path(key).parent)])

    def clear(self, folder: str) -> None:
        """Remove a folder and all below it, if it is there; it stops being a node of Zarr before its parts go."""
        path = self.path(folder)
        if path.is_dir():
            (path / "zarr.json").unlink(missing_ok=True)
            self.sync([folder])
            shutil.rmtree(path)

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        return self.path(key).is_file()

    def list(self, folder: str) -> list[str]:
        """Sorted names directly below a folder, hidden and partial ones left out; empty if there is no folder."""
        path = self.root / folder
        return sorted(p.name for p in path.iterdir() if p.name[0] != ".") if path.is_dir() else []

    def walk(self, folder: str = "") -> Iterator[str]:
        """Keys of all objects below a folder, hidden and partial ones too, and links unfollowed."""
        for path, folders, names in os.walk(self.root / folder):
            links = (name for name in folders if Path(path, name).is_symlink())
            yield from (Path(path, name).relative_to(self.root).as_posix() for name in (*names, *links))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; released by the system however the process ends.

        Raises
        ------
        StoreError
            If another process is writing to this store.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise StoreError(f"{self}: another process is writing to this store; wait for it or stop it") from None
        try:
            yield
        finally:
            os.close(descriptor)


def locate(url: str | os.PathLike[str]) -> Directory:
    """Resolve a path or ``file://`` URL to a location.

    Raises
    ------
    StoreError
        For other URL schemes.
    """
    text = os.fspath(url)
    if "://" not in text:
        return Directory(Path(text).expanduser().absolute())
    parts = urlsplit(text)
    if parts.scheme != "file":
        raise StoreError(f"{text}: stores live in local folders; extract to a path and copy it there")
    return Directory(Path(unquote(parts.path)))
