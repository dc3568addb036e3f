"""Commit records: what makes a range exist."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

from sonde.errors import CorruptStoreError

from .chunks import CRC_BYTES, Chunk
from .codecs import CODECS, max_encoded_bytes, min_encoded_bytes
from .location import Location
from .pooling import POOLINGS, source_of
from .ranges import Range
from .schema import MAX_CHUNK_BYTES, ArraySpec, Schema, canonical, checksum

FOLDER = "commits"

# What comes of reading a record that is another than was written, or a folder in its place.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, IsADirectoryError)


@dataclass(frozen=True, slots=True)
class Chunks(Sequence[Chunk]):
    """Chunks of one array in one range as a record lists them: layer by layer, 12 bytes each until one is asked for.

    Attributes
    ----------
    folder
        Key of the folder they lie in.
    columns
        Index along the second axis of each chunk of a layer.
    nbytes
        Length of each in bytes.
    crc32c
        The four bytes at the end of each.
    """

    folder: str
    columns: range
    nbytes: array[int]
    crc32c: bytes

    def __len__(self) -> int:
        return len(self.nbytes)

    @overload
    def __getitem__(self, index: int) -> Chunk: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Chunk]: ...

    def __getitem__(self, index: int | slice) -> Chunk | Sequence[Chunk]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        i = range(len(self))[index]
        row, column = divmod(i, len(self.columns))
        key = f"{self.folder}/c.{row}.{self.columns[column]}.0"
        return Chunk(key, self.nbytes[i], self.crc32c[CRC_BYTES * i : CRC_BYTES * (i + 1)].hex())


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

    chunks: Sequence[Chunk]
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
        arrays = {name: _to_json(array) for name, array in self.arrays.items()}
        skipped = {str(row): why for row, why in self.skipped.items()}
        record: dict[str, Any] = {"range": asdict(self.range), "arrays": arrays, "skipped": skipped}
        record["sha256"] = checksum(record)
        location.publish(self.key_of(self.range), canonical(record))

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
            data = location.read(key)
            record = json.loads(data)
            _check_digest(record, data, schema)
            if record["range"] != {"index": expected.index, "start": expected.start, "stop": expected.stop}:
                raise _Misfit
            arrays = {
                spec.name: _read_array(record["arrays"][spec.name], spec, expected, schema) for spec in schema.arrays
            }
            skipped = {int(row): str(why) for row, why in record["skipped"].items()}
            others = [name for name in record["arrays"] if name not in arrays and not _pooled(name, schema)]
            if others or not all(expected.start <= row < expected.stop for row in skipped):
                raise _Misfit
        except _Misfit:
            raise CorruptStoreError(
                f"{location}: the commit record {key} speaks of other rows or chunks than the store's schema; "
                "run `sonde verify --repair` and `sonde extract --resume` to extract its range again"
            ) from None
        except _DAMAGED as error:
            raise CorruptStoreError(
                f"{location}: the commit record {key} is damaged ({error!r}); run "
                "`sonde verify --repair` and `sonde extract --resume` to extract its range again"
            ) from error
        return cls(expected, arrays, skipped)


def tokens_folder(spec: ArraySpec, range_: Range) -> str:
    """Key of the Zarr group that holds one range of an array of all tokens."""
    return f"{spec.path}/{range_.name}"


def _pooled(name: str, schema: Schema) -> bool:
    """Whether an array may be one that a pooling left which did not come to its end."""
    site, _, tokens = name.rpartition("/")
    return tokens in POOLINGS and source_of(schema.arrays, site, tokens) is not None


class _Misfit(Exception):
    """A record that is whole, and speaks of something else than the schema."""


def _check_digest(record: dict[str, Any], data: bytes, schema: Schema) -> None:
    """Take the digest out of a record and hold it against the rest."""
    found = record.pop("sha256", None)
    if found is None and schema.version == 1:
        return
    # Records are written in canonical form: without its digest the text is what was digested.
    rest = data.replace(f'"sha256":"{found}",'.encode(), b"", 1)
    if found != hashlib.sha256(rest).hexdigest() and found != checksum(record):
        raise ValueError("its checksum does not match")


def _to_json(array: ArrayCommit) -> dict[str, Any]:
    data: dict[str, Any] = {"chunks": [asdict(chunk) for chunk in array.chunks], "nonfinite": array.nonfinite}
    parts = {"scale": array.scale, "tokens": array.tokens}
    return data | {name: asdict(part) for name, part in parts.items() if part is not None}


def _read_array(record: Mapping[str, Any], spec: ArraySpec, range_: Range, schema: Schema) -> ArrayCommit:
    """Read an array's part of a record, whose chunks must be those that the schema has for this range."""
    if ("tokens" in record) != spec.ragged or ("scale" in record) != (schema.dtype == "int8"):
        raise _Misfit
    n_layers, tokens = len(spec.layers), None
    if spec.ragged:
        tokens = _read_tokens(record["tokens"], spec, range_, schema)
        folder, columns = f"{tokens_folder(spec, range_)}/values", range(tokens.n_chunks)
        nbytes = tokens.chunk_tokens * spec.hidden * schema.storage_dtype.itemsize
        scale_key, n_scales = f"{tokens_folder(spec, range_)}/scale/c.0.0", n_layers * tokens.n_tokens
    else:
        folder, columns = spec.path, range(range_.index, range_.index + 1)
        nbytes = schema.chunk_bytes(spec)
        scale_key, n_scales = f"{spec.scale_path}/c.0.{range_.index}", n_layers * schema.range_size
    chunks = _read_chunks(record["chunks"], folder, n_layers, columns, nbytes, schema.codec)
    scale = _read_chunk(record["scale"], scale_key, 4 * n_scales) if "scale" in record else None
    return ArrayCommit(chunks, _whole(record["nonfinite"]), scale, tokens)


def _read_tokens(record: Mapping[str, Any], spec: ArraySpec, range_: Range, schema: Schema) -> TokenCommit:
    n_tokens, chunk_tokens = _whole(record["n_tokens"]), _whole(record["chunk_tokens"])
    largest = max(chunk_tokens * spec.hidden * schema.storage_dtype.itemsize, 4 * len(spec.layers) * n_tokens)
    if not 0 < chunk_tokens <= max(1, n_tokens) or largest > MAX_CHUNK_BYTES:
        raise _Misfit
    folder = tokens_folder(spec, range_)
    sizes = {"offsets": len(range_) * 8 + 8, "token_ids": n_tokens * 4, "modality": n_tokens}
    small = {name: _read_chunk(record[name], f"{folder}/{name}/c.0", size) for name, size in sizes.items()}
    return TokenCommit(n_tokens, chunk_tokens, **small)


def _read_chunk(record: Mapping[str, Any], key: str, nbytes: int) -> Chunk:
    """Read the description of an object that is not compressed."""
    chunk = Chunk(record["key"], _whole(record["nbytes"]), record["crc32c"])
    if (chunk.key, chunk.nbytes) != (key, nbytes + CRC_BYTES):
        raise _Misfit
    return chunk


def _read_chunks(
    records: Sequence[Mapping[str, Any]], folder: str, n_rows: int, columns: range, nbytes: int, codec: str
) -> Chunks:
    """Read the descriptions of chunks of ``nbytes`` bytes each, before the codec."""
    if len(records) != n_rows * len(columns):
        raise _Misfit
    if [record["key"] for record in records] != [f"{folder}/c.{r}.{c}.0" for r in range(n_rows) for c in columns]:
        raise _Misfit
    lengths = array("Q", [record["nbytes"] for record in records])
    low, high = (nbytes, nbytes) if CODECS[codec] is None else (min_encoded_bytes(nbytes), max_encoded_bytes(nbytes))
    if lengths and not low + CRC_BYTES <= min(lengths) <= max(lengths) <= high + CRC_BYTES:
        raise _Misfit
    crc32c = bytes.fromhex("".join([record["crc32c"] for record in records]))
    if len(crc32c) != CRC_BYTES * len(lengths):
        raise _Misfit
    return Chunks(folder, columns, lengths, crc32c)


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value
