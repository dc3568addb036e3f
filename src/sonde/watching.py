"""A run that is watched: its callbacks are told together, and of its end whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from .callbacks import Callback
from .progress import ProgressBar


@dataclass(frozen=True, slots=True)
class Watch:
    """Those who watch a run, told together."""

    callbacks: tuple[Callback, ...]

    def on_progress(self, done: int, total: int, measures: Mapping[str, float] | None = None) -> None:
        """Tell all of `Callback.on_progress`."""
        for callback in self.callbacks:
            callback.on_progress(done, total, measures or {})

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        """Tell all of `Callback.on_result`."""
        for callback in self.callbacks:
            callback.on_result(step, scores)


@contextmanager
def watched(callbacks: Sequence[Callback] | None, facts: Mapping[str, Any]) -> Iterator[Watch]:
    """Tell of a run's start, and of its end whatever happens.

    Parameters
    ----------
    callbacks
        Who is told; None: a progress bar, where somebody looks at a terminal or a notebook.
    facts
        What `Callback.on_start` is told.
    """
    callbacks = [ProgressBar()] if callbacks is None else callbacks
    with ExitStack() as stack:
        for callback in callbacks:
            callback.on_start(facts)
            stack.push(_end_of(callback))
        yield Watch(tuple(callbacks))


def _end_of(
    callback: Callback,
) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    return lambda kind, error, trace: callback.on_end(error)
