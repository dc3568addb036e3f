"""The small part of a store: groups, sample columns, coordinates and labels, as zarr-python writes them.

A tree of metadata is made in memory and then put in place with its topmost ``zarr.json`` last, so that it exists
whole or not at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec

from sonde.errors import CorruptStoreError, StoreError

from . import commit
from .codecs import CODECS
from .columns import add_column, digests_of
from .directory import Directory
from .dtype import BFloat16
from .location import Location
from .pooling import MODALITIES
from .schema import ArraySpec, Schema, checksum
from .token_buffer import Tokens
from .trees import add_array, bytes_of, ensure_bounded, new_tree, read_tree

_ATTRIBUTE = "sonde"
_DOTTED: dict[str, Any] = {"name": "default", "separator": "."}
_DECISIVE = (
    *("zarr_format", "node_type", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"),
    "dimension_names",
)
_UNQUESTIONED_ROWS = 2**18
_FOLDERS = ("samples", "activations", "labels", commit.FOLDER)
_REMNANT = re.compile(
    r"(samples|activations)/([^/]+/)*(zarr\.json|c/0)"
    rf"|(labels|{commit.FOLDER})/zarr\.json"
    r"|log/[^/]+\.json"
    r"|\.zarr\.json\.partial"
)


def create(location: Location, schema: Schema, columns: Mapping[str, Sequence[str]]) -> None:
    """Write the metadata of an empty store; until it is complete the folder is no store.

    What an earlier creation left is removed first: it may have had other columns or arrays.
    """
    for folder in _FOLDERS:
        location.clear(folder)
    objects = _objects(schema, columns)
    last = objects.pop("zarr.json")
    for key, data in objects.items():
        location.write(key, [data])
    location.sync(sorted({key.rpartition("/")[0] for key in objects}))
    location.publish("zarr.json", last)


def extend(location: Location, schema: Schema, columns: Mapping[str, Sequence[str]]) -> None:
    """Replace the metadata of a store by that of a schema with more samples or arrays.

    Every object is replaced whole, longer columns before the arrays that are to have their length and the schema
    last: whenever it is cut off, and to whoever reads meanwhile, what the old schema speaks of is as it was.
    """
    objects = _objects(schema, columns)
    for key in sorted(objects, key=lambda key: (key == "zarr.json", key.endswith("zarr.json"))):
        _replace(location, key, objects[key])


def _replace(location: Location, key: str, data: bytes) -> None:
    """Publish an object unless it is there."""
    if not (location.exists(key) and location.read(key) == data):
        location.publish(key, data)


def restore(location: Location, schema: Schema, columns: Mapping[str, Sequence[str] | NDArray[np.str_]]) -> None:
    """Put back the metadata of every array, which the schema and the columns decide; the schema itself stays."""
    for key, data in _objects(schema, columns).items():
        if key.startswith("activations/"):
            location.publish(key, data)


def add_arrays(location: Location, schema: Schema) -> None:
    """Write the metadata of arrays that the schema has and the store has not yet; it gets the schema after that.

    What an earlier attempt left is replaced: samples may have been appended since.
    """
    for key, data in _objects(schema, {}, coordinates=False).items():
        if key.startswith("activations/"):
            _replace(location, key, data)


def publish_schema(location: Location, schema: Schema, digests: Sequence[str]) -> None:
    """Replace the schema of a store; its sample columns stay."""
    tree, _ = new_tree(_root_attributes(schema, digests))
    location.publish("zarr.json", bytes_of(tree)["zarr.json"])


def damage(location: Location, schema: Schema, ids: Sequence[str] | NDArray[np.str_] | None) -> list[str]:
    """Find the groups, arrays and coordinates of the activations that say something else than the schema.

    Our own readers do not go by them, all others do.

    Parameters
    ----------
    ids
        Ids of the samples; None if they are not known.
    """
    wrong = [
        key for key, data in _objects(schema, {}, coordinates=False).items() if not _as_wanted(location, key, data)
    ]
    for site, layers in {spec.site: spec.layers for spec in schema.arrays}.items():
        expected: dict[str, list[Any]] = {"layer": list(layers)}
        if ids is not None:
            padded = np.full(schema.n_rows(), "", dtype=object)
            padded[schema.rows()] = ids
            expected["sample"] = padded.tolist()
        for name, values in expected.items():
            prefix = f"activations/{site}/{name}/"
            try:
                array: Any = read_tree(location, prefix, node=zarr.open_array)
                ensure_bounded(array, len(values))
                same = array.metadata.dimension_names == (name,) and array[: len(values)].tolist() == values
            except Exception:
                same = False
            if not same:
                wrong.append(prefix.rstrip("/"))
    return [f"{location}/{key} is missing or damaged; `sonde verify --repair` writes it again" for key in wrong]


def _as_wanted(location: Location, key: str, data: bytes) -> bool:
    """Whether the metadata of a group or array of activations says what it should."""
    if not key.startswith("activations/"):
        return True
    try:
        found, wanted = json.loads(location.read(key)), json.loads(data)
        if any(found.get(name) != wanted.get(name) for name in _DECISIVE):
            return False
        if wanted["node_type"] == "group":
            return True
        # An append that did not come to its end leaves arrays that are longer.
        longer = found["shape"][1] >= wanted["shape"][1]
        return bool(longer and [*found["shape"][:1], *found["shape"][2:]] == [wanted["shape"][0], *wanted["shape"][2:]])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError, CorruptStoreError):
        return False


def tokens_group(schema: Schema, spec: ArraySpec, tokens: Tokens) -> dict[str, bytes]:
    """Metadata of the group that holds one range of an array of all tokens, by key below its folder."""
    tree, group = new_tree({"modality": list(MODALITIES)})
    shape = (len(spec.layers), tokens.n_tokens, spec.hidden)
    _add_chunked(group, "values", schema, shape, (1, tokens.chunk_tokens, spec.hidden), ["layer", "token", "hidden"])
    if schema.dtype == "int8":
        _add_scales(group, "scale", shape[:2], (shape[0], max(1, shape[1])), ["layer", "token"])
    for name, dimension in (("offsets", "boundary"), ("token_ids", "token"), ("modality", "token")):
        values: NDArray[Any] = getattr(tokens, name)
        group.create_array(
            name,
            shape=values.shape,
            chunks=(max(1, len(values)),),
            dtype=values.dtype,
            filters=None,
            compressors=[Crc32cCodec()],
            dimension_names=[dimension],
            chunk_key_encoding=_DOTTED,
        )
    return bytes_of(tree)


def _objects(
    schema: Schema, columns: Mapping[str, Sequence[str] | NDArray[np.str_]], *, coordinates: bool = True
) -> dict[str, bytes]:
    """Everything of a store but activations, commits, labels and logs, by key."""
    tree, root = new_tree(_root_attributes(schema, digests_of(schema, columns)) if coordinates else {})
    samples = root.create_group("samples")
    for name, column in columns.items() if coordinates else ():
        add_column(samples, name, column, schema)
    root.create_group("labels")
    root.create_group(commit.FOLDER)
    root.create_group("log")
    n_rows = schema.n_rows()
    for spec in schema.arrays:
        if spec.ragged:
            root.create_group(spec.path)
        else:
            shape = (len(spec.layers), n_rows, spec.hidden)
            chunks = (1, schema.range_size, spec.hidden)
            _add_chunked(root, spec.path, schema, shape, chunks, ["layer", "sample", "hidden"])
            if schema.dtype == "int8":
                _add_scales(root, spec.scale_path, shape[:2], (shape[0], schema.range_size), ["layer", "sample"])
        site = root[f"activations/{spec.site}"]
        assert isinstance(site, zarr.Group)
        if coordinates and "layer" not in site:
            add_array(site, "layer", np.asarray(spec.layers, dtype=np.int64), ["layer"])
            add_column(site, "sample", columns["id"], schema)
    return bytes_of(tree)


def _root_attributes(schema: Schema, digests: Sequence[str]) -> dict[str, Any]:
    # As JSON reads it back, so that its checksum is the same then.
    attribute = json.loads(json.dumps(schema.to_json() | {"samples_sha256": list(digests)}))
    return {_ATTRIBUTE: attribute | {"sha256": checksum(attribute)}}


def _add_chunked(
    group: zarr.Group, name: str, schema: Schema, shape: tuple[int, ...], chunks: tuple[int, ...], names: list[str]
) -> None:
    codec = CODECS[schema.codec]
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=BFloat16() if schema.dtype == "bfloat16" else schema.dtype,
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[*([codec.zarr(schema.storage_dtype.itemsize)] if codec else []), Crc32cCodec()],
        fill_value=0 if schema.dtype == "int8" else float("nan"),
        dimension_names=names,
        chunk_key_encoding=_DOTTED,
        config={"write_empty_chunks": True},
    )


def _add_scales(
    group: zarr.Group, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], names: list[str]
) -> None:
    group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype="float32",
        filters=None,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        fill_value=float("nan"),
        dimension_names=names,
        chunk_key_encoding=_DOTTED,
        config={"write_empty_chunks": True},
    )


def ensure_vacant(location: Location) -> None:
    """Raise StoreError if a store, or something else than the remains of a creation, is at this place."""
    if location.exists("zarr.json"):
        raise StoreError(f"{location} exists already; go on with it by --resume, or choose another --out")
    if isinstance(location, Directory) and location.root.exists() and not location.root.is_dir():
        raise StoreError(f"{location} is a file; choose another --out")
    if not all(is_remnant(key) for key in location.walk()):
        raise StoreError(f"{location} exists and is not a store; choose another --out")


def is_remnant(key: str) -> bool:
    """Whether a creation that was cut off may have left an object of this key; nothing of worth has one."""
    return _REMNANT.fullmatch(key) is not None


def open_schema(location: Location) -> tuple[Schema, tuple[str, ...]]:
    """Read the schema and the digests of the sample columns, one for each part.

    Raises
    ------
    StoreError
        If there is no store here, or it is none of ours.
    """
    try:
        attributes = dict(read_tree(location, "", ["zarr.json"]).attrs)
    except CorruptStoreError:
        raise
    except Exception as error:
        if isinstance(location, Directory):
            nothing = not location.root.exists()
        else:
            # Of a network, another error than this one says nothing about what is there.
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise
            nothing = isinstance(error, FileNotFoundError)
        if nothing:
            raise StoreError(f"{location} does not exist; make a store with `sonde extract`") from None
        raise StoreError(
            f"{location} is not a sonde store: it has no Zarr v3 group in it ({error}); check the path"
        ) from error
    if _ATTRIBUTE not in attributes:
        raise StoreError(
            f"{location} is a Zarr group, but not one that sonde made: its attributes lack {_ATTRIBUTE!r}; check "
            "the path"
        )
    data: Any = attributes[_ATTRIBUTE]
    schema = Schema.from_json(data, str(location))
    # Only the first version of the schema has no checksum.
    found = data.pop("sha256", None)
    if found != checksum(data) and not (found is None and schema.version == 1):
        raise CorruptStoreError(f"{location}: the attribute `sonde` of zarr.json is damaged; restore it from a copy")
    _ensure_backed(location, schema)
    digests = data.get("samples_sha256", "")
    return schema, tuple(digests) if isinstance(digests, list) else (str(digests),)


def _ensure_backed(location: Location, schema: Schema) -> None:
    """Raise CorruptStoreError for more samples than the column of their ids can hold: memory is taken for each.

    An id takes four bytes and its text, in the first version of the schema compressed to a few bits.
    """
    n_rows = schema.n_rows()
    if n_rows <= _UNQUESTIONED_ROWS:
        return
    folder = "samples/id/c"
    keys = [f"{folder}/{name}" for name in location.list(folder)]
    nbytes = sum(location.read_into(key, []) for key in keys)
    if n_rows > (16 * nbytes if schema.version == 1 else nbytes // 4):
        raise CorruptStoreError(
            f"{location}: {n_rows} rows of samples, but their ids are {nbytes} bytes; restore samples/ from a copy"
        )
