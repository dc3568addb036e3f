"""What a store says of itself: its arrays, and where they came from."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import CorruptStoreError, InputError, StoreError

from .codecs import CODECS
from .dtype import bfloat16
from .ranges import Range, plan_ranges

SCHEMA_VERSION = 2
DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": bfloat16,
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
ALL, ALL_IMAGE, ALL_TEXT = "all", "all:image", "all:text"
RAGGED = (ALL, ALL_IMAGE, ALL_TEXT)
"""Tokens of arrays that keep every position, or every one of one modality, instead of one row per sample."""

_READABLE = (1, SCHEMA_VERSION)
_VERSIONED = ("sonde", "torch", "transformers", "zarr", "numpy")
# Beyond these nothing was ever extracted: a store that claims more is damaged or hostile.
_MAX_RANGES = 2**22
MAX_CHUNK_BYTES = 2**32
_REMEDY = "restore it from a copy of the store"
_MAX_NAME_BYTES = 200


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One activations array.

    Attributes
    ----------
    site, tokens
        Where in a block, and which positions: ``resid_post`` and ``last``.
    layers
        The model's layer of each row of the first axis.
    hidden
        Length of a vector.
    pooled
        Whether it is made of an array of tokens of its site, not by the model.
    """

    site: str
    tokens: str
    layers: tuple[int, ...]
    hidden: int
    pooled: bool = False

    @property
    def name(self) -> str:
        """``resid_post/last``."""
        return f"{self.site}/{self.tokens}"

    @property
    def path(self) -> str:
        """Key of the array in the store."""
        return f"activations/{self.name}"

    @property
    def ragged(self) -> bool:
        """Whether it keeps tokens: ``[layer, token, hidden]`` per range, instead of ``[layer, sample, hidden]``."""
        return self.tokens in RAGGED

    def chunk_key(self, row: int, range_index: int) -> str:
        """Key of the chunk that holds row ``row`` of the layer axis for one range."""
        return f"{self.path}/c.{row}.{range_index}.0"

    @property
    def scale_path(self) -> str:
        """Key of the array of scales, float32 ``[layer, sample]``, that an int8 array has beside it."""
        return f"{self.path}_scale"


@dataclass(frozen=True, slots=True)
class Part:
    """Samples that came in together: those of the first extraction, or of one append.

    Attributes
    ----------
    n_samples
        How many.
    fingerprint
        Of their data set: an append that was cut off is known by it again.
    """

    n_samples: int
    fingerprint: str = ""


@dataclass(frozen=True)
class Schema:
    """Content of the attribute ``sonde`` of the store's root group.

    ``model``, ``capture``, ``data`` and ``dtype`` must agree for an interrupted extraction to go on, or for more
    samples to be appended; ``config`` and ``versions`` are for people.

    Attributes
    ----------
    n_samples
        Samples of all parts.
    range_size
        Samples that fill a chunk.
    dtype
        Of the activations: ``bfloat16``, ``float16``, ``float32``, or ``int8`` with a float32 scale for every vector.
    codec
        Of their chunks: ``none``, ``zstd`` or ``lz4+bitshuffle``.
    parts
        One for the first extraction and for each append.
    """

    arrays: tuple[ArraySpec, ...]
    n_samples: int
    range_size: int
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    capture: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    dtype: str = "bfloat16"
    codec: str = "none"
    parts: tuple[Part, ...] = ()
    version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if not self.parts:
            object.__setattr__(self, "parts", (Part(self.n_samples, str(self.data.get("fingerprint", ""))),))

    @property
    def storage_dtype(self) -> np.dtype[Any]:
        """The dtype of every activations array on the disk."""
        return DTYPES[self.dtype]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of activations in memory: that of the disk, but float32 for int8."""
        return np.dtype(np.float32) if self.dtype == "int8" else self.storage_dtype

    def chunk_bytes(self, array: ArraySpec) -> int:
        """Bytes of one chunk of an array before its codec: ``range_size * hidden * itemsize``."""
        return self.range_size * array.hidden * self.storage_dtype.itemsize

    @cached_property
    def ranges(self) -> tuple[Range, ...]:
        """All ranges, whether committed or not."""
        return plan_ranges([part.n_samples for part in self.parts], self.range_size)

    def rows(self, n_parts: int | None = None) -> NDArray[np.int64]:
        """Row of each sample in the arrays of the store, int64 ``[sample]``.

        Range i fills rows ``i * range_size`` and after: a part that does not fill its last chunk leaves rows without
        a sample before those of the next part. Without an append sample i is row i.
        """
        parts = self.parts[:n_parts]
        starts = np.cumsum([0] + [-(-part.n_samples // self.range_size) for part in parts]) * self.range_size
        return np.concatenate(
            [np.arange(start, start + part.n_samples) for start, part in zip(starts, parts, strict=False)]
        )

    def n_rows(self, n_parts: int | None = None) -> int:
        """Length of the sample axis of every array, with or without the latest parts."""
        *earlier, last = self.parts[:n_parts]
        return sum(-(-part.n_samples // self.range_size) for part in earlier) * self.range_size + last.n_samples

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists for ``zarr.json``."""
        data = {f.name: getattr(self, f.name) for f in fields(self)}
        data |= {"arrays": [asdict(a) for a in self.arrays], "parts": [asdict(part) for part in self.parts]}
        return data

    def check(self) -> None:
        """Raise InputError if no store can be made of this schema and opened again."""
        if self.n_samples < 1 or self.range_size < 1 or not self.arrays:
            raise InputError(
                "a store needs at least one sample, one row a range and one array, not "
                f"{self.n_samples}, {self.range_size} and {len(self.arrays)}"
            )
        if self.dtype not in DTYPES or self.codec not in CODECS:
            raise InputError(
                f"a store of dtype {self.dtype!r} and codec {self.codec!r}: there are {', '.join(DTYPES)}, "
                f"and {', '.join(CODECS)}"
            )
        for site in {a.site for a in self.arrays}:
            if len({a.layers for a in self.arrays if a.site == site}) > 1:
                raise InputError(
                    f"all arrays of the site {site!r} must have the same layers: give each the layers of all"
                )
        try:
            self.from_json(json.loads(json.dumps(self.to_json())), "this schema")
        except StoreError as error:
            raise InputError(f"a store of this schema could not be opened again: {error}") from error

    @classmethod
    def from_json(cls, data: Any, where: str) -> Schema:
        """Read what ``to_json`` wrote, in this or an earlier version of the schema.

        Raises
        ------
        StoreError
            If the store is of another schema version.
        CorruptStoreError
            If the attribute is not of this form.
        """
        found = data.get("version") if isinstance(data, dict) else None
        if found not in _READABLE or type(found) is not int:
            raise StoreError(
                f"{where}: store schema version {found!r}, but this sonde reads versions 1 to {SCHEMA_VERSION}: "
                "open it with the sonde that wrote it (see `versions` in its zarr.json), or update this one"
            )
        try:
            arrays = tuple(
                ArraySpec(
                    _name(a["site"]),
                    _name(a["tokens"]),
                    tuple(map(_count, a["layers"])),
                    _size(a["hidden"]),
                    bool(a.get("pooled", False)),
                )
                for a in data["arrays"]
            )
            parts = tuple(Part(_size(p["n_samples"]), str(p["fingerprint"])) for p in data.get("parts", ()))
            known = {f.name: data[f.name] for f in fields(cls) if f.name not in ("arrays", "parts", "codec")}
            schema = cls(**known | {"arrays": arrays, "parts": parts, "codec": data.get("codec", "none")})
            sizes = {"n_samples": _size(schema.n_samples), "range_size": _size(schema.range_size)}
            mappings = (schema.model, schema.data, schema.capture, schema.config, schema.versions)
            if not all(isinstance(value, dict) for value in mappings) or type(schema.dtype + schema.codec) is not str:
                raise TypeError("a value of another type")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise CorruptStoreError(
                f"{where}: the attribute `sonde` of zarr.json is damaged ({error!r}); {_REMEDY}"
            ) from error
        if schema.dtype not in DTYPES or schema.codec not in CODECS:
            raise StoreError(
                f"{where}: dtype {schema.dtype!r} and codec {schema.codec!r} in zarr.json: this sonde reads "
                f"{', '.join(DTYPES)}, and {', '.join(CODECS)}"
            )
        n_ranges = sum(-(-part.n_samples // schema.range_size) for part in schema.parts)
        # A chunk of scales has one float32 of every layer for each row.
        bytes_of_chunks = [max(schema.chunk_bytes(a), 4 * len(a.layers) * schema.range_size) for a in arrays]
        largest = max(bytes_of_chunks, default=0)
        whole = sum(part.n_samples for part in schema.parts) == schema.n_samples
        if not whole or not arrays or n_ranges > _MAX_RANGES or largest > MAX_CHUNK_BYTES:
            raise CorruptStoreError(
                f"{where}: impossible sizes in zarr.json: {sizes}, chunks of {largest} bytes; {_REMEDY}"
            )
        if not _distinct(arrays):
            raise CorruptStoreError(
                f"{where}: arrays in zarr.json of the same name, or one inside of another; {_REMEDY}"
            )
        return schema


def _distinct(arrays: Sequence[ArraySpec]) -> bool:
    """Whether every array, its scales, and the coordinates of every site have a folder of their own."""
    folders = [f"{site}/{name}" for site in {array.site for array in arrays} for name in ("layer", "sample")]
    folders += [name for array in arrays for name in (array.name, f"{array.name}_scale")]
    above = {folder[: match.start()] for folder in folders for match in re.finditer("/", folder)}
    return len(set(folders)) == len(folders) and not above.intersection(folders)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or any(p[:1] in ("", ".") for p in value.split("/")):
        raise ValueError(f"the name {value!r} leads out of the store")
    if len(value.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"a name of {len(value.encode())} bytes is longer than those of files")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError(f"impossible layer {value!r}")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 1 <= value < 2**53:
        raise ValueError(f"impossible sizes: {value!r}")
    return value


def canonical(data: Mapping[str, Any]) -> bytes:
    """Plain data as JSON, the same whatever the order of its keys."""
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 (hexadecimal) of plain data, whatever the order of its keys."""
    return hashlib.sha256(canonical(data)).hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _VERSIONED}
