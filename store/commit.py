"""Commit records: what makes a range exist."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from sonde.errors import CorruptStoreError

from .chunks import CRC_BYTES, Chunk
from .location import Directory
from .ranges import Range
from .schema import Schema

FOLDER = "commits"


@dataclass(frozen=True, slots=True)
class ArrayCommit:
    """One array's part of a range: its chunks in the order of the layer axis, and its non-finite values."""

    chunks: tuple[Chunk, ...]
    nonfinite: int


@dataclass(frozen=True, slots=True)
class Commit:
    """A range that is wholly on the disk.

    Attributes
    ----------
    range
        Which samples.
    arrays
        By array name (``resid_post/last``).
    skipped
        Row number -> why this sample has no activations; its rows are NaN.

    The record holds nothing that differs between two runs over the same data: a resumed store is bit-identical to an
    uninterrupted one.
    """

    range: Range
    arrays: Mapping[str, ArrayCommit]
    skipped: Mapping[int, str]

    @staticmethod
    def key_of(range_: Range) -> str:
        """Key of a range's record in the store."""
        return f"{FOLDER}/{range_.name}.json"

    @property
    def nbytes(self) -> int:
        """Bytes of all chunks."""
        return sum(chunk.nbytes for array in self.arrays.values() for chunk in array.chunks)

    def publish(self, location: Directory) -> None:
        """Make the range exist. Its chunks must be durable before."""
        record = asdict(self) | {"skipped": {str(row): why for row, why in self.skipped.items()}}
        location.publish(self.key_of(self.range), json.dumps(record, indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, location: Directory, expected: Range, schema: Schema) -> Commit:
        """Read the record of a range and hold it against the schema.

        Raises
        ------
        CorruptStoreError
            If the record is damaged, or speaks of other rows or chunks than the schema does.
        """
        key = cls.key_of(expected)
        try:
            record = json.loads(location.read(key))
            committed = Range(**record["range"])
            commit = cls(
                expected,
                {
                    name: ArrayCommit(tuple(Chunk(**chunk) for chunk in array["chunks"]), int(array["nonfinite"]))
                    for name, array in record["arrays"].items()
                },
                {int(row): str(why) for row, why in record["skipped"].items()},
            )
            found = {
                name: [(chunk.key, chunk.nbytes) for chunk in array.chunks] for name, array in commit.arrays.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise CorruptStoreError(
                f"{location}: the commit record {key} is damaged ({error}); run "
                "`sonde verify --repair` and `sonde extract --resume` to extract its range again"
            ) from error
        wanted = {
            array.name: [
                (array.chunk_key(row, expected.index), schema.chunk_bytes(array) + CRC_BYTES)
                for row in range(len(array.layers))
            ]
            for array in schema.arrays
        }
        outside = [row for row in commit.skipped if not expected.start <= row < expected.stop]
        if committed != expected or found != wanted or outside:
            raise CorruptStoreError(
                f"{location}: the commit record {key} speaks of other rows or chunks than the store's schema; "
                "run `sonde verify --repair` and `sonde extract --resume` to extract its range again"
            )
        return commit
