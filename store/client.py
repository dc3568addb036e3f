"""Requests to an object store that are made again until they succeed, fail for good, or took too long."""

from __future__ import annotations

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from sonde.errors import StoreError

from .buckets import Bucket

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
"""How long a server may be silent, or take for one upload, until the request is made again."""

LIMIT_SECONDS = 300.0
"""How long one operation is tried, reading one object or writing one, say."""

# A server that never answered is more likely a mistyped name than a network that will come back.
_FIRST_CONTACT_SECONDS = 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_STATUS = re.compile(r"status code: (\d{3})")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|specified bucket does not exist")
# Refusals by their number that are none: the server lost patience, or has too many to serve.
_PASSING = (408, 425, 429)


class Client:
    """A way to one bucket; made at first use.

    Failures that may pass, a status of 5xx or 429, a time-out, a connection that breaks, are answered by trying again,
    with growing pauses, until ``limit`` seconds are over. May be used from several threads.

    Parameters
    ----------
    bucket
        Where to.
    timeout
        Seconds a server may be silent, or take for one upload.
    limit
        Seconds one operation is tried, and any one request may take: it fails after twice as long at the latest.
    store
        obstore's client, in place of the one made from the environment.
    """

    # The process whose threads carry the requests.
    _user: ClassVar[int | None] = None

    def __init__(self, bucket: Bucket, *, timeout: float, limit: float, store: ObjectStore | None = None) -> None:
        self.bucket = bucket
        self.timeout = timeout
        self.limit = limit
        self._store = store
        self._signed = True
        self._reached = False

    def _connected(self) -> ObjectStore:
        if Client._user not in (None, os.getpid()):
            raise StoreError(
                f"{self.bucket}: a process that was forked cannot use an object store that its parent has used; start "
                "workers by 'spawn' or 'forkserver' (torch: DataLoader(multiprocessing_context='spawn'))"
            )
        Client._user = os.getpid()
        if self._store is None:
            self._store, self._signed = self.bucket.connect(timeout=self.timeout, limit=self.limit)
        return self._store

    def call(self, key: str, request: Callable[[ObjectStore], T]) -> T:
        """Return what ``request`` does with obstore's client; it may be called several times.

        Raises
        ------
        FileNotFoundError
            If there is no such object.
        StoreError
            If there is no such bucket, or this process cannot reach one.
        PermissionError
            If the store refuses, naming what credentials it takes.
        TimeoutError, ConnectionError, OSError
            If there is no success within the limit, or the store refuses for another reason.
        """
        from obstore.exceptions import BaseError

        store = self._connected()
        start, pause = time.monotonic(), _FIRST_PAUSE
        while True:
            try:
                result = request(store)
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise self._no_bucket() from error
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.bucket}/{key}") from None
            except BaseError as error:
                final = self._final(error, key)
                if final is not None:
                    raise final from error
                text = str(error)
                limit = self.limit
                if "kind: Connect" in text and not self._reached:
                    limit = min(limit, _FIRST_CONTACT_SECONDS)
                if time.monotonic() + pause - start > limit:
                    timed_out = "TimedOut" in text or "kind: Timeout" in text
                    kind = TimeoutError if timed_out else ConnectionError
                    raise kind(
                        f"{self.bucket}/{key}: no success within {limit:g} seconds: {_cause(error)}; check the network "
                        "and the endpoint and run the command again: what was committed is kept"
                    ) from error
            else:
                self._reached = True
                return result
            # Clients that failed together should not come back together.
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _final(self, error: Exception, key: str) -> Exception | None:
        """What to raise for a failure that will not pass, None for one that may."""
        from obstore import exceptions

        text, status = str(error), status_of(error)
        if _NO_BUCKET.search(text):
            return self._no_bucket()
        unauthorized = exceptions.PermissionDeniedError | exceptions.UnauthenticatedError
        if isinstance(error, unauthorized) or status in (401, 403):
            why = "these credentials may not" if self._signed else "without credentials nobody may"
            return PermissionError(
                f"{self.bucket}/{key}: the store refuses: {why} do this; set {self.bucket.remedy} ({_cause(error)})"
            )
        if "Received redirect" in text:
            return OSError(
                f"{self.bucket}: the bucket is in another region; set AWS_REGION to its own ({_cause(error)})"
            )
        if "HTTP error: builder error" in text:
            return OSError(f"{self.bucket}: the endpoint is no URL; set AWS_ENDPOINT_URL to one like https://host:port")
        passing = status is None or status in _PASSING or "RequestTimeout" in text or (status >= 500 and status != 501)
        if not passing or not isinstance(error, exceptions.GenericError):
            return OSError(f"{self.bucket}/{key}: the store refuses: {_cause(error)}")
        return None

    def _no_bucket(self) -> StoreError:
        return StoreError(f"{self.bucket}: there is no bucket {self.bucket.name!r}; create it or correct the URL")


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of obstore tells of, if any."""
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _cause(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
