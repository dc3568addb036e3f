"""Running an iterator ahead of its consumer, on a thread, by a bounded number of items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class _End:
    """Last item of the queue: the iterator is exhausted, or raised."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


@contextmanager
def prefetch(items: Iterable[T], depth: int) -> Iterator[Iterator[T]]:
    """Iterate over ``items`` on a thread: ``depth`` items wait at most, while one more is being made.

    An error of the iterator is raised in the consumer, behind the items before it. Leaving the block ends the thread
    after the item that it is at, and closes the iterator if it is a generator.
    """
    ahead: queue.Queue[T | _End] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        error = None
        try:
            for item in items:
                if not put(item):
                    break
            if isinstance(items, Generator):
                items.close()
        except BaseException as caught:
            error = caught
        put(_End(error))

    def consume() -> Iterator[T]:
        while True:
            item = ahead.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item

    thread = threading.Thread(target=produce, name="sonde-prefetch", daemon=True)
    thread.start()
    try:
        yield consume()
    finally:
        stop.set()
        thread.join()
