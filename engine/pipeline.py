"""From samples to batches, range by range, with bounded memory."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sonde.errors import InputError
from sonde.store import Range

from .batches import plan_batches
from .inputs import Encoded, Encoder
from .sample import Dataset

# Prepared samples (pixels, above all) of one window; batches are planned inside a window.
WINDOW_BYTES = 256 * 2**20
_CHUNK = 64


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Samples of a range to be run together."""

    range: Range
    samples: Sequence[Encoded]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a range: all its work has been given out; ``skipped`` says by row why a sample has none."""

    range: Range
    skipped: dict[int, str]


def work_of(
    ranges: Sequence[Range], dataset: Dataset, first: int, encoder: Encoder, token_budget: int, *, fail: bool
) -> Iterator[Work | Finished]:
    """Prepare samples on threads and give them out in batches of similar length.

    The data set's first sample is sample ``first`` of the store. The batches depend on the samples and the token budget
    alone, so a range that is done again gets the same ones.

    Raises
    ------
    InputError
        For the first sample that cannot be prepared, if ``fail`` is set.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "sonde-encode") as pool:
        for range_ in ranges:
            skipped: dict[int, str] = {}
            window: list[Encoded] = []

            def encode(row: int) -> Encoded | InputError:
                try:
                    return encoder(row, dataset.samples[row - first])
                except InputError as error:
                    return error

            for start in range(range_.start, range_.stop, _CHUNK):
                rows = range(start, min(start + _CHUNK, range_.stop))
                for row, result in zip(rows, pool.map(encode, rows), strict=True):
                    if isinstance(result, Encoded):
                        window.append(result)
                    elif fail:
                        raise result
                    else:
                        skipped[row] = str(result)
                if sum(sample.nbytes for sample in window) >= WINDOW_BYTES:
                    yield from _batches(range_, window, token_budget)
                    window = []
            yield from _batches(range_, window, token_budget)
            yield Finished(range_, skipped)


def _batches(range_: Range, window: Sequence[Encoded], token_budget: int) -> Iterator[Work]:
    kinds: dict[tuple[Hashable, ...], list[Encoded]] = {}
    for sample in window:
        kinds.setdefault(sample.kind, []).append(sample)
    for samples in kinds.values():
        for batch in plan_batches([sample.length for sample in samples], token_budget):
            yield Work(range_, [samples[i] for i in batch])
