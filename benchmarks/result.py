"""Timing in turns, and what a benchmark prints."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Owed:
    """A promise: ``value`` must be at least ``bound``, or at most."""

    name: str
    value: float
    bound: float
    at_most: bool = False

    @property
    def holds(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.bound if self.at_most else self.value >= self.bound


def interleave(
    contestants: Mapping[str, Callable[[], object]], rounds: int, *, before: Callable[[str], object] = lambda name: None
) -> dict[str, float]:
    """Run all contestants in turns and return each one's median seconds; a first round warms up and does not count.

    ``before`` is called with a contestant's name before each of its runs, and is not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for counted in [False] + [True] * rounds:
        for name, run in contestants.items():
            before(name)
            start = time.perf_counter()
            run()
            if counted:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def launch(
    doc: str | None,
    main: Callable[[Path, str], None],
    sizes: Mapping[str, str],
    *,
    parents: Sequence[argparse.ArgumentParser] = (),
) -> None:
    """Read the command line and run a benchmark.

    Parameters
    ----------
    doc
        What ``--help`` says.
    main
        Called with an empty folder and the size: one of ``sizes``, or ``full``.
    sizes
        Name of each smaller size, an option ``--name``, and what it is for.
    parents
        Parsers of further options, which the caller reads.
    """
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=form, parents=parents)
    smaller = parser.add_mutually_exclusive_group()
    for name, help_ in sizes.items():
        smaller.add_argument(f"--{name}", dest="size", action="store_const", const=name, help=help_)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder if left out")
    parser.set_defaults(size="full")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        main(Path(place), arguments.size)


def conclude(
    benchmark: str,
    results: Sequence[Mapping[str, Any]],
    owed: Sequence[Owed],
    *,
    peers: Sequence[str] = (),
    elsewhere: Mapping[str, Mapping[str, str]] | None = None,
    hardware: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Print the table, the promises, and the line of JSON.

    Parameters
    ----------
    peers
        Distributions whose versions are told besides those that sonde tells of itself.
    elsewhere
        By peer, versions of what it ran with in another process.
    hardware
        What else of the machine matters here.
    columns
        Those of the table; all that the results have, if left out.
    """
    # A stage that runs in a process of its own needs the rest of this module, not the store.
    from sonde.store import versions

    columns = columns or list(dict.fromkeys(key for row in results for key in row))
    rows = [[_text(row.get(column, "")) for column in columns] for row in results]
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in [columns, *rows]:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    for promise in owed:
        bound = f"{'at most' if promise.at_most else 'at least'} {promise.bound:g}"
        print(f"owed {promise.name}: {promise.value:.2f} of {bound}, {'holds' if promise.holds else 'MISSED'}")
    summary = {
        "benchmark": benchmark,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.system(), **(hardware or {})},
        "versions": versions() | {name: importlib.metadata.version(name) for name in peers} | dict(elsewhere or {}),
        "results": list(results),
        "owed": [{"name": o.name, "value": o.value, "bound": o.bound, "holds": o.holds} for o in owed],
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
