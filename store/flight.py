"""Several reads in flight, in order, with bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT = 4


def in_flight(read: Callable[[T], R], places: Sequence[T], limit: int = IN_FLIGHT) -> Iterator[R]:
    """Map ``read`` over ``places`` on threads and yield the results in order, at most ``limit`` ahead of the caller."""
    if len(places) < 2:
        yield from map(read, places)
        return
    with ThreadPoolExecutor(min(limit, len(places)), "sonde-read") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for place in places:
                if len(pending) == limit:
                    yield pending.popleft().result()
                pending.append(pool.submit(read, place))
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
