"""A folder of an object store: S3 and all that speaks it, Google Cloud Storage, Azure Blob Storage."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sonde.errors import StoreError

from .buckets import Bucket
from .client import LIMIT_SECONDS, TIMEOUT_SECONDS, Client, status_of
from .lease import LEASE_SECONDS, SETTLE_SECONDS, LeasedLocation, Version, Versioned, is_lease
from .location import checked_parts

if TYPE_CHECKING:
    from obstore.store import ObjectStore

# One request carries up to this much; what is larger goes in parts and appears when all of them are there.
_WHOLE_BYTES, _PART_BYTES = 64 * 2**20, 16 * 2**20
_BATCH = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class ObjectStorage(LeasedLocation):
    """A folder of a bucket: ``s3://bucket/run.zarr``, ``gs://…``, ``az://…``, ``abfs://container@account.…``.

    Objects appear whole or not at all and are durable when a write returns. Requests are repeated as `Client` says; a
    body that breaks off is read on from where it broke, if the object is still the same. May be used from several
    threads, and pickled; not in a forked child of a process that has used one, as the threads that carry the requests
    stay with the parent.

    Parameters
    ----------
    url
        Bucket and folder, taken literally: nothing in it is percent-decoded.
    timeout, limit
        See `Client`.
    lease_seconds, settle_seconds
        See `LeasedLocation`.
    client
        In place of the one made from the URL and the environment.

    Raises
    ------
    StoreError
        If the URL does not name a bucket. What may go wrong on use, `Client.call` lists.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = TIMEOUT_SECONDS,
        limit: float = LIMIT_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
        client: ObjectStore | None = None,
    ) -> None:
        super().__init__(lease_seconds=lease_seconds, settle_seconds=settle_seconds)
        self.timeout = timeout
        self.limit = limit
        self.client = client
        self._bucket = Bucket.of(url)
        self._client = Client(self._bucket, timeout=timeout, limit=limit, store=client)

    def __str__(self) -> str:
        return str(self._bucket)

    def __repr__(self) -> str:
        return f"ObjectStorage({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        names = ("timeout", "limit", "lease_seconds", "settle_seconds", "client")
        return partial(ObjectStorage, str(self), **{name: getattr(self, name) for name in names}), ()

    @property
    def name(self) -> str:
        """Last part of the folder, or the bucket."""
        return self._bucket.folder.rpartition("/")[2] or self._bucket.name

    def read(self, key: str) -> bytes:
        """Whole content of an object."""
        import obstore

        path = self._path(key)
        return self._client.call(path, lambda client: bytes(obstore.get(client, path).bytes()))

    def read_into(self, key: str, buffers: Iterable[memoryview]) -> int:
        """Fill ``buffers`` one after the other from an object, as it arrives, and return the object's size in bytes."""
        import obstore
        from obstore.exceptions import PreconditionError

        path, filling = self._path(key), _Filling(buffers)
        known: dict[str, Any] = {}

        def read(client: ObjectStore) -> int:
            options: Any = {}
            if filling.nbytes:
                if filling.nbytes == known["size"]:
                    return filling.nbytes
                options = {"range": {"offset": filling.nbytes}}
                if known["e_tag"]:
                    options["if_match"] = known["e_tag"]
            try:
                result = obstore.get(client, path, options=options)
            except PreconditionError:
                raise OSError(f"{self}/{path} was replaced while it was read; read it again") from None
            meta = result.meta
            if filling.nbytes and meta["size"] != known["size"]:
                raise OSError(f"{self}/{path} was replaced while it was read; read it again")
            known.update(e_tag=meta["e_tag"], size=meta["size"])
            # Pieces as they come off the network: what has arrived need not be asked for again.
            for data in result.stream(min_chunk_size=1):
                if not filling.take(data):
                    return meta["size"]
            return meta["size"]

        size = self._client.call(path, read)
        filling.finish()
        return size

    def write(self, key: str, parts: Iterable[Any]) -> None:
        """Put an object from bytes-like parts."""
        self._ensure_held()
        self._put(self._path(key), b"".join(parts))

    def publish(self, key: str, data: bytes) -> None:
        """Put an object; a put is atomic."""
        self.write(key, [data])

    def sync(self, folders: Sequence[str]) -> None:
        """Do nothing: what was put is durable."""

    def remove(self, key: str) -> None:
        """Remove an object."""
        self._ensure_held()
        path = self._path(key)
        if not self.exists(key):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self}/{path}")
        self._drop(path)

    def clear(self, folder: str) -> None:
        """Remove all objects below a folder, ``zarr.json`` first."""
        self._ensure_held()
        path = self._path(folder)
        self._drop(f"{path}/zarr.json")
        keys = list(self.walk(folder))
        for i in range(0, len(keys), _BATCH):
            self._drop(*keys[i : i + _BATCH])

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        import obstore

        path = self._path(key)
        try:
            self._client.call(path, lambda client: obstore.head(client, path))
        except FileNotFoundError:
            return False
        return True

    def list(self, folder: str) -> list[str]:
        """Sorted names directly below a folder, hidden ones left out; empty if there is no folder."""
        import obstore

        path = self._path(folder)
        found = self._client.call(path, lambda client: obstore.list_with_delimiter(client, path))
        keys = [*found["common_prefixes"], *(meta["path"] for meta in found["objects"])]
        # Some tools make an object with the folder's own name.
        names = {key.removeprefix(f"{path}/") for key in keys if key != path}
        return sorted(name for name in names if name[0] != ".")

    def walk(self, folder: str = "") -> Iterator[str]:
        """Keys of all objects below a folder, hidden ones too, page by page; the lease is not one of them."""
        import obstore
        from obstore.exceptions import BaseError

        path = self._path(folder.rstrip("/")) if folder else ""
        pages: Any = None

        def next_page(client: ObjectStore) -> Any:
            nonlocal pages
            try:
                pages = pages or iter(obstore.list(client, path or None, chunk_size=_BATCH))
                return next(pages, None)
            except BaseError:
                pages = None
                raise

        # A listing that breaks off is begun again, and not every store lists in order.
        seen = {path}
        while (page := self._client.call(path, next_page)) is not None:
            for key in (meta["path"] for meta in page):
                if key not in seen and not is_lease(key):
                    seen.add(key)
                    yield key

    # The lease

    def _load(self, key: str) -> Versioned | None:
        import obstore

        def load(client: ObjectStore) -> Versioned:
            result = obstore.get(client, key)
            meta = result.meta
            data = bytes(result.bytes())
            return Versioned(data, (meta["e_tag"], meta["version"]), meta["last_modified"].timestamp())

        with contextlib.suppress(FileNotFoundError):
            return self._client.call(key, load)
        return None

    def _put(self, key: str, data: bytes) -> None:
        import obstore

        parts = len(data) > _WHOLE_BYTES
        self._client.call(
            key, lambda client: obstore.put(client, key, data, use_multipart=parts, chunk_size=_PART_BYTES)
        )

    def _drop(self, *keys: str) -> None:
        import obstore

        def drop(client: ObjectStore) -> None:
            try:
                obstore.delete(client, keys)
            except FileNotFoundError:
                # Not every store passes over what is gone already.
                for key in keys:
                    with contextlib.suppress(FileNotFoundError):
                        obstore.delete(client, key)

        self._client.call(keys[0], drop)

    def _swap(self, key: str, data: bytes, version: Version | None) -> Version:
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, NotSupportedError, PreconditionError

        mode: Any = "create"
        if version is not None:
            mode = {name: value for name, value in zip(("e_tag", "version"), version, strict=True) if value}

        def swap(client: ObjectStore) -> Version:
            try:
                result = obstore.put(client, key, data, mode=mode)
            except (AlreadyExistsError, PreconditionError) as error:
                raise FileExistsError(key) from error
            except BaseError as error:
                if status_of(error) == 409:
                    raise FileExistsError(key) from error
                if isinstance(error, NotSupportedError) or status_of(error) == 501:
                    raise _Unconditional from error
                raise
            return result["e_tag"], result["version"]

        try:
            return self._client.call(key, swap)
        except _Unconditional:
            return self._settled_swap(key, data, version)

    # Requests

    def _path(self, key: str) -> str:
        path = "/".join(checked_parts(self, key))
        if _CONTROL.search(path):
            raise StoreError(f"{self}: {key!r} has a control character, which the keys of object stores cannot have")
        return path


class _Unconditional(Exception):
    """A store that puts objects without conditions only."""


class _Filling:
    """Buffers that are filled one after the other from the pieces of a stream."""

    def __init__(self, buffers: Iterable[memoryview]) -> None:
        self._buffers = iter(buffers)
        self._rest: memoryview | None = memoryview(b"")
        self.nbytes = 0

    def take(self, data: bytes) -> bool:
        """Put a piece into the buffers, and say whether there was room for all of it."""
        piece = memoryview(data)
        while piece:
            while self._rest is not None and not self._rest:
                self._rest = next(self._buffers, None)
            if self._rest is None:
                return False
            n = min(len(self._rest), len(piece))
            self._rest[:n], self._rest, piece = piece[:n], self._rest[n:], piece[n:]
            self.nbytes += n
        return True

    def finish(self) -> None:
        """Ask for the buffers that are left: who gives them may do something with the last one that was filled."""
        for _ in self._buffers:
            pass
