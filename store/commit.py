"""Commit records: what makes a range exist."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sonde.errors import CorruptStoreError

from .chunks import CRC_BYTES, Chunk
from .codecs import CODECS, max_encoded_bytes
from .location import Location
from .pooling import POOLINGS
from .ranges import Range
from .schema import MAX_CHUNK_BYTES, ArraySpec, Schema, checksum

FOLDER = "commits"

# What comes of reading a record that is another than was written, or a folder in its place.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, IsADirectoryError)


@dataclass(frozen=True, slots=True)
class TokenCommit:
    """How the tokens of a range are laid out in an array of all tokens.

    Attributes
    ----------
    n_tokens
        Tokens of all samples of the range.
    chunk_tokens
        Tokens that fill a chunk.
    offsets
        int64 ``[sample + 1]``: sample i has the tokens ``offsets[i]`` to ``offsets[i + 1]``, exclusive.
    token_ids
        int32 ``[token]``.
    modality
        uint8 ``[token]``: see `sonde.store.tokens.MODALITIES`.
    """

    n_tokens: int
    chunk_tokens: int
    offsets: Chunk
    token_ids: Chunk
    modality: Chunk

    @property
    def n_chunks(self) -> int:
        """Chunks of each layer."""
        return -(-self.n_tokens // self.chunk_tokens)


@dataclass(frozen=True, slots=True)
class ArrayCommit:
    """One array's part of a range.

    Attributes
    ----------
    chunks
        In the order of the layer axis; of an array of all tokens ``tokens.n_chunks`` for each layer.
    nonfinite
        Values that are NaN or infinite, those of skipped samples left out.
    scale
        Of an int8 array: the chunk of its scales.
    tokens
        Of an array of all tokens: its layout.
    """

    chunks: tuple[Chunk, ...]
    nonfinite: int
    scale: Chunk | None = None
    tokens: TokenCommit | None = None

    def all_chunks(self) -> Iterator[Chunk]:
        """Every object of the range in this array."""
        yield from self.chunks
        if self.scale is not None:
            yield self.scale
        if self.tokens is not None:
            yield from (self.tokens.offsets, self.tokens.token_ids, self.tokens.modality)

    @property
    def folders(self) -> list[str]:
        """Keys of the folders that these objects lie in, whose names must be durable before the commit is."""
        return sorted({chunk.key.rpartition("/")[0] for chunk in self.all_chunks()})


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
        Sample number -> why it has no activations; its rows are NaN.

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
        return sum(chunk.nbytes for array in self.arrays.values() for chunk in array.all_chunks())

    def publish(self, location: Location) -> None:
        """Make the range exist. Its chunks must be durable before."""
        arrays = {
            name: {key: value for key, value in asdict(array).items() if value is not None}
            for name, array in self.arrays.items()
        }
        skipped = {str(row): why for row, why in self.skipped.items()}
        record: dict[str, Any] = {"range": asdict(self.range), "arrays": arrays, "skipped": skipped}
        record["sha256"] = checksum(record)
        location.publish(self.key_of(self.range), json.dumps(record, indent=1, sort_keys=True).encode())

    @classmethod
    def read(cls, location: Location, expected: Range, schema: Schema) -> Commit:
        """Read the record of a range and hold it against the schema.

        Raises
        ------
        CorruptStoreError
            If the record is damaged, or speaks of other rows or chunks than the schema does.
        """
        key = cls.key_of(expected)
        try:
            record = json.loads(location.read(key))
            # Only the first version of the schema has no checksum.
            found = record.pop("sha256", None)
            if found != checksum(record) and not (found is None and schema.version == 1):
                raise ValueError("its checksum does not match")
            arrays = {spec.name: _read_array(record["arrays"][spec.name]) for spec in schema.arrays}
            skipped = {int(row): str(why) for row, why in record["skipped"].items()}
            same = record["range"] == asdict(expected) and all(expected.start <= r < expected.stop for r in skipped)
            same = same and {name for name in record["arrays"] if not _pooled(name, schema)} <= arrays.keys()
            fits = same and all(_fits(arrays[spec.name], spec, expected, schema) for spec in schema.arrays)
        except _DAMAGED as error:
            raise CorruptStoreError(
                f"{location}: the commit record {key} is damaged ({error!r}); run "
                "`sonde verify --repair` and `sonde extract --resume` to extract its range again"
            ) from error
        if not fits:
            raise CorruptStoreError(
                f"{location}: the commit record {key} speaks of other rows or chunks than the store's schema; "
                "run `sonde verify --repair` and `sonde extract --resume` to extract its range again"
            )
        return cls(expected, arrays, skipped)


def tokens_folder(spec: ArraySpec, range_: Range) -> str:
    """Key of the Zarr group that holds one range of an array of all tokens."""
    return f"{spec.path}/{range_.name}"


def _pooled(name: str, schema: Schema) -> bool:
    """Whether an array may be one that a pooling left which did not come to its end."""
    site, _, tokens = name.rpartition("/")
    return tokens in POOLINGS and any(spec.ragged and spec.site == site for spec in schema.arrays)


def _read_array(record: Mapping[str, Any]) -> ArrayCommit:
    chunks = tuple(_read_chunk(chunk) for chunk in record["chunks"])
    scale = _read_chunk(record["scale"]) if "scale" in record else None
    tokens = None
    if "tokens" in record:
        layout = record["tokens"]
        small = {name: _read_chunk(layout[name]) for name in ("offsets", "token_ids", "modality")}
        tokens = TokenCommit(_whole(layout["n_tokens"]), _whole(layout["chunk_tokens"]), **small)
    return ArrayCommit(chunks, _whole(record["nonfinite"]), scale, tokens)


def _read_chunk(record: Mapping[str, Any]) -> Chunk:
    return Chunk(record["key"], record["nbytes"], record["crc32c"])


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _fits(array: ArrayCommit, spec: ArraySpec, range_: Range, schema: Schema) -> bool:
    """Whether an array's chunks are those that the schema has for this range."""
    if spec.ragged:
        return _tokens_fit(array, spec, range_, schema)
    nbytes = schema.chunk_bytes(spec)
    keys = [spec.chunk_key(row, range_.index) for row in range(len(spec.layers))]
    fit = array.tokens is None and _sound(array.chunks, keys, nbytes, schema.codec)
    if schema.dtype != "int8":
        return fit and array.scale is None
    scale_bytes = len(spec.layers) * schema.range_size * 4
    return fit and _sound([array.scale], [f"{spec.scale_path}/c.0.{range_.index}"], scale_bytes)


def _tokens_fit(array: ArrayCommit, spec: ArraySpec, range_: Range, schema: Schema) -> bool:
    layout, folder = array.tokens, tokens_folder(spec, range_)
    if layout is None or not 0 < layout.chunk_tokens <= max(1, layout.n_tokens):
        return False
    nbytes = layout.chunk_tokens * spec.hidden * schema.storage_dtype.itemsize
    if (
        max(nbytes, 4 * len(spec.layers) * layout.n_tokens) > MAX_CHUNK_BYTES
        or len(array.chunks) != len(spec.layers) * layout.n_chunks
    ):
        return False
    keys = [f"{folder}/values/c.{row}.{i}.0" for row in range(len(spec.layers)) for i in range(layout.n_chunks)]
    small = {"offsets": len(range_) * 8 + 8, "token_ids": layout.n_tokens * 4, "modality": layout.n_tokens}
    fit = _sound(array.chunks, keys, nbytes, schema.codec) and all(
        _sound([getattr(layout, name)], [f"{folder}/{name}/c.0"], size) for name, size in small.items()
    )
    if schema.dtype != "int8":
        return fit and array.scale is None
    return fit and _sound([array.scale], [f"{folder}/scale/c.0.0"], len(spec.layers) * layout.n_tokens * 4)


def _sound(chunks: Any, keys: list[str], nbytes: int, codec: str = "none") -> bool:
    """Whether chunks have these keys and lengths that arrays of ``nbytes`` bytes can have."""
    low, high = (nbytes, nbytes) if CODECS[codec] is None else (1, max_encoded_bytes(nbytes))
    if [chunk.key for chunk in chunks] != keys:
        return False
    lengths = [chunk.nbytes for chunk in chunks]
    return all(type(n) is int for n in lengths) and (
        not lengths or (low + CRC_BYTES <= min(lengths) and max(lengths) <= high + CRC_BYTES)
    )
