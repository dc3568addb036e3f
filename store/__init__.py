"""The chunked Zarr store of activations."""

from .commit import ArrayCommit, Commit
from .directory import Directory
from .dtype import as_float32, as_numpy, as_torch, bfloat16
from .labels import Kind, Labels
from .layer import Layer
from .locate import locate
from .location import Location
from .metadata import ensure_vacant
from .pooling import MODALITIES, POOLINGS
from .ranges import Range, plan_range_size, plan_ranges
from .schema import ALL, ALL_IMAGE, ALL_TEXT, DTYPES, RAGGED, ArraySpec, Part, Schema, versions
from .statistics import Statistics
from .store import Store
from .token_buffer import TokenBuffer
from .token_layer import TokenLayer, TokenRange
from .verify import Damage
from .writer import RangeWriter

__all__ = [
    "ALL",
    "ALL_IMAGE",
    "ALL_TEXT",
    "DTYPES",
    "MODALITIES",
    "POOLINGS",
    "RAGGED",
    "ArrayCommit",
    "ArraySpec",
    "Commit",
    "Damage",
    "Directory",
    "Kind",
    "Labels",
    "Layer",
    "Location",
    "Part",
    "Range",
    "RangeWriter",
    "Schema",
    "Statistics",
    "Store",
    "TokenBuffer",
    "TokenLayer",
    "TokenRange",
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
