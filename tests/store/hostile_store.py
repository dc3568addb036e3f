"""Sound stores of every dtype, to make mutants of, and a reader that uses all of a store."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonde.store import ArraySpec, Labels, Location, Schema, Store

from .hostile import PEAK_BYTES, WATCH, Files, bounded_memory, dumps, sign_root
from .observe import observe

ROWS = ArraySpec("resid_post", "last", (0, 3), 4)
TOKENS = ArraySpec("z", "all", (1, 2), 4)
KINDS = {
    "colour": ["red", "blue", None, "red", "blue"],
    "topics": [["a"], ["b", "a"], [], None, ["b"]],
    "score": [0.5, None, 2.5, 3.5, -1.5],
}


@dataclass(frozen=True, slots=True)
class Base:
    """A sound store: five samples and two that were appended, labels of three kinds, a skipped sample."""

    path: Path
    store: Store
    files: Files

    def reopen(self) -> Store:
        return Store.open(self.path)

    def keys(self, *beginnings: str) -> list[str]:
        return sorted(key for key in self.files if key.startswith(beginnings))


def build(path: Path, dtype: str, codec: str) -> Base:
    schema = Schema((ROWS, TOKENS), 5, 2, {"name": "tiny"}, {}, dtype=dtype, codec=codec)
    store = Store.create(path, schema, {"id": list("abcde"), "group": list("vvwwx")}, fsync=False)
    for name, values in KINDS.items():
        store.write_labels(Labels.from_column(name, values))
    store.append({"id": ["f", "g"], "group": ["y", "y"]})
    draw = np.random.default_rng(0)
    for range_ in store.ranges:
        buffers = store.writer().buffers()
        buffers[ROWS.name][:] = draw.normal(size=buffers[ROWS.name].shape)
        for row in range(range_.start, range_.stop):
            values = draw.normal(size=(2, 3, 4)).astype(store.schema.numpy_dtype)
            buffers[TOKENS.name].put(row, values, [5, 6, 7], [1, 0, 0])
        store.writer().commit(range_, buffers, {1: "broken"} if range_.index == 0 else None)
    store.refresh()
    store.pool("mean")
    (path / "log/run.json").write_text(json.dumps(dict.fromkeys(("seconds", "samples", "tokens", "nbytes"), 7)))
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    return Base(path, Store.open(path), files)


def read_all(location: Location) -> Any:
    """Use all of a store that a reader uses."""
    store = Store.open(location)
    facts = store.info(), store.throughput(), repr(store), len(store.missing), len(store.ranges), store.complete
    for spec in store.arrays:
        for layer in spec.layers[:3]:
            if spec.ragged:
                tokens = store.tokens(spec.site, layer)
                tokens.samples(range(min(3, len(tokens))))
            elif store.complete:
                store.layer(spec.site, spec.tokens, layer).numpy()
    for name in store.label_names:
        labels = store.labels(name)
        assert len(labels.column()) == len(labels.present) == store.n_samples
        labels.counts()
    return facts, observe(store)


def copy_of(base: Base, path: Path) -> Base:
    shutil.copytree(base.path, path)
    return Base(path, Store.open(path), base.files)


def read_watched(base: Base) -> None:
    """Read all of a store: no file outside of it is touched, it ends, and it stays below a bound of memory."""
    with bounded_memory() as peak, WATCH.over(base.path):
        try:
            read_all(base.store.location)
        finally:
            assert peak() < PEAK_BYTES, f"{peak() >> 20} MiB"


def put(base: Base, files: Files) -> None:
    for key, data in files.items():
        (base.path / key).parent.mkdir(parents=True, exist_ok=True)
        (base.path / key).write_bytes(data)


def forged_schema(base: Base, change: Callable[[dict[str, Any]], object]) -> Files:
    root = json.loads(base.files["zarr.json"])
    change(root["attributes"]["sonde"])
    return {"zarr.json": sign_root(root)}


def edit(base: Base, key: str, **changes: Any) -> Files:
    """The metadata at ``key`` with other fields."""
    return {key: dumps(json.loads(base.files[key]) | changes)}
