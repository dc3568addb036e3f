"""When each stage of an extraction was at work, for a trace viewer."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Trace:
    """Spans of the stages, from all threads of this process; they stand in a profile of torch's profiler as well.

    Parameters
    ----------
    enabled
        Off, spans cost next to nothing and are not kept; what they take is added up all the same.

    Attributes
    ----------
    seconds
        By stage, how long it was at work, in all threads of this process together.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._adding = threading.Lock()
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter_ns()
        self._spans: list[dict[str, Any]] = []

    @contextmanager
    def span(self, name: str, **details: Any) -> Iterator[None]:
        """Note when the block began and how long it took; ``details`` are shown with it."""
        start = time.perf_counter_ns()
        if not self._enabled:
            try:
                yield
            finally:
                self._add_up(name, start, time.perf_counter_ns())
            return
        from torch.profiler import record_function

        try:
            with record_function(f"sonde: {name}"):
                yield
        finally:
            thread = (os.getpid(), threading.get_native_id(), threading.current_thread().name)
            self._keep(name, start, time.perf_counter_ns(), thread, details)

    def add(self, name: str, start: int, end: int, pid: int, **details: Any) -> None:
        """Note what a process of one thread did, by its ``time.perf_counter_ns``, which all of a machine have alike."""
        if self._enabled:
            self._keep(name, start, end, (pid, pid, f"sonde-encoder-{pid}"), details)
        else:
            self._add_up(name, start, end)

    def _keep(self, name: str, start: int, end: int, thread: tuple[int, int, str], details: dict[str, Any]) -> None:
        self._add_up(name, start, end)
        pid, tid, called = thread
        self._spans.append(
            {
                "name": name,
                "ph": "X",
                "ts": (start - self._start) / 1e3,
                "dur": (end - start) / 1e3,
                "pid": pid,
                "tid": tid,
                "args": details | {"thread": called},
            }
        )

    def _add_up(self, name: str, start: int, end: int) -> None:
        with self._adding:
            self.seconds[name] = self.seconds.get(name, 0.0) + (end - start) / 1e9

    def save(self, path: str | Path) -> None:
        """Write the spans in the Trace Event Format (Perfetto, chrome://tracing); times in microseconds."""
        threads = {(span["pid"], span["tid"]): span["args"]["thread"] for span in self._spans}
        names = [
            {"name": "thread_name", "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
            for (pid, tid), name in threads.items()
        ]
        content = {"traceEvents": [*names, *sorted(self._spans, key=lambda span: span["ts"])], "displayTimeUnit": "ms"}
        Path(path).write_text(json.dumps(content), encoding="utf-8")
