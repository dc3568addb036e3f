"""Ranges: consecutive samples that fill exactly one chunk of every array."""

from __future__ import annotations

from collections.abc import Iterable
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
        """The rows of this range in every array of the store."""
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


def plan_ranges(n_samples: int, range_size: int) -> tuple[Range, ...]:
    """Cut ``n_samples`` rows into ranges of ``range_size``; the last one may be shorter."""
    if range_size < 1:
        raise InputError(f"range_size must be at least 1, got {range_size}")
    return tuple(
        Range(index, start, min(start + range_size, n_samples))
        for index, start in enumerate(range(0, n_samples, range_size))
    )
