"""Labels as Zarr groups of a store."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from sonde.errors import CorruptStoreError, InputError, StoreError

from .labels import MISSING, Labels
from .location import Location
from .schema import Schema, canonical
from .trees import add_array, add_strings, bytes_of, ensure_bounded, is_node, new_tree, read_json, read_tree

_FIRST = ("values", "target")
_SECOND = ("values-2", "target-2")


def label_names(location: Location) -> list[str]:
    """Names of the labels in the store."""
    return [name for name in location.list("labels") if location.exists(f"labels/{name}/zarr.json")]


def write_labels(location: Location, labels: Labels, schema: Schema) -> None:
    """Put labels, aligned to the samples, into the store; they appear, or replace others, whole or not at all.

    Raises
    ------
    InputError
        If their values are not of their kind.
    """
    if not _plausible(labels):
        raise InputError(
            f"labels {labels.name!r}: {labels.values.dtype} {list(labels.values.shape)} and {len(labels.names)} names "
            f"are no {labels.kind} labels: make them with Labels.from_column"
        )
    folder = f"labels/{labels.name}"
    padded = labels.spread(schema.rows(), schema.n_rows())
    # What is replaced stays readable until the group points at the new values: the two take turns with two names.
    present = read_json(location, f"{folder}/zarr.json").get("attributes")
    first = not isinstance(present, dict) or present.get("values", "values") == "values"
    values, target = _SECOND if first and is_node(location, folder) else _FIRST
    if not is_node(location, folder):
        location.clear(folder)
    attributes = {"kind": labels.kind, "names": list(labels.names), "sha256": _digest(padded), "values": values}
    tree, group = new_tree(attributes)
    add_array(group, values, padded.values, ["sample", "target"][: padded.values.ndim])
    if labels.kind == "multilabel":
        add_strings(group, target, labels.names, "target")
    objects = bytes_of(tree)
    last = objects.pop("zarr.json")
    for name in (values, target):
        location.clear(f"{folder}/{name}")
    for key, data in objects.items():
        location.write(f"{folder}/{key}", [data])
    location.sync(sorted({f"{folder}/{key}".rpartition("/")[0] for key in objects}))
    location.publish(f"{folder}/zarr.json", last)
    for name in {*_FIRST, *_SECOND} - {values, target}:
        location.clear(f"{folder}/{name}")


def read_labels(location: Location, name: str, schema: Schema) -> Labels:
    """Read labels by name; samples that were appended after them have none.

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
    lengths = {schema.n_rows(n): n for n in range(1, len(schema.parts) + 1)}
    try:
        group = read_tree(location, f"labels/{name}/")
        attributes: Any = group.attrs
        values: Any = group[attributes.get("values", "values")]
        ensure_bounded(values, schema.n_rows() * max(1, len(attributes["names"])))
        n_parts = lengths.get(values.shape[0])
        padded = Labels(name, attributes["kind"], values[:] if n_parts else np.zeros(0), tuple(attributes["names"]))
        digests = [_digest(padded)] + ([_first_digest(padded)] if schema.version == 1 else [])
        intact = not n_parts or (_plausible(padded) and attributes["sha256"] in digests)
    except Exception as error:
        raise CorruptStoreError(
            f"{location}: the labels {name!r} cannot be read ({error}); add them again with --overwrite"
        ) from error
    if not n_parts:
        raise CorruptStoreError(
            f"{location}: labels {name!r} have {values.shape[0]} rows for {schema.n_samples} samples: they are "
            "another store's; add them again with --overwrite"
        )
    if not intact:
        raise CorruptStoreError(f"{location}: the labels {name!r} are damaged; add them again with --overwrite")
    return padded.gather(schema.rows(n_parts), schema.n_samples)


def _plausible(labels: Labels) -> bool:
    """Whether values and names are such as their kind has."""
    x = labels.values
    columns = (len(labels.names),) if labels.kind == "multilabel" else ()
    if x.shape[1:] != columns or not all(isinstance(name, str) for name in labels.names):
        return False
    if labels.kind == "regression":
        return x.dtype.kind == "f" and not np.isinf(x).any()
    n_values = len(labels.names) if labels.kind == "multiclass" else 2
    return x.dtype.kind == "i" and (not x.size or (int(x.min()) >= MISSING and int(x.max()) < n_values))


def _digest(labels: Labels) -> str:
    """SHA-256 of canonical JSON of kind, names and shape, and of the values, little-endian."""
    head = {"kind": labels.kind, "names": list(labels.names), "shape": list(labels.values.shape)}
    return hashlib.sha256(canonical(head) + _little_endian(labels)).hexdigest()


def _first_digest(labels: Labels) -> str:
    """The digest of schema version 1, whose head is Python's ``repr``."""
    head = repr((labels.kind, labels.names, labels.values.shape)).encode()
    return hashlib.sha256(head + _little_endian(labels)).hexdigest()


def _little_endian(labels: Labels) -> bytes:
    return labels.values.astype(labels.values.dtype.newbyteorder("<")).tobytes()
