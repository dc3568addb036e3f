"""What a person sees: progress and warnings on stderr, tables on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from .engine import Progress
    from .engine.plan import Plan
    from .probes import Results
    from .store import Store


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

    return Console(stderr=stderr)


@contextmanager
def _bar(*columns: Any) -> Iterator[Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    where = console()
    with Bar(*shown, *columns, TimeRemainingColumn(), console=where, disable=not where.is_terminal) as bar:
        yield bar


@contextmanager
def extraction_progress() -> Iterator[Callable[[Progress], None]]:
    """Show samples, rates and the time left while an extraction calls what this gives."""
    from rich.progress import TextColumn

    with _bar(TextColumn("{task.fields[rates]}")) as bar:
        task = bar.add_task("extract", total=None, rates="")

        def show(progress: Progress) -> None:
            seconds = max(progress.seconds, 1e-9)
            rates = (
                f"{progress.samples / seconds:,.1f} samples/s  {progress.tokens / seconds:,.0f} tokens/s  "
                f"{progress.nbytes / seconds / 1e9:.3f} GB/s"
            )
            bar.update(task, total=progress.total, completed=progress.samples, rates=rates)

        yield show


@contextmanager
def counting_progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how many of something (layers, ranges) are done."""
    with _bar() as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_plan(plan: Plan) -> None:
    """Print what an extraction would take."""
    read = f"estimated from {plan.samples_read}" if plan.samples_read < plan.samples else "all read"
    print(f"samples: {plan.samples} in {plan.ranges} ranges of {plan.range_size} ({read})")
    if plan.unusable:
        print(f"unusable: {plan.unusable} of {plan.samples_read} read, the first: {plan.first_error}")
    print(f"tokens: {plan.tokens:,} in {plan.batches:,} batches of at most {plan.token_budget:,} padded tokens")
    print(f"shared prefixes: {plan.sharing}; {plan.shared:.1%} of the tokens need not be computed")
    print(f"padding: {plan.padding:.1%} of what the model computes")
    print(f"to be written: {plan.bytes_written / 1e9:,.3f} GB before compression")
    device = f", device {plan.device_bytes / 1e9:,.2f} GB" if plan.device_bytes else ""
    print(f"peak memory: host {plan.host_bytes / 1e9:,.2f} GB besides Python and its libraries{device}")
    print(f"time: {plan.seconds:,.0f} s at {plan.tokens_per_s:,.0f} tokens/s (a trial of some seconds)")


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
    for row, why in list(store.skipped.items())[:10]:
        print(f"skipped row {row}: {why}")


def print_results(results: Results) -> None:
    """Print best against top layer, a row per curve."""
    from rich.table import Table

    columns = ["site", "tokens", "metric", "best_layer", "best", "top_layer", "top"]
    table = Table(*columns)
    for row in results.summary().to_dict("records"):
        table.add_row(*(f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in columns))
    console(stderr=False).print(table)
