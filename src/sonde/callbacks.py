"""Who watches a run: is told that it starts, how far it is, what came of it, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Callback:
    """What an extraction, a probing run or a copy tells of itself.

    Inherit from it and define what is of interest: the rest does nothing. All is called in the thread that started the
    run. What a callback raises ends the run as Ctrl-C does; what is committed stays.
    """

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Learn what begins, in values of JSON.

        ``run`` is ``extract``, ``probe`` or ``copy``, ``unit`` what it counts (``samples``, ``layers``, ``ranges``),
        ``store`` where the store is. An extraction adds model, configuration, versions, host and device; a probing run
        labels, solver, penalties, seed, split and ``out``.
        """

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Learn how far it is.

        Parameters
        ----------
        done, total
            Of the unit. Of an extraction those of this run, not those that an earlier one had committed.
        measures
            Of an extraction, so far: ``tokens`` without padding, ``ranges`` and ``bytes`` committed, samples
            ``skipped``, ``seconds`` since the first batch, and the ``token_budget`` of a batch. Else nothing.
        """

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        """Learn what came of it.

        Of a probing run once for every layer, in ascending order: ``step`` is the layer, and scores of all targets
        together are called ``site/tokens/metric/split``. Of an extraction once: ``step`` is the number of samples in
        the store, with ``skipped``, ``nonfinite`` (values) and ``bytes`` of it.
        """

    def on_end(self, error: BaseException | None) -> None:
        """Learn that it is over, and which error ended it, if one did."""


@dataclass(frozen=True, slots=True)
class OnProgress(Callback):
    """A function in the place of a callback, called with what `Callback.on_progress` is.

    Attributes
    ----------
    function
        Called with (done, total, measures).
    """

    function: Callable[[int, int, Mapping[str, float]], None]

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Call the function."""
        self.function(done, total, measures)
