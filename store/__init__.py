"""The chunked Zarr store of activations."""

from .commit import ArrayCommit, Commit
from .dtype import as_float32, as_numpy, as_torch, bfloat16
from .labels import Kind, Labels
from .layer import Layer
from .location import Directory, locate
from .ranges import Range, plan_range_size, plan_ranges
from .schema import ArraySpec, Schema, versions
from .store import Damage, Store, ensure_vacant
from .writer import RangeWriter

__all__ = [
    "ArrayCommit",
    "ArraySpec",
    "Commit",
    "Damage",
    "Directory",
    "Kind",
    "Labels",
    "Layer",
    "Range",
    "RangeWriter",
    "Schema",
    "Store",
    "as_float32",
    "as_numpy",
    "as_torch",
    "bfloat16",
    "ensure_vacant",
    "locate",
    "plan_range_size",
    "plan_ranges",
    "versions",
]
