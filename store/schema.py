"""What a store says of itself: its arrays, and where they came from."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from sonde.errors import StoreError

from .dtype import bfloat16

SCHEMA_VERSION = 1
DTYPES: Mapping[str, np.dtype[Any]] = {
    "bfloat16": bfloat16,
    "float16": np.dtype(np.float16),
    "float32": np.dtype(np.float32),
}
_VERSIONED = ("sonde", "torch", "transformers", "zarr", "numpy")


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One activations array, ``[layer, sample, hidden]``.

    Attributes
    ----------
    site, tokens
        Where in a block, and which positions: ``resid_post`` and ``last``.
    layers
        The model's layer of each row of the first axis.
    hidden
        Length of a vector.
    """

    site: str
    tokens: str
    layers: tuple[int, ...]
    hidden: int

    @property
    def name(self) -> str:
        """``resid_post/last``."""
        return f"{self.site}/{self.tokens}"

    @property
    def path(self) -> str:
        """Key of the array in the store."""
        return f"activations/{self.name}"

    def chunk_key(self, row: int, range_index: int) -> str:
        """Key of the chunk that holds row ``row`` of the layer axis for one range."""
        return f"{self.path}/c.{row}.{range_index}.0"


@dataclass(frozen=True, slots=True)
class Schema:
    """Content of the attribute ``sonde`` of the store's root group.

    ``model``, ``capture`` and ``data`` must agree for an interrupted extraction to go on;
    ``config`` and ``versions`` are for people.
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
    version: int = SCHEMA_VERSION

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype of every activations array in memory."""
        return DTYPES[self.dtype]

    def chunk_bytes(self, array: ArraySpec) -> int:
        """Bytes of one chunk of an array in memory: ``range_size * hidden * itemsize``."""
        return self.range_size * array.hidden * self.numpy_dtype.itemsize

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists for ``zarr.json``."""
        return {
            f.name: [
                {"site": a.site, "tokens": a.tokens, "layers": list(a.layers), "hidden": a.hidden} for a in self.arrays
            ]
            if f.name == "arrays"
            else getattr(self, f.name)
            for f in fields(self)
        }

    @classmethod
    def from_json(cls, data: Any, where: str) -> Schema:
        """Read what ``to_json`` wrote.

        Raises
        ------
        StoreError
            If the store is of another schema version, or the attribute is not of this form.
        """
        found = data.get("version") if isinstance(data, dict) else None
        if found != SCHEMA_VERSION:
            raise StoreError(
                f"{where}: store schema version {found!r}, but this sonde reads version {SCHEMA_VERSION}: "
                "open it with the sonde that wrote it (see `versions` in its zarr.json)"
            )
        try:
            arrays = tuple(
                ArraySpec(str(a["site"]), str(a["tokens"]), tuple(map(int, a["layers"])), int(a["hidden"]))
                for a in data["arrays"]
            )
            schema = cls(**{f.name: data[f.name] for f in fields(cls)} | {"arrays": arrays})
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{where}: the attribute `sonde` of zarr.json is damaged ({error!r})") from error
        if schema.dtype not in DTYPES:
            raise StoreError(f"{where}: dtype {schema.dtype!r} in zarr.json is none of {', '.join(DTYPES)}")
        sizes = (schema.n_samples, schema.range_size)
        if not all(type(size) is int and size > 0 for size in sizes) or any(a.hidden < 1 for a in arrays):
            raise StoreError(f"{where}: impossible sizes in zarr.json: {sizes} samples and rows a range")
        return schema


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _VERSIONED}
