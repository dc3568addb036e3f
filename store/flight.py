"""Several reads in flight, with bounded memory."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_flight(read: Callable[[T], R], places: Sequence[T], limit: int) -> Iterator[R]:
    """Map ``read`` over ``places`` on threads and yield the results in order, at most ``limit`` ahead of the caller."""
    if len(places) < 2:
        yield from map(read, places)
        return
    with ThreadPoolExecutor(min(limit, len(places)), "sonde-read") as pool:
        pending: deque[tuple[T, Future[R]]] = deque()

        def first() -> R:
            place, future = pending.popleft()
            # Where threads have not come to it, the cores are busy: to wait for one would cost more than to read.
            return read(place) if future.cancel() else future.result()

        try:
            for place in places:
                if len(pending) == limit:
                    yield first()
                pending.append((place, pool.submit(read, place)))
            while pending:
                yield first()
        finally:
            for _, future in pending:
                future.cancel()


def share(work: Callable[[Iterator[T]], object], places: Sequence[T], limit: int) -> None:
    """Let threads, the caller's among them, draw from one iterator over ``places``, in no order, until none is left.

    Cheaper than `in_flight` where the results need not be waited for one by one: a read from the page cache takes no
    longer than to hand it to another thread.

    Parameters
    ----------
    work
        Called once on each of at most ``limit`` threads, with the iterator; its first error ends the iteration for
        all and is raised.
    """
    left = deque(places)
    errors: list[BaseException] = []

    def draw() -> Iterator[T]:
        with contextlib.suppress(IndexError):
            while not errors:
                yield left.popleft()

    def run() -> None:
        try:
            work(draw())
        except BaseException as error:
            errors.append(error)

    threads = [Thread(target=run, name="sonde-read") for _ in range(min(limit, len(places)) - 1)]
    for thread in threads:
        thread.start()
    run()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
