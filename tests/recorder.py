"""A callback that keeps all that it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sonde.callbacks import Callback


@dataclass(slots=True)
class Recorder(Callback):
    """Facts of starts, (done, total, measures), (step, scores), and errors or None of ends; names of calls in order."""

    started: list[Mapping[str, Any]] = field(default_factory=list)
    progress: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)
    results: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    ended: list[BaseException | None] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def on_start(self, facts: Mapping[str, Any]) -> None:
        self.calls.append("start")
        self.started.append(facts)

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        self.calls.append("progress")
        self.progress.append((done, total, measures))

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        self.calls.append("result")
        self.results.append((step, scores))

    def on_end(self, error: BaseException | None) -> None:
        self.calls.append("end")
        self.ended.append(error)
