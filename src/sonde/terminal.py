"""What a person sees: progress and warnings on stderr, tables on stdout."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from .engine import Progress
    from .engine.plan import Plan
    from .probes import Results
    from .store import Store

# Between two lines of progress where stderr is a file: the log of a batch system.
_LINE_SECONDS = 60.0
_SKIPPED_SHOWN = 10
_FILE_COLUMNS = 200


class _Stderr(logging.Handler):
    """Writes to what stderr is at the moment: a progress bar puts itself in between."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what sonde, and no other package, has to say as lines on stderr."""
    logger, handler = logging.getLogger("sonde"), _Stderr()
    level = logger.level
    logger.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter("sonde: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def console(*, stderr: bool = True) -> Console:
    """Make a rich console on stderr, or on stdout."""
    from rich.console import Console

    made = Console(stderr=stderr)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        # A file has no width: what rich takes for one would cut tables up.
        made.width = _FILE_COLUMNS
    return made


@contextmanager
def _bar(*columns: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    where = console()
    with Bar(*shown, *columns, TimeRemainingColumn(), console=where, disable=not where.is_terminal) as bar:
        yield bar


@contextmanager
def extraction_progress(line_seconds: float = _LINE_SECONDS) -> Iterator[Callable[[Progress], None]]:
    """Show samples, rates and the time left while an extraction calls what this gives.

    At a terminal that is a bar; elsewhere a line every ``line_seconds``.
    """
    from rich.progress import TextColumn

    with _bar(TextColumn("{task.fields[rates]}")) as bar:
        task = bar.add_task("extract", total=None, rates="")
        last = time.monotonic()

        def show(progress: Progress) -> None:
            nonlocal last
            rates = _rates(progress)
            bar.update(task, total=progress.total, completed=progress.samples, rates=rates)
            if bar.disable and time.monotonic() - last >= line_seconds:
                last = time.monotonic()
                left = (progress.total - progress.samples) * progress.seconds / max(progress.samples, 1)
                print(
                    f"sonde: {progress.samples} of {progress.total} samples  {rates}  {_duration(left)} left",
                    file=sys.stderr,
                )

        yield show


def _rates(progress: Progress) -> str:
    seconds = max(progress.seconds, 1e-9)
    return (
        f"{progress.samples / seconds:,.1f} samples/s  {progress.tokens / seconds:,.0f} tokens/s  "
        f"{progress.nbytes / seconds / 1e9:.3f} GB/s"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def size(nbytes: float) -> str:
    """Bytes in the unit that shows three digits of them."""
    unit, scale = next((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 0)) if nbytes >= s)
    number = nbytes / (scale or 1e3)
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}{'es' if what.endswith('ch') else 's'}"


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of something (layers, ranges) are done."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_plan(plan: Plan) -> None:
    """Print what an extraction would take."""
    read = f"{plan.samples_read} read to estimate the rest" if plan.samples_read < plan.samples else "all read"
    print(f"samples: {plan.samples} in {_counted(plan.ranges, 'range')} of {plan.range_size} ({read})")
    if plan.unusable:
        print(f"unusable: {plan.unusable} of {plan.samples_read} read, the first: {plan.first_error}")
    print(
        f"tokens: {plan.tokens:,} in {_counted(plan.batches, 'batch')} of at most {plan.token_budget:,} padded tokens"
    )
    shares = plan.sharing == "yes"
    spared = f"; {plan.shared:.1%} of the tokens need not be computed" if shares else ""
    print(f"shared prefixes: {plan.sharing}{spared}")
    print(f"padding: {plan.padding:.1%} of what the model computes")
    print(f"to be written: {size(plan.bytes_written)} before compression")
    device = f", device {size(plan.device_bytes)}" if plan.device_bytes else ""
    print(f"peak memory: host {size(plan.host_bytes)} besides Python and its libraries{device}")
    print(f"time: {_duration(plan.seconds)} at {plan.tokens_per_s:,.0f} tokens/s (a trial of some seconds)")


def print_store(store: Store) -> None:
    """Print what a store holds."""
    facts = store.info()
    ranges = facts["ranges"]
    state = "complete" if store.complete else f"{ranges['committed']} of {ranges['planned']} ranges committed"
    print(f"{facts['store']}: {state}, {facts['bytes'] / 1e6:,.1f} MB")
    print(
        f"model: {facts['model'].get('name')} ({facts['model'].get('weights')} weights, {facts['model'].get('dtype')})"
    )
    skipped = f", {facts['skipped']} skipped" if facts["skipped"] else ""
    print(f"samples: {facts['samples']}{skipped}, {ranges['size']} a range")
    if len(facts["parts"]) > 1:
        print(f"parts: {' + '.join(map(str, facts['parts']))} samples")
    codec = f", {facts['codec']}" if facts["codec"] != "none" else ""
    for name, array in facts["arrays"].items():
        layers = array["layers"]
        rows = "tokens" if store.array(*name.rsplit("/", 1)).ragged else facts["samples"]
        print(f"activations: {name}  [{len(layers)}, {rows}, {array['hidden']}] {array['dtype']}{codec}")
    print(f"labels: {', '.join(f'{name} ({kind})' for name, kind in facts['labels'].items()) or 'none'}")
    if facts["nonfinite"]:
        print(f"non-finite values: {facts['nonfinite']}")
    skipped_rows = sorted(store.skipped.items())
    for row, why in skipped_rows[:_SKIPPED_SHOWN]:
        print(f"skipped row {row}: {why}")
    if len(skipped_rows) > _SKIPPED_SHOWN:
        print(f"and {len(skipped_rows) - _SKIPPED_SHOWN} more: sonde.open(…).skipped has them all")


def print_results(results: Results) -> None:
    """Print best against top layer, a row per curve."""
    from rich.table import Column, Table

    columns = ["site", "tokens", "metric", "best_layer", "best", "top_layer", "top"]
    # Folded where there is no room: names that are cut off may look alike.
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in results.summary().to_dict("records"):
        table.add_row(*(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    out = console(stderr=False)
    out.print(table)
    if results.controls.empty:
        return
    beside = Table(*(Column(name, overflow="fold") for name in ("site", "tokens", "layer", "control", "value")))
    best = results.summary().rename(columns={"best_layer": "layer"})[["solver", "site", "tokens", "layer"]]
    for row in results.controls.merge(best).to_dict("records"):
        pair = " -> ".join(filter(None, (row["trained_on"], row["tested_on"])))
        value = f"{row['metric']} {row['value']:.3f}"
        value += f" [{row['low']:.3f}, {row['high']:.3f}]" if row["low"] == row["low"] else ""
        value += f", p {row['p']:.3g}" if row["p"] == row["p"] else ""
        named = [row["site"], row["tokens"], str(row["layer"]), f"{row['control']} {pair}".strip(), value]
        beside.add_row(*named)
    out.print(beside)
