"""A local folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from sonde.errors import CorruptStoreError, StoreError

from .location import Location, checked_parts


class Directory(Location):
    """A local folder; what lies behind a symbolic link below it is refused.

    Parameters
    ----------
    root
        Absolute path; made when first written to.
    fsync
        Wait for the disk. Off, a power cut may cost what was committed since the system last wrote to the disk, which
        ``sonde verify`` then finds; a crash of the process alone costs nothing.
    """

    in_flight = max(2, min(4, os.cpu_count() or 1))

    def __init__(self, root: Path, *, fsync: bool = True) -> None:
        self.root = root
        self._durable = fsync
        self._named: set[Path] = set()

    def __str__(self) -> str:
        return str(self.root)

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.root.name

    def path(self, key: str) -> Path:
        """Path of an object.

        Raises
        ------
        CorruptStoreError
            If the key is absolute, climbs out of the folder, is reached through a symbolic link, or is neither a file
            nor a folder: whoever opens a pipe waits for ever.
        """
        return Path(self._place(key))

    def _place(self, key: str) -> str:
        # As text: opening a store asks for one path a range, and those of pathlib take longer to make than to read.
        place = str(self.root).rstrip("/")
        for part in checked_parts(self, key):
            place = f"{place}/{part}"
            try:
                mode = os.lstat(place).st_mode
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISLNK(mode):
                raise CorruptStoreError(
                    f"{self.root}: {key!r} is reached through a symbolic link; put the data it points at into its place"
                )
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise CorruptStoreError(f"{self.root}: {key!r} is no file but a pipe or device; remove it")
        return place

    def read(self, key: str) -> bytes:
        """Whole content of an object."""
        with FileIO(self._place(key)) as file:
            return file.readall()

    def read_into(self, key: str, buffers: Iterable[memoryview]) -> int:
        """Fill ``buffers`` one after the other from an object and return the object's size in bytes."""
        with FileIO(self._place(key)) as file:
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
        self._make(path.parent)
        self._write(path, parts)

    def publish(self, key: str, data: bytes) -> None:
        """Make an object appear (or be replaced) by renaming."""
        path = self.path(key)
        self._make(path.parent)
        # One name for all attempts: what a killed process left is overwritten by the next, and no litter stays.
        partial = path.with_name(f".{path.name}.partial")
        self.path(partial.relative_to(self.root).as_posix())
        try:
            self._write(partial, [data])
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        self.sync([str(Path(key).parent)])

    def _write(self, path: Path, parts: Iterable[Any]) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(descriptor, view) :]
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, folders: Sequence[str]) -> None:
        """Wait until the entries of these folders, and of the folders above them, are on the disk.

        A folder's own name is waited for once: what is put into the folder does not change it.
        """
        wanted, named = set(), set()
        for path in map(self.root.joinpath, folders):
            wanted.add(path)
            while path not in self._named and path != self.root.parent:
                named.add(path)
                path = path.parent
                wanted.add(path)
        self._sync(sorted(wanted, reverse=True))
        self._named |= named

    def _make(self, folder: Path) -> None:
        """Make a folder and those above it; the ones above the root durably, as `sync` leaves them out."""
        if not self.root.exists():
            new = [path for path in self.root.parents if not path.exists()]
            self.root.mkdir(parents=True, exist_ok=True)
            self._sync([path.parent for path in new])
        folder.mkdir(parents=True, exist_ok=True)

    def _sync(self, folders: Iterable[Path]) -> None:
        for path in folders if self._durable else ():
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
            self._named = {other for other in self._named if not other.is_relative_to(path)}
            shutil.rmtree(path)

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        return self.path(key).is_file()

    def list(self, folder: str) -> list[str]:
        """Sorted names directly below a folder, hidden and partial ones left out; empty if there is no folder."""
        path = self.path(folder)
        if not path.is_dir():
            return []
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != ".")

    def walk(self, folder: str = "") -> Iterator[str]:
        """Keys of all objects below a folder, hidden and partial ones too, and links unfollowed."""
        top = self.path(folder.rstrip("/")) if folder else self.root
        for path, folders, names in os.walk(top):
            links = (name for name in folders if Path(path, name).is_symlink())
            yield from (Path(path, name).relative_to(self.root).as_posix() for name in (*names, *links))

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; released by the system however the process ends."""
        self._make(self.root)
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
