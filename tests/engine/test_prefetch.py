"""An iterator that runs ahead of its consumer."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from sonde.engine.prefetch import prefetch


def wait_until(condition: Callable[[], bool]) -> bool:
    for _ in range(500):
        if condition():
            return True
        time.sleep(0.01)
    return False


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sonde-prefetch"]


def test_items_come_in_order_and_from_another_thread() -> None:
    seen = []

    def items() -> Iterator[int]:
        for i in range(100):
            seen.append(threading.current_thread().name)
            yield i

    with prefetch(items(), 3) as ahead:
        assert list(ahead) == list(range(100))
    assert set(seen) == {"sonde-prefetch"}


@pytest.mark.parametrize("depth", [1, 4])
def test_it_runs_ahead_by_a_bounded_number_of_items(depth: int) -> None:
    made = []

    def items() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    with prefetch(items(), depth) as ahead:
        for taken in range(1, 20):
            assert next(ahead) == taken - 1
            assert wait_until(lambda taken=taken: len(made) == taken + depth + 1), "it does run ahead"
            time.sleep(0.01)
            assert len(made) <= taken + depth + 1


def test_an_error_comes_behind_the_items_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(3)
        raise KeyError("broken")

    with prefetch(items(), 8) as ahead:
        time.sleep(0.05)
        assert [next(ahead), next(ahead), next(ahead)] == [0, 1, 2]
        with pytest.raises(KeyError, match="broken"):
            next(ahead)


def test_leaving_early_ends_the_thread_and_closes_the_generator() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    source = items()
    with prefetch(source, 2) as ahead:
        assert next(ahead) == 0
        assert threads()
    assert not threads()
    assert closed.is_set()


def test_an_error_of_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        with prefetch(iter(range(10**9)), 2) as ahead:
            next(ahead)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    assert not threads()


def test_any_iterable_will_do() -> None:
    with prefetch([1, 2], 1) as ahead:
        assert list(ahead) == [1, 2]
        assert list(ahead) == []
