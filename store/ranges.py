"""Ranges: consecutive samples that fill exactly one chunk of every array."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sonde.errors import InputError

MAX_CHUNK_BYTES = 16 * 2**20
MAX_RANGE_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Range:
    """Samples ``start`` to ``stop`` (exclusive): the unit of work, commit, resume and distribution."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def name(self) -> str:
        """Name of the commit record, ``00000012``."""
        return f"{self.index:08d}"

    @property
    def rows(self) -> slice:
        """The samples of this range."""
        return slice(self.start, self.stop)


def plan_range_size(n_samples: int, row_bytes: Iterable[int]) -> int:
    """Choose how many samples fill a chunk.

    Parameters
    ----------
    n_samples
        Samples in the store.
    row_bytes
        Bytes of one row (``hidden * itemsize``) of each array; one number of rows serves them all.

    Returns
    -------
    int
        At most 1,024 (a crash costs one range), at most 16 MiB a chunk, and such that the ranges are of equal
        length to one row, so that the padding of the last chunk wastes no disk.
    """
    limit = max(1, min(MAX_RANGE_SIZE, MAX_CHUNK_BYTES // max(row_bytes, default=1)))
    n_ranges = max(1, -(-n_samples // limit))
    return max(1, -(-n_samples // n_ranges))


def plan_ranges(n_samples: int | Sequence[int], range_size: int) -> tuple[Range, ...]:
    """Cut samples into ranges of ``range_size``.

    Parameters
    ----------
    n_samples
        Samples of the store, or of each of its parts: every part begins a new range, so that what was appended never
        touches a chunk that was there. The last range of a part may be shorter.
    range_size
        Samples that fill a chunk.
    """
    if range_size < 1:
        raise InputError(f"range_size must be at least 1, got {range_size}")
    ranges: list[Range] = []
    end = 0
    for size in [n_samples] if isinstance(n_samples, int) else n_samples:
        start, end = end, end + size
        for first in range(start, end, range_size):
            ranges.append(Range(len(ranges), first, min(first + range_size, end)))
    return tuple(ranges)
