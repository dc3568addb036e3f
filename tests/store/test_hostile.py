"""What lies in a store is read as it was written, or refused: it cannot run code, lead out, or take all memory."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from sonde.errors import SondeError
from sonde.store import Location, Store, metadata

from .hostile import (
    PEAK_BYTES,
    WATCH,
    Files,
    bounded_memory,
    dumps,
    forge_chunk,
    mutate_bytes,
    mutate_json,
    sign_commit,
    sign_labels,
    sign_root,
    with_crc,
)
from .hostile_store import KINDS, Base, build, read_all

CASES = int(os.environ.get("SONDE_FUZZ_CASES", "2000"))
FIRST = int(os.environ.get("SONDE_FUZZ_FIRST", "0"))


@dataclass(frozen=True, slots=True)
class Mutant:
    """Files that are another, how to read what they have a say in, and whether they were signed as if sound."""

    files: Files
    read: Callable[[Location], Any]
    forged: bool = False


@pytest.fixture(scope="module")
def bases(scratch: str) -> Iterator[list[Base]]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        kinds = [("bfloat16", "none"), ("int8", "zstd"), ("float16", "lz4+bitshuffle")]
        found = [build(Path(folder) / f"{dtype}.zarr", dtype, codec) for dtype, codec in kinds]
        for base in found:
            read_all(base.store.location)
        yield found


def read_commits(base: Base) -> Callable[[Location], Any]:
    def read(location: Location) -> Any:
        store = Store(location, base.store.schema, base.store._digests)
        for error in store.damaged_records.values():
            raise error
        layer, tokens = store.layer("resid_post", "last", 3), store.tokens("z", 1)
        parts = [(part.values.tobytes(), part.offsets.tobytes(), part.token_ids.tobytes()) for part in tokens]
        rows = tokens.samples(list(range(len(tokens))))
        nonfinite = store.info()["nonfinite"]
        return store.skipped, store.valid.tolist(), nonfinite, layer.numpy().tobytes(), parts, [x.shape for x in rows]

    return read


def read_columns(base: Base) -> Callable[[Location], Any]:
    def read(location: Location) -> Any:
        columns = Store(location, base.store.schema, base.store._digests).columns
        return {name: column.tolist() for name, column in columns.items()}

    return read


def read_labels(base: Base) -> Callable[[Location], Any]:
    def read(location: Location) -> Any:
        found = {}
        for name in base.store.label_names:
            labels = base.store.labels(name)
            labels.counts()
            found[name] = labels.kind, labels.names, labels.column(), labels.present.tolist()
        return found

    return read


def find_damage(base: Base) -> Callable[[Location], Any]:
    return lambda location: bool(metadata.damage(location, base.store.schema, base.store.ids))


Target = Callable[[Random, Base], Mutant]
TARGETS: dict[str, Target] = {}


def target(make: Target) -> Target:
    TARGETS[make.__name__.replace("_", " ")] = make
    return make


def changed(draw: Random, base: Base, key: str) -> Files:
    """One file, changed as bytes or as JSON, without a new checksum."""
    data = base.files[key]
    if key.endswith(".json") and draw.random() < 0.5:
        return {key: dumps(mutate_json(draw, json.loads(data)))}
    return {key: mutate_bytes(draw, data, base.files)}


@target
def root_metadata(draw: Random, base: Base) -> Mutant:
    return Mutant(changed(draw, base, "zarr.json"), read_all)


@target
def forged_root_metadata(draw: Random, base: Base) -> Mutant:
    root = json.loads(base.files["zarr.json"])
    if draw.random() < 0.8:
        part = root["attributes"]["sonde"]
        mutate_json(draw, draw.choice([part, part["arrays"], part["parts"], part["arrays"][0]]))
    else:
        root = mutate_json(draw, root)
    return Mutant({"zarr.json": sign_root(root)}, read_all, forged=True)


@target
def commits(draw: Random, base: Base) -> Mutant:
    return Mutant(changed(draw, base, draw.choice(base.keys("commits/0"))), read_commits(base))


@target
def forged_commits(draw: Random, base: Base) -> Mutant:
    key = draw.choice(base.keys("commits/0"))
    record = json.loads(base.files[key])
    parts = [record, record["skipped"], record["range"], *record["arrays"].values()]
    parts += [array["tokens"] for array in record["arrays"].values() if "tokens" in array]
    mutate_json(draw, draw.choice(parts))
    return Mutant({key: sign_commit(record)}, read_commits(base), forged=True)


@target
def chunks(draw: Random, base: Base) -> Mutant:
    keys = [key for key in base.keys("activations/resid_post/last", "activations/z/all") if "/c." in key]
    key = draw.choice(keys)
    return Mutant({key: mutate_bytes(draw, base.files[key], base.files)}, read_commits(base))


@target
def forged_chunks(draw: Random, base: Base) -> Mutant:
    index = draw.randrange(len(base.store.ranges))
    keys = [*base.keys(f"activations/z/all/{index:08d}/"), *base.keys("activations/resid_post/last")]
    keys = [key for key in keys if f"/{index:08d}/" in key or f".{index}" in key]
    key = draw.choice([key for key in keys if "/c." in key])
    if "offsets" in key and draw.random() < 0.7:
        edges = [0, 1, 2, 3, 6, -1, 2**62, 2**63 - 1, -(2**63)]
        count = (len(base.files[key]) - 4) // 8
        offsets = [0, *(draw.choice(edges) for _ in range(count - 2)), 3 * (count - 1)]
        data = np.array(offsets, dtype="<i8").tobytes()
    else:
        data = mutate_bytes(draw, base.files[key][:-4], base.files)
    return Mutant(forge_chunk(base.files, f"commits/{index:08d}.json", key, data), read_commits(base), forged=True)


@target
def columns(draw: Random, base: Base) -> Mutant:
    key = draw.choice(base.keys("samples/"))
    files = changed(draw, base, key)
    if "/c/" in key and draw.random() < 0.5:
        files = {key: with_crc(mutate_bytes(draw, base.files[key][:-4], base.files))}
    return Mutant(files, read_columns(base))


@target
def label_files(draw: Random, base: Base) -> Mutant:
    key = draw.choice(base.keys("labels/"))
    files = changed(draw, base, key)
    if "/c/" in key and draw.random() < 0.5:
        files = {key: with_crc(mutate_bytes(draw, base.files[key][:-4], base.files))}
    return Mutant(files, read_labels(base))


@target
def forged_labels(draw: Random, base: Base) -> Mutant:
    folder = f"labels/{draw.choice(sorted(KINDS))}"
    group, array = (json.loads(base.files[f"{folder}/{name}zarr.json"]) for name in ("", "values/"))
    [chunk] = base.keys(f"{folder}/values/c")
    values = base.files[chunk]
    match draw.randint(0, 2):
        case 0:
            mutate_json(draw, draw.choice([group["attributes"], group["attributes"]["names"]]))
        case 1:
            mutate_json(draw, draw.choice([array, array["codecs"], array["chunk_grid"], array["shape"]]))
        case _:
            values = with_crc(mutate_bytes(draw, values[:-4], base.files))
    files = {f"{folder}/zarr.json": sign_labels(group, array, values), f"{folder}/values/zarr.json": dumps(array)}
    return Mutant({chunk: values} | files, read_labels(base), forged=True)


@target
def metadata_for_others(draw: Random, base: Base) -> Mutant:
    keys = [key for key in base.keys("activations/") if "/c." not in key and "/all/" not in key]
    return Mutant(changed(draw, base, draw.choice(keys)), find_damage(base), forged=True)


@target
def logs(draw: Random, base: Base) -> Mutant:
    return Mutant(changed(draw, base, "log/run.json"), lambda location: base.store.throughput(), forged=True)


def attempt(base: Base, mutant: Mutant, expected: Any, what: str) -> str:
    """Put a mutant in place, read it under watch, and put the sound files back."""
    for key, data in mutant.files.items():
        (base.path / key).write_bytes(data)
    try:
        with WATCH.over(base.path):
            try:
                found = mutant.read(base.store.location)
            except SondeError:
                return "refused"
            except Exception as error:
                raise AssertionError(f"{what}: {error!r}") from error
    finally:
        for key in mutant.files:
            (base.path / key).write_bytes(base.files[key])
    assert mutant.forged or found == expected, f"{what}: other data than was written"
    return "read"


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutant_is_read_as_it_was_written_or_refused(bases: list[Base], name: str) -> None:
    outcomes = {"read": 0, "refused": 0}
    expected: dict[tuple[str, int], Any] = {}
    with bounded_memory() as peak:
        for i in range(FIRST, FIRST + CASES // len(TARGETS)):
            draw = Random(f"{name} {i}")
            base = bases[i % len(bases)]
            mutant = TARGETS[name](draw, base)
            key = mutant.read.__qualname__, i % len(bases)
            if not mutant.forged and key not in expected:
                expected[key] = mutant.read(base.store.location)
            outcomes[attempt(base, mutant, expected.get(key), f"case {i} of {name} of {base.path.name}")] += 1
            assert peak() < PEAK_BYTES, f"case {i} of {name}: {peak() >> 20} MiB"
    assert name in ("logs", "metadata for others") or outcomes["refused"]
    assert outcomes["read"] or CASES < 1000
