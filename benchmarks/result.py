"""Timing in turns, and what a benchmark prints."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sonde.store import versions


@dataclass(frozen=True, slots=True)
class Owed:
    """A promise: ``value`` must be at least ``bound``."""

    name: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.value >= self.bound


def interleave(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run all contestants in turns and return each one's median seconds; a first round warms up and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in [False] + [True] * rounds:
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def conclude(benchmark: str, results: Sequence[Mapping[str, Any]], owed: Sequence[Owed]) -> None:
    """Print the table, the promises, and the line of JSON."""
    columns = list(dict.fromkeys(key for row in results for key in row))
    rows = [[_text(row.get(column, "")) for column in columns] for row in results]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for promise in owed:
        print(
            f"owed {promise.name}: {promise.value:.2f} of {promise.bound:g}, {'holds' if promise.holds else 'MISSED'}"
        )
    summary = {
        "benchmark": benchmark,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": versions(),
        "results": list(results),
        "owed": [asdict(promise) | {"holds": promise.holds} for promise in owed],
    }
    print(json.dumps(summary))


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _cpu() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or platform.machine()
