"""The small part of a store: groups, sample columns, coordinates and labels, as zarr-python writes them.

A tree of metadata is made in memory and then put in place with its topmost ``zarr.json`` last, so that it exists
whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from sonde.errors import CorruptStoreError, StoreError

from . import commit
from .dtype import BFloat16
from .labels import Labels
from .location import Directory
from .schema import Schema

_ATTRIBUTE = "sonde"
_FOLDERS = ("samples", "activations", "labels", commit.FOLDER)
_REMNANT = re.compile(
    r"(samples|activations)/([^/]+/)*(zarr\.json|c/0)"
    rf"|(labels|{commit.FOLDER})/zarr\.json"
    r"|log/[^/]+\.json"
    r"|\.zarr\.json\.partial"
)


def create(location: Directory, schema: Schema, columns: Mapping[str, Sequence[str]]) -> None:
    """Write the metadata of an empty store; until it is complete the folder is no store.

    What an earlier creation left is removed first: it may have had other columns or arrays.
    """
    tree, root = _new_tree({_ATTRIBUTE: schema.to_json() | {"samples_sha256": _digest(columns)}})
    samples = root.create_group("samples")
    for name, column in columns.items():
        _add_strings(samples, name, column, "sample")
    root.create_group("labels")
    root.create_group(commit.FOLDER)
    root.create_group("log")
    for spec in schema.arrays:
        root.create_array(
            spec.path,
            shape=(len(spec.layers), schema.n_samples, spec.hidden),
            chunks=(1, schema.range_size, spec.hidden),
            dtype=BFloat16() if schema.dtype == "bfloat16" else schema.dtype,
            filters=None,
            serializer=BytesCodec(endian="little"),
            compressors=[Crc32cCodec()],
            fill_value=float("nan"),
            dimension_names=["layer", "sample", "hidden"],
            chunk_key_encoding={"name": "default", "separator": "."},
            config={"write_empty_chunks": True},
        )
        site = root[f"activations/{spec.site}"]
        assert isinstance(site, zarr.Group)
        if "layer" not in site:
            _add_array(site, "layer", np.asarray(spec.layers, dtype=np.int64), ["layer"])
            _add_strings(site, "sample", columns["id"], "sample")
    for folder in _FOLDERS:
        location.clear(folder)
    _put(location, "", tree)


def is_remnant(key: str) -> bool:
    """Whether a creation that was cut off may have left an object of this key; nothing of worth has one."""
    return _REMNANT.fullmatch(key) is not None


def open_schema(location: Directory) -> tuple[Schema, str]:
    """Read the schema and the digest of the sample columns.

    Raises
    ------
    StoreError
        If there is no store here, or it is none of ours.
    """
    if not location.root.exists():
        raise StoreError(f"{location} does not exist; make a store with `sonde extract`")
    try:
        attributes = dict(_tree(location, "", ["zarr.json"]).attrs)
    except CorruptStoreError:
        raise
    except Exception as error:
        raise StoreError(f"{location} is not a sonde store: it has no Zarr v3 group in it ({error})") from error
    if _ATTRIBUTE not in attributes:
        raise StoreError(f"{location} is a Zarr group, but not one that sonde made: its attributes lack {_ATTRIBUTE!r}")
    data: Any = attributes[_ATTRIBUTE]
    digest = data.pop("samples_sha256", "") if isinstance(data, dict) else ""
    return Schema.from_json(data, str(location)), str(digest)


def read_columns(location: Directory, digest: str) -> dict[str, NDArray[np.str_]]:
    """Read all sample columns, as numpy strings ``[sample]``.

    Raises
    ------
    CorruptStoreError
        If they are not what was written.
    """
    try:
        samples = _tree(location, "samples/")
        columns = {name: np.array(np.asarray(array[:]).tolist(), dtype=str) for name, array in sorted(samples.arrays())}
    except Exception as error:
        raise CorruptStoreError(
            f"{location}: the sample columns cannot be read ({error}); restore samples/ from a copy"
        ) from error
    if _digest(columns) != digest:
        raise CorruptStoreError(f"{location}: the sample columns are damaged; restore samples/ from a copy")
    return columns


def label_names(location: Directory) -> list[str]:
    """Names of the labels in the store."""
    return [name for name in location.list("labels") if location.exists(f"labels/{name}/zarr.json")]


def write_labels(location: Directory, labels: Labels) -> None:
    """Put labels, aligned to the samples, into the store; they appear whole or not at all."""
    tree, group = _new_tree({"kind": labels.kind, "names": list(labels.names), "sha256": _labels_digest(labels)})
    dimensions = ["sample", "target"][: labels.values.ndim]
    _add_array(group, "values", labels.values, dimensions)
    if labels.kind == "multilabel":
        _add_strings(group, "target", labels.names, "target")
    # Labels of another kind have other arrays; what they leave behind would be in the way of these.
    location.clear(f"labels/{labels.name}")
    _put(location, f"labels/{labels.name}/", tree)


def read_labels(location: Directory, name: str) -> Labels:
    """Read labels by name.

    Raises
    ------
    StoreError
        If the store has no such labels; the message lists those that it has.
    CorruptStoreError
        If they are not what was written.
    """
    known = label_names(location)
    if name not in known:
        there = f"it has {', '.join(known)}" if known else "it has none yet"
        raise StoreError(f"{location} has no labels {name!r}: {there}; add some with `sonde labels add`")
    try:
        group = _tree(location, f"labels/{name}/")
        values: Any = group["values"]
        attributes: Any = group.attrs
        labels = Labels(name, attributes["kind"], values[:], tuple(attributes["names"]))
        intact = _labels_digest(labels) == attributes["sha256"]
    except Exception as error:
        raise CorruptStoreError(
            f"{location}: the labels {name!r} cannot be read ({error}); add them again with --overwrite"
        ) from error
    if not intact:
        raise CorruptStoreError(f"{location}: the labels {name!r} are damaged; add them again with --overwrite")
    return labels


def _new_tree(attributes: dict[str, Any]) -> tuple[MemoryStore, zarr.Group]:
    tree = MemoryStore()
    return tree, zarr.create_group(tree, zarr_format=3, attributes=attributes)


def _tree(location: Directory, prefix: str, keys: Sequence[str] | None = None) -> zarr.Group:
    """Read a small group into memory through the location, which refuses links, and open it there."""
    from_bytes = default_buffer_prototype().buffer.from_bytes
    keys = list(location.walk(prefix)) if keys is None else keys
    tree = {key.removeprefix(prefix): from_bytes(location.read(key)) for key in keys}
    return zarr.open_group(MemoryStore(tree, read_only=True), mode="r", zarr_format=3)


def _put(location: Directory, prefix: str, tree: MemoryStore) -> None:
    objects = {key: value.to_bytes() for key, value in tree._store_dict.items()}
    last = objects.pop("zarr.json")
    for key, data in objects.items():
        location.write(prefix + key, [data])
    location.sync(sorted({(prefix + key).rpartition("/")[0] for key in objects}))
    location.publish(f"{prefix}zarr.json", last)


def _add_array(group: zarr.Group, name: str, values: NDArray[Any], dimensions: Sequence[str]) -> None:
    group.create_array(name, data=values, chunks=values.shape, dimension_names=dimensions, compressors=[Crc32cCodec()])


def _add_strings(group: zarr.Group, name: str, values: Sequence[str], dimension: str) -> None:
    array = group.create_array(
        name, shape=(len(values),), chunks=(len(values),), dtype="string", dimension_names=[dimension]
    )
    array[:] = np.asarray(values, dtype=object)


def _digest(columns: Mapping[str, Iterable[str]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        for text in (name, *columns[name]):
            data = str(text).encode()
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _labels_digest(labels: Labels) -> str:
    digest = hashlib.sha256(repr((labels.kind, labels.names, labels.values.shape)).encode())
    digest.update(np.ascontiguousarray(labels.values).astype(labels.values.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
