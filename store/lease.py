"""One writer at a time where no system call says so: a lease, an object that its holder renews while it writes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import ClassVar

from sonde.errors import StoreError

from .location import Location

LEASE_SECONDS = 60.0
"""How long a lease lives unless it is renewed, which its holder does every third of that."""

SETTLE_SECONDS = 1.0
"""How long a write takes at most to be seen by others, where a store cannot compare and swap."""

_LEASE, _PROBE = ".lease.json", ".lease.probe"
# Stores tell the time in whole seconds.
_RESOLUTION = 1.0
# What a record may claim: one that is damaged or forged must not hold a store for ever.
_LONGEST = 3600.0
# Counts the time that the machine sleeps, where the system has such a clock.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


Version = tuple[str | None, str | None]
"""What tells versions of an object apart, as the store gave it; only it can read that."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """An object, the version of it that was read, and when the store says it was written (seconds), if it says."""

    data: bytes
    version: Version
    modified: float | None


@dataclass(frozen=True, slots=True)
class _Record:
    """What a lease says: who holds it since when, for how many seconds from its last renewal at ``renewed``."""

    token: str
    host: str
    pid: int
    since: float
    renewed: float
    seconds: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Record:
        try:
            record = json.loads(data)
            since, renewed, seconds = (float(record[name]) for name in ("since", "renewed", "seconds"))
            datetime.fromtimestamp(since)
            return cls(str(record["token"]), str(record["host"]), int(record["pid"]), since, renewed, seconds)
        except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
            return cls("", "an unknown host", 0, 0.0, 0.0, LEASE_SECONDS)


class LeasedLocation(Location):
    """A location that several machines reach, held for writing by a lease, the hidden object ``.lease.json``.

    A holder renews its lease from a thread. A lease that nobody renewed for its stated life, by the clock of the store
    that keeps it, may be taken over. A holder that lost its lease, or that could not renew it in time, finds out at its
    next write: every location of this process with the same URL refuses to write while it is held. A write that was
    under way when the lease was lost may still arrive; it cannot tear anything, as objects appear whole, and ranges of
    the same data have the same bytes whoever writes them.

    Parameters
    ----------
    lease_seconds
        Life of a lease.
    settle_seconds
        Where the store cannot compare and swap, a lease is written, and counts as held if it is still there after this
        time; two writers that come within a shorter time than the store needs to show a write could both succeed.
    """

    _held: ClassVar[dict[str, _Lease]] = {}

    def __init__(self, *, lease_seconds: float = LEASE_SECONDS, settle_seconds: float = SETTLE_SECONDS) -> None:
        self.lease_seconds = lease_seconds
        self.settle_seconds = settle_seconds
        self._lease: _Lease | None = None

    @abstractmethod
    def _load(self, key: str) -> Versioned | None:
        """Read an object and its version, if it is there."""

    @abstractmethod
    def _put(self, key: str, data: bytes) -> None:
        """Put an object, lease or not."""

    @abstractmethod
    def _drop(self, key: str) -> None:
        """Remove an object if it is there, lease or not."""

    @abstractmethod
    def _swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """Put an object in place of this version of it, or of none, and return its new version.

        Raises
        ------
        FileExistsError
            If another version, or any, is there.
        """

    def _settled_swap(self, key: str, data: bytes, version: Version | None) -> Version:
        """`_swap` of a store that has none: look, write, wait, look again."""
        there = self._load(key)
        if (there and there.version) != version:
            raise FileExistsError(key)
        self._put(key, data)
        time.sleep(self.settle_seconds)
        there = self._load(key)
        if there is None or there.data != data:
            raise FileExistsError(key)
        return there.version

    def _ensure_held(self) -> None:
        """Raise StoreError if this process held the lease of this location and has lost it."""
        lease = self._lease or self._held.get(str(self))
        if lease is not None:
            lease.check()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for writing; a holder that vanishes is followed by the next when its lease has run out."""
        lease = _Lease(self)
        lease.take()
        outer = self._held.get(str(self))
        self._lease = self._held[str(self)] = lease
        try:
            with lease.renewed():
                yield
        finally:
            self._lease = None
            if outer is None:
                self._held.pop(str(self), None)
            else:
                self._held[str(self)] = outer


class _Lease:
    """The holder's side of one lease."""

    def __init__(self, location: LeasedLocation) -> None:
        self._location = location
        self._swap = location._swap
        self._seconds = location.lease_seconds
        self._token = secrets.token_hex(16)
        self._pid = os.getpid()
        self._since = time.time()
        self._version: Version | None = None
        self._expires = 0.0
        self._lost = False
        self._stop = threading.Event()
        self._mutex = threading.Lock()

    def take(self) -> None:
        """Create the lease, or take over one that has run out.

        Raises
        ------
        StoreError
            If another holds it.
        """
        there = self._location._load(_LEASE)
        if there is not None:
            record = _Record.decode(there.data)
            left = min(record.seconds, _LONGEST) + _RESOLUTION - self._age(there, record)
            if left > 0:
                raise self._refusal(record, left)
        try:
            self._write(there.version if there else None)
            if not self._is_exclusive():
                self._swap = self._location._settled_swap
                self._settle()
        except FileExistsError:
            winner = self._location._load(_LEASE)
            record = _Record.decode(winner.data if winner else b"")
            # The answer to the write that created it may have been lost, and the write repeated.
            if winner is None or record.token != self._token:
                raise self._refusal(record, min(record.seconds, _LONGEST) + _RESOLUTION) from None
            self._version = winner.version

    @contextlib.contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the lease in the background, and give it back in the end."""
        thread = threading.Thread(target=self._keep, name=f"lease of {self._location}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            # A forked child leaves this block too; the lease is its parent's.
            if os.getpid() == self._pid:
                self._stop.set()
                self._give_back()

    def check(self) -> None:
        """Raise StoreError if the lease is not ours any more, or may not be."""
        if os.getpid() != self._pid:
            return
        if self._lost or time.clock_gettime(_CLOCK) > self._expires:
            why = "another process has taken over" if self._lost else "its lease could not be renewed in time"
            raise StoreError(
                f"{self._location}: this process may not write to the store any more: {why}; "
                "what it committed is kept; see that no other process writes to it, then run the command again"
            )

    def _keep(self) -> None:
        while not self._stop.wait(self._seconds / 3):
            with self._mutex:
                if self._stop.is_set():
                    return
                try:
                    self._write(self._version)
                except FileExistsError:
                    self._lost = not self._recognise()
                # A network that fails is given until the lease runs out, which `check` sees.
                except (OSError, StoreError):
                    continue
            if self._lost:
                return

    def _recognise(self) -> bool:
        """Whether what is in the place is ours: a renewal that was repeated as its first answer was lost."""
        with contextlib.suppress(OSError, StoreError):
            there = self._location._load(_LEASE)
            if there is None or _Record.decode(there.data).token != self._token:
                return False
            self._version = there.version
        return True

    def _give_back(self) -> None:
        # The thread may hang in a request; what it may leave behind then runs out by itself.
        if not self._mutex.acquire(timeout=self._seconds / 3):
            return
        try:
            with contextlib.suppress(OSError, StoreError):
                there = self._location._load(_LEASE)
                if there is not None and _Record.decode(there.data).token == self._token:
                    self._location._drop(_LEASE)
        finally:
            self._mutex.release()

    def _write(self, version: Version | None) -> None:
        """Write the lease over this version and count its life from before that."""
        record = _Record(self._token, socket.gethostname(), self._pid, self._since, time.time(), self._seconds)
        start = time.clock_gettime(_CLOCK)
        self._version = self._swap(_LEASE, record.encode(), version)
        self._expires = start + self._seconds

    def _is_exclusive(self) -> bool:
        """Whether the store refuses to create what is there; some ignore the condition and report success."""
        try:
            self._write(None)
        except FileExistsError:
            return True
        return False

    def _settle(self) -> None:
        time.sleep(self._location.settle_seconds)
        if not self._recognise():
            raise FileExistsError(_LEASE)

    def _age(self, there: Versioned, record: _Record) -> float:
        """Seconds since a lease was renewed, by the store's clock, or by ours and its writer's if it has none."""
        if there.modified is None:
            return time.time() - record.renewed
        # The name is one's own: a probe that another removes would tell nothing.
        probe = f"{_PROBE}.{self._token}"
        self._location._put(probe, b"\0")
        try:
            now = self._location._load(probe)
        finally:
            self._location._drop(probe)
        return (now.modified if now and now.modified is not None else time.time()) - there.modified

    def _refusal(self, record: _Record, left: float) -> StoreError:
        def local(seconds: float) -> str:
            return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")

        return StoreError(
            f"{self._location}: another process is writing to this store: process {record.pid} on {record.host}, since "
            f"{local(record.since)}; wait for it or stop it; if it is gone, the store can be taken over from "
            f"{local(time.time() + left)} on"
        )


def is_lease(key: str) -> bool:
    """Whether a key is the lease's own and no part of the store."""
    return key == _LEASE or key.startswith(_PROBE)
