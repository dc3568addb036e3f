"""The store that an extraction writes to: made, gone on with, or appended to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sonde.errors import InputError, StoreError
from sonde.store import DTYPES, Labels, Location, Range, Schema, Store, ensure_vacant, plan_range_size

from .capture import FIXED, Capture
from .config import ExtractConfig
from .inputs import Encoder
from .sample import Dataset
from .session import Session

Mode = Literal["new", "resume", "append"]

# All tokens of a range, over all layers: what a range in the making takes of memory, and what a crash costs.
_RANGE_BYTES = 512 * 2**20
_CHUNK_BYTES = 16 * 2**20
_SAMPLED = 32


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the activations of a data set go.

    Attributes
    ----------
    store
        The store.
    first
        Number in the store of the data set's first sample.
    missing
        The data set's ranges that are not committed.
    """

    store: Store
    first: int
    missing: tuple[Range, ...]


def mode_of(location: Location, *, resume: bool, append: bool) -> Mode:
    """Decide what is to be done with what is at the output's place.

    Raises
    ------
    StoreError
        If there is something else than is to be gone on with, or nothing to append to.
    """
    there = location.exists("zarr.json")
    if append and not there:
        raise StoreError(f"{location} is no store yet: leave --append out to make it")
    if there and (resume or append):
        return "append" if append else "resume"
    ensure_vacant(location)
    return "new"


def plan_schema(config: ExtractConfig, dataset: Dataset, session: Session) -> Schema:
    """Describe the store that this extraction would make."""
    capture, encoder = session.capture, session.encoder
    arrays = capture.arrays(session.widths)
    dtype = config.capture.dtype or config.model.dtype
    row_bytes = [array.hidden * DTYPES[dtype].itemsize for array in arrays]
    if any(array.ragged for array in arrays):
        of_layers = sum(len(a.layers) * a.hidden for a in arrays if a.ragged) * DTYPES[dtype].itemsize
        # A range's chunk budget stands for one row here, so many times smaller than the range's.
        row_bytes.append(-(-_mean_length(dataset, encoder) * of_layers * _CHUNK_BYTES // _RANGE_BYTES))
    return Schema(
        arrays=arrays,
        n_samples=len(dataset),
        range_size=config.run.range_size or plan_range_size(len(dataset), row_bytes),
        model=dict(session.model.provenance),
        data={"fingerprint": dataset.fingerprint()} | encoder.settings,
        capture={"sites": list(capture.sites), "tokens": list(capture.tokens), "layers": _layers(capture)},
        # Where the store lies, and who prepared the samples, is no part of it: the bytes do not depend on it.
        config=json.loads(config.model_dump_json(exclude_none=True, exclude={"run": {"out", "fsync", "encoders"}})),
        dtype=dtype,
        codec=config.capture.codec or "none",
    )


def open_destination(
    location: Location, mode: Mode, config: ExtractConfig, dataset: Dataset, schema: Schema
) -> Destination:
    """Make, or open, the store, with room and labels for the data set.

    Raises
    ------
    InputError
        If labels cannot be used, or a sample to be appended is in the store.
    StoreError
        If the store to go on with is of another model, data set, capture or dtype.
    """
    columns = {"id": [s.id for s in dataset.samples], "group": [s.group for s in dataset.samples]}
    splits = [s.split for s in dataset.samples]
    if mode == "new":
        labels = [Labels.from_column(n, dataset.column(n), classes=dataset.classes.get(n)) for n in dataset.labels]
        store = Store.create(location, schema, columns | ({"split": splits} if any(splits) else {}))
        for column in labels:
            store.write_labels(column)
        return Destination(store, 0, store.missing)
    store = Store.open(location)
    _check_same(store, schema, config, new_data=mode == "append")
    fingerprint = str(schema.data["fingerprint"])
    if mode == "append":
        if "split" in store.columns:
            columns["split"] = splits
        elif any(splits):
            raise InputError(f"the samples name splits, but {store.location} has none: leave them out to append")
        store.append(columns, fingerprint=fingerprint)
    sizes = [part.n_samples for part in store.schema.parts]
    index = [part.fingerprint for part in store.schema.parts].index(fingerprint)
    first = sum(sizes[:index])
    for name in dataset.labels:
        _merge_labels(store, name, dataset, first)
    missing = tuple(r for r in store.missing if first <= r.start < first + sizes[index])
    return Destination(store, first, missing)


def _merge_labels(store: Store, name: str, dataset: Dataset, first: int) -> None:
    """Put the data set's labels beside those of the samples that were there before."""
    values = list(dataset.column(name))
    classes: Sequence[str] | None = dataset.classes.get(name)
    kind = None
    column: list[Any] = [None] * store.n_samples
    if name in store.label_names:
        there = store.labels(name)
        column, kind = there.column(), there.kind
        if there.present[first : first + len(values)].any() or first == 0:
            return
        # Old classes keep their numbers.
        found = {
            str(v) for value in values if value is not None for v in (value if isinstance(value, tuple) else [value])
        }
        classes = (*there.names, *sorted({*(classes or ()), *found} - {*there.names})) if there.names else None
    column[first : first + len(values)] = values
    store.write_labels(Labels.from_column(name, column, kind=kind, classes=classes), overwrite=True)


def _layers(capture: Capture) -> Any:
    """Layers as the configuration names them: one list where all sites that have a choice have the same."""
    chosen = {site: list(capture.layers[site]) for site in capture.sites if site not in FIXED}
    lists = list(chosen.values())
    if not lists:
        return list(range(capture.n_layers))
    return lists[0] if all(layers == lists[0] for layers in lists) else chosen


def _mean_length(dataset: Dataset, encoder: Encoder) -> int:
    """Mean number of tokens of a few samples, evenly spaced."""
    lengths = []
    for row in np.linspace(0, len(dataset) - 1, min(_SAMPLED, len(dataset))).astype(int).tolist():
        try:
            lengths.append(encoder(row, dataset.samples[row]).length)
        except InputError:
            continue
    return int(np.mean(lengths)) + 1 if lengths else 1


def _check_same(store: Store, wanted: Schema, config: ExtractConfig, *, new_data: bool) -> None:
    there = store.schema
    verb = "made" if new_data else "begun"
    remedy = "append with the same configuration" if new_data else "resume with the same configuration"
    known = [part.fingerprint for part in there.parts]
    fingerprint = wanted.data["fingerprint"]
    old_data = {**there.data, "fingerprint": fingerprint if new_data or fingerprint in known else known[0]}
    pairs: list[tuple[str, Any, Any]] = [("dtype", there.dtype, wanted.dtype), ("model", there.model, wanted.model)]
    pairs += [("data", old_data, wanted.data), ("capture", there.capture, wanted.capture)]
    if not new_data and fingerprint not in known:
        pairs.insert(0, ("n_samples", there.n_samples, wanted.n_samples))
    if config.capture.codec is not None:
        pairs.append(("codec", there.codec, wanted.codec))
    for what, old, new in pairs:
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
            what, old, new = f"{what} {key}", old.get(key), new.get(key)
        raise StoreError(
            f"{store.location} was {verb} with another {what}: {old!r} there, {new!r} now; {remedy}, "
            "or choose another --out"
        )
    if config.run.range_size and config.run.range_size != there.range_size:
        raise StoreError(
            f"{store.location} was {verb} with range_size {there.range_size}, now it is {config.run.range_size}; "
            f"leave run.range_size out to {remedy.split()[0]}"
        )
