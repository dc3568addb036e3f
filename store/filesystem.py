"""A folder of any other file system that fsspec knows: memory, SFTP, the Hugging Face Hub and more."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from sonde.errors import SondeError, StoreError

from .lease import LEASE_SECONDS, SETTLE_SECONDS, LeasedLocation, Version, Versioned, is_lease
from .location import checked_parts

# Where `mv` renames over what is there; elsewhere it copies, and an object is taken to appear whole when it is put.
_RENAMING = {"file", "local", "sftp", "ssh"}


class FileSystem(LeasedLocation):
    """A folder of a file system of fsspec: ``memory://…``, ``sftp://host/…``, ``hf://datasets/…``.

    What it asks of the file system: ``pipe_file`` returns when the data is durable, ``ls`` shows what was written, and
    several threads may use it. `publish` renames where the file system has a renaming ``mv`` (local ones, SFTP), and
    else puts in place, which object stores do atomically; where neither holds (FTP, SMB), a reader may meet half a
    record and takes the range for damaged until the rest is there, but never for data. Two writers are kept apart by a
    lease without compare-and-swap: `lock` takes ``settle_seconds``. Objects are read through memory, one at a time per
    thread. Cached listings are dropped before every look.

    Parameters
    ----------
    url
        Taken literally: nothing in it is percent-decoded.
    lease_seconds, settle_seconds
        See `LeasedLocation`.

    Raises
    ------
    StoreError
        If fsspec does not know the scheme, or lacks the package for it.
    OSError
        If the file system cannot be reached.
    """

    def __init__(
        self, url: str, *, lease_seconds: float = LEASE_SECONDS, settle_seconds: float = SETTLE_SECONDS
    ) -> None:
        import fsspec

        super().__init__(lease_seconds=lease_seconds, settle_seconds=settle_seconds)
        scheme, _, rest = url.partition("://")
        if not rest.strip("/"):
            raise StoreError(f"{url!r} names no folder: write {scheme}://…/run.zarr")
        self._url = url.rstrip("/")
        self._renames = scheme in _RENAMING
        try:
            fsspec.get_filesystem_class(scheme)
        except ImportError as error:
            raise StoreError(f"{url}: the package that reads {scheme}:// is not installed: {error}") from error
        except ValueError as error:
            raise StoreError(f"{url}: {error}") from error
        with self._medium():
            self._fs, self._root = fsspec.url_to_fs(self._url)

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"FileSystem({self._url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        settings = {"lease_seconds": self.lease_seconds, "settle_seconds": self.settle_seconds}
        return partial(FileSystem, self._url, **settings), ()

    @property
    def name(self) -> str:
        """Last part of the URL."""
        return self._url.rpartition("/")[2]

    def read(self, key: str) -> bytes:
        """Whole content of an object."""
        path = self._path(key)
        with self._medium():
            return bytes(self._fs.cat_file(path))

    def read_into(self, key: str, buffers: Iterable[memoryview]) -> int:
        """Fill ``buffers`` one after the other from an object and return the object's size in bytes."""
        data = memoryview(self.read(key))
        start = 0
        for buffer in buffers:
            piece = data[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            start += len(piece)
        return len(data)

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """Put an object from bytes-like parts."""
        self._ensure_held()
        path = self._path(key)
        self._pipe(path, b"".join(parts))

    def publish(self, key: str, data: bytes) -> None:
        """Make an object appear, or be replaced, by renaming where the file system can."""
        self._ensure_held()
        self._publish(self._path(key), data)

    def sync(self, folders: Sequence[str]) -> None:
        """Do nothing: what was written is taken to be durable."""

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._ensure_held()
        path = self._path(key)
        if not self.exists(key):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self}/{key}")
        with self._medium():
            self._fs.rm_file(path)

    def clear(self, folder: str) -> None:
        """Remove all below a folder, ``zarr.json`` first."""
        self._ensure_held()
        path = self._path(folder)
        self._drop(f"{folder}/zarr.json")
        for key in list(self.walk(folder)):
            self._drop(key)
        self._prune(path)

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        return self._kind(self._path(key)) == "file"

    def list(self, folder: str) -> list[str]:
        """Sorted names directly below a folder, hidden ones left out; empty if there is no folder."""
        return sorted(name for name, _ in self._entries(self._path(folder)) if name[0] != ".")

    def walk(self, folder: str = "") -> Iterator[str]:
        """Keys of all objects below a folder, hidden ones too; the lease is not one of them."""
        folder = folder.rstrip("/")
        for name, is_folder in self._entries(self._path(folder) if folder else self._root):
            key = f"{folder}/{name}" if folder else name
            if is_folder:
                yield from self.walk(key)
            elif not is_lease(key):
                yield key

    # The lease

    def _load(self, key: str) -> Versioned | None:
        path = self._path(key)
        try:
            data = self.read(key)
            with self._medium():
                self._fs.invalidate_cache()
                modified = self._fs.modified(path).timestamp()
        except FileNotFoundError:
            return None
        except OSError as error:
            if not isinstance(error.__cause__, NotImplementedError | AttributeError | KeyError | TypeError):
                raise
            modified = None
        return Versioned(data, (data.decode(errors="replace"), None), modified)

    def _put(self, key: str, data: bytes) -> None:
        self._publish(self._path(key), data)

    def _drop(self, *keys: str) -> None:
        for key in keys:
            with contextlib.suppress(FileNotFoundError), self._medium():
                self._fs.rm_file(self._path(key))

    def _swap(self, key: str, data: bytes, version: Version | None) -> Version:
        return self._settled_swap(key, data, version)

    # The file system

    def _path(self, key: str) -> str:
        return "/".join((self._root.rstrip("/"), *checked_parts(self, key)))

    @contextlib.contextmanager
    def _medium(self) -> Iterator[None]:
        """Give the errors of all drivers the form of OSError."""
        try:
            yield
        except (OSError, SondeError):
            raise
        except Exception as error:
            raise OSError(f"{self}: {type(error).__name__}: {error}") from error

    def _publish(self, path: str, data: bytes) -> None:
        if not self._renames:
            self._pipe(path, data)
            return
        folder, _, name = path.rpartition("/")
        hidden = f"{folder}/.{name}.partial"
        self._pipe(hidden, data)
        with self._medium():
            self._fs.mv(hidden, path)

    def _pipe(self, path: str, data: bytes) -> None:
        with self._medium():
            try:
                self._fs.pipe_file(path, data)
            except FileNotFoundError:
                # Where folders exist by themselves, the first object of one finds none.
                self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._fs.pipe_file(path, data)

    def _kind(self, path: str) -> str | None:
        with self._medium():
            self._fs.invalidate_cache()
            try:
                return str(self._fs.info(path)["type"])
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _entries(self, path: str) -> Iterator[tuple[str, bool]]:
        """(name, whether it is a folder) of what lies directly below a folder; links are not followed."""
        with self._medium():
            self._fs.invalidate_cache()
            try:
                entries = self._fs.ls(path, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return
        for entry in entries:
            # A file, and the marker of a folder, list themselves.
            if entry["name"].strip("/") != path.strip("/"):
                name = entry["name"].rstrip("/").rpartition("/")[2]
                yield name, entry["type"] == "directory"

    def _prune(self, path: str) -> None:
        """Remove the folders that are left, where the file system has such."""
        for name, is_folder in self._entries(path):
            if is_folder:
                self._prune(f"{path}/{name}")
        with contextlib.suppress(Exception):
            self._fs.rmdir(path)
