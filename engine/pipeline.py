"""From samples to batches, range by range, with bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from sonde.errors import InputError
from sonde.store import Range

from .batches import Batch, plan_batches
from .encoded import Encoded
from .packs import Pack, plan_packs
from .picture import whereabouts
from .preparing import preparing
from .sample import Dataset, Sample
from .session import Session
from .trace import Trace

# Prepared samples (pixels, above all) of one window; batches are planned inside a window.
WINDOW_BYTES = 256 * 2**20
_AT_ONCE = 64


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Sequences of a range to be run together, and the batch that they make."""

    range: Range
    packs: Sequence[Pack]
    batch: Batch


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a range: all its work has been given out; ``skipped`` says by row why a sample has none."""

    range: Range
    skipped: dict[int, str]


def work_of(
    ranges: Sequence[Range],
    dataset: Dataset,
    first: int,
    session: Session,
    token_budget: int,
    *,
    fail: bool,
    encoders: int = 0,
    trace: Trace | None = None,
) -> Iterator[Work | Finished]:
    """Prepare samples, in processes or on threads, and give them out in batches of similar length.

    The data set's first sample is sample ``first`` of the store. The batches depend on the samples and the token budget
    alone, so a range that is done again gets the same ones.

    Raises
    ------
    InputError
        For the first sample that cannot be prepared, if ``fail`` is set.
    WorkerError
        If a process that prepares samples dies.
    """
    trace = trace or Trace(enabled=False)
    with preparing(session.encoder, encoders, trace) as prepare:
        for range_ in ranges:
            skipped: dict[int, str] = {}
            window: list[Encoded] = []
            for rows in _some(by_images(range(range_.start, range_.stop), dataset.samples, first)):
                groups = [(group, [dataset.samples[row - first] for row in group]) for group in rows]
                for group, results in zip(rows, prepare(groups), strict=True):
                    for row, result in zip(group, results, strict=True):
                        if isinstance(result, Encoded):
                            window.append(result)
                        elif fail:
                            raise InputError(f'{result}; run.on_error = "skip" passes over such samples') from result
                        else:
                            skipped[row] = str(result)
                if _nbytes(window) >= WINDOW_BYTES:
                    yield from _batches(range_, window, session, token_budget, trace)
                    window = []
            yield from _batches(range_, window, session, token_budget, trace)
            yield Finished(range_, skipped)


def by_images(rows: Sequence[int], samples: Sequence[Sample], first: int) -> Iterator[list[int]]:
    """Part rows where the images of their samples change; one by one where there are none."""

    def images(row: int) -> Hashable:
        return tuple(map(whereabouts, samples[row - first].images)) or row

    for _, group in itertools.groupby(rows, key=images):
        yield list(group)


def _some(groups: Iterator[list[int]]) -> Iterator[list[list[int]]]:
    """Groups together that have ``_AT_ONCE`` samples or more."""
    together: list[list[int]] = []
    for group in groups:
        together.append(group)
        if sum(map(len, together)) >= _AT_ONCE:
            yield together
            together = []
    if together:
        yield together


def _nbytes(window: Sequence[Encoded]) -> int:
    """Host memory of prepared samples; what several share counts once."""
    tensors = {id(x): x.nbytes for sample in window for x in (*sample.sequence.values(), *sample.other.values())}
    return sum(tensors.values())


def _batches(
    range_: Range, window: Sequence[Encoded], session: Session, token_budget: int, trace: Trace
) -> Iterator[Work]:
    kinds: dict[tuple[Hashable, ...], list[Encoded]] = {}
    for sample in window:
        kinds.setdefault(sample.kind, []).append(sample)
    for samples in kinds.values():
        packs = plan_packs(samples, session.sharing, token_budget)
        for places in plan_batches([pack.length for pack in packs], token_budget):
            together = [packs[i] for i in places]
            with trace.span("collate", sequences=len(together)):
                batch = session.collate(together)
            yield Work(range_, together, batch)
