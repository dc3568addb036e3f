"""What is added to a store later: samples in ranges of their own, and arrays pooled of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from sonde.errors import InputError, StoreError

from . import metadata
from .columns import check_columns
from .commit import Commit
from .contents import Contents
from .pooling import check_pooling, pool, source_of
from .schema import ALL, SCHEMA_VERSION, ArraySpec, Part
from .writer import WRITERS, RangeWriter


def append_samples(store: Contents, columns: Mapping[str, Sequence[str]], *, fingerprint: str = "") -> range:
    """Make room for more samples, in ranges of their own behind those that are there.

    Who reads the earlier samples goes on undisturbed. It is for the caller to hold ``store.location.lock()``, and
    to see to it that the new activations are of the same model and data settings: `sonde.extract` does both.

    Parameters
    ----------
    columns
        Text per new sample; the same columns as the store has, ids that are not in it.
    fingerprint
        Of the data set that they are of. If it is that of the latest part, as after an append that was cut off,
        nothing is added.

    Returns
    -------
    range
        The new samples' numbers; their ranges are missing until they are committed.

    Raises
    ------
    InputError
        If the columns are others than the store's, or an id is in it already.
    StoreError
        If the store is of an older schema, which cannot grow.
    """
    # Objects grow or are replaced one by one, the schema last: old readers, and a crash, find the old store.
    schema, digests = metadata.open_schema(store.location)
    fresh = type(store)(store.location, schema, digests)
    if fingerprint and fingerprint == schema.parts[-1].fingerprint:
        store.reopen()
        return range(schema.n_samples - schema.parts[-1].n_samples, schema.n_samples)
    if schema.version < SCHEMA_VERSION:
        raise StoreError(
            f"{store.location} is of schema version {schema.version}, which cannot grow: `sonde copy` makes a "
            f"store of version {SCHEMA_VERSION} of it"
        )
    n_new = len(columns.get("id", ()))
    check_columns(columns, n_new)
    if columns.keys() != fresh.columns.keys():
        raise InputError(
            f"the new samples have columns {sorted(columns)}, the store has {sorted(fresh.columns)}: give the same"
        )
    twice = set(columns["id"]).intersection(fresh.ids.tolist())
    if twice:
        raise InputError(f"sample {min(twice)!r} is in {store.location} already: append only new samples")
    joined = {name: [*column.tolist(), *columns[name]] for name, column in fresh.columns.items()}
    parts = (*schema.parts, Part(n_new, fingerprint))
    metadata.extend(store.location, replace(schema, parts=parts, n_samples=schema.n_samples + n_new), joined)
    store.reopen()
    return range(schema.n_samples, store.n_samples)


def pool_tokens(store: Contents, tokens: str, *, sites: Sequence[str] | None = None) -> tuple[ArraySpec, ...]:
    """Make an array of one row per sample out of an array of tokens, without the model.

    Of arrays of ``all`` tokens every pooling can be made; of ``all:image`` its ``image_mean``, of ``all:text`` its
    ``text_mean``.

    The mean and the maximum are taken in float32. Ranges that are extracted later fill the array as well.

    Parameters
    ----------
    tokens
        ``last``, ``first``, ``mean``, ``max``, ``image_mean`` or ``text_mean``, and the new array's name. A sample
        without such a token gets a row of NaN.
    sites
        Which; all that keep the tokens if left out.

    Returns
    -------
    tuple of ArraySpec
        The new arrays.

    Raises
    ------
    InputError
        If there is no such pooling.
    StoreError
        If a site does not keep the tokens, or has such an array already.
    """
    # Chunks come first, then every range's commit is replaced by one that has them too, the schema last: until then
    # they are not there, and it can be done again.
    check_pooling(tokens)
    found = {site: source_of(store.arrays, site, tokens) for site in (store.sites if sites is None else sites)}
    # A site that was asked for and keeps no such tokens is an error that names what the store has.
    chosen = [source or store.array(site, ALL) for site, source in found.items() if source or sites is not None]
    if not chosen:
        raise StoreError(
            f"{store.location} keeps no array of all tokens to make {tokens!r} of: extract one with "
            f'capture.tokens = ["{ALL}"]'
        )
    new = tuple(replace(spec, tokens=tokens, pooled=True) for spec in chosen)
    there = {spec.name for spec in store.arrays} & {spec.name for spec in new}
    if there:
        raise StoreError(f"{store.location} has activations {min(there)!r} already: read them, or pool otherwise")
    with store.location.lock():
        schema, digests = metadata.open_schema(store.location)
        fresh = type(store)(store.location, schema, digests)
        grown = replace(schema, arrays=(*schema.arrays, *new))
        metadata.add_arrays(store.location, grown)
        writer = RangeWriter(store.location, grown)
        for commit in fresh.commits.values():
            _pool_range(fresh, writer, commit, new)
        metadata.publish_schema(store.location, grown, digests)
    store.reopen()
    return new


def _pool_range(store: Contents, writer: RangeWriter, commit: Commit, new: Sequence[ArraySpec]) -> None:
    arrays = dict(commit.arrays)
    with ThreadPoolExecutor(WRITERS) as threads:
        for spec in new:
            buffer = writer.empty(spec)
            source = source_of(store.arrays, spec.site, spec.tokens)
            assert source is not None
            for row, layer in enumerate(spec.layers):
                tokens = store.tokens(spec.site, layer, source.tokens).range(commit.range.index)
                for i in range(len(tokens)):
                    kinds = tokens.modality[tokens.offsets[i] : tokens.offsets[i + 1]]
                    buffer[row, i] = pool(tokens.sample(i), kinds, spec.tokens)
            arrays[spec.name] = writer.write_rows(threads, spec, commit.range, buffer, commit.skipped)
    store.location.sync([folder for spec in new for folder in arrays[spec.name].folders])
    replace(commit, arrays=arrays).publish(store.location)
