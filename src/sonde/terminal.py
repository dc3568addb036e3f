"""What a person sees besides progress: warnings on stderr, tables on stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .progress import ProgressBar, console, duration

if TYPE_CHECKING:
    from .engine.plan import Plan
    from .probes import Results
    from .store import Store

# Between two lines of progress where stderr is a file: the log of a batch system.
_LINE_SECONDS = 60.0
_SKIPPED_SHOWN = 10


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


def progress_bar() -> ProgressBar:
    """Show how a command's run goes, in the log of a batch system too."""
    return ProgressBar(_LINE_SECONDS)


def size(nbytes: float) -> str:
    """Bytes in the unit that shows three digits of them."""
    unit, scale = next((u, s) for u, s in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 0)) if nbytes >= s)
    number = nbytes / (scale or 1e3)
    return f"{number:,.{0 if number >= 100 else 1 if number >= 10 else 2}f} {unit}"


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}{'es' if what.endswith('ch') else 's'}"


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
    print(f"time: {duration(plan.seconds)} at {plan.tokens_per_s:,.0f} tokens/s (a trial of some seconds)")


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
