"""Whatever is done to a store, and wherever it is cut off, a reader finds what a model in memory says."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import ArraySpec, Directory, Schema, Store, metadata

from .store_model import Model

ROWS = ArraySpec("resid_post", "last", (0, 5), 4)
TOKENS = ArraySpec("z", "all", (0, 3), 3)
NAMES = ("id", "group")
LABELS: Mapping[str, st.SearchStrategy[Any]] = {
    "binary": st.sampled_from([0, 1, None]),
    "multiclass": st.sampled_from(["red", "blue", "a long name", "ä", None]),
    "multilabel": st.one_of(st.none(), st.lists(st.sampled_from("abc"), unique=True).map(sorted)),
    "regression": st.one_of(st.none(), st.floats(-1e6, 1e6).map(lambda x: x + 0.5)),
}
BUDGET = st.one_of(st.none(), st.integers(0, 12))
"""Objects that can be written before the disk is full; None for a disk with room."""


class FullDisk(Directory):
    """A folder on a disk that is full after some objects: the next one is written by half."""

    def __init__(self, root: Path, budget: int | None) -> None:
        super().__init__(root, fsync=False)
        self._left = budget

    def _spend(self) -> bool:
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0

    def write(self, key: str, parts: Iterable[Any]) -> None:
        if not self._spend():
            super().write(key, [bytes(part)[:-1] for part in parts])
            raise OSError(errno.ENOSPC, "full", key)
        super().write(key, parts)

    def publish(self, key: str, data: bytes) -> None:
        if not self._spend():
            super().write(str(Path(key).with_name(f".{Path(key).name}.partial")), [data[:-1]])
            raise OSError(errno.ENOSPC, "full", key)
        super().publish(key, data)


class StoreMachine(RuleBasedStateMachine):
    folder: str

    def __init__(self) -> None:
        super().__init__()
        self.path = Path(tempfile.mkdtemp(dir=self.folder)) / "run.zarr"

    def teardown(self) -> None:
        shutil.rmtree(self.path.parent)

    def store(self, budget: int | None = None) -> Store:
        location = FullDisk(self.path, budget)
        return Store(location, *metadata.open_schema(location))

    def draw(self, data: st.DataObject, choices: Iterable[Any]) -> Any:
        return data.draw(st.sampled_from(sorted(choices)))

    @initialize(
        dtype=st.sampled_from(["bfloat16", "float16", "float32", "int8"]),
        codec=st.sampled_from(["none", "zstd", "lz4+bitshuffle"]),
        arrays=st.sampled_from([(ROWS,), (TOKENS,), (ROWS, TOKENS)]),
        n_samples=st.integers(1, 7),
        range_size=st.integers(1, 4),
    )
    def create(self, dtype: str, codec: str, arrays: tuple[ArraySpec, ...], n_samples: int, range_size: int) -> None:
        self.model = Model(dtype, arrays, n_samples, range_size)
        schema = Schema(arrays, n_samples, range_size, {"name": "tiny"}, {}, dtype=dtype, codec=codec)
        Store.create(self.path, schema, self.model.columns, fsync=False)

    @precondition(lambda self: self.model.missing)
    @rule(data=st.data(), budget=BUDGET, skip=st.booleans())
    def commit(self, data: st.DataObject, budget: int | None, skip: bool) -> None:
        index = self.draw(data, self.model.missing)
        store = self.store(budget)
        range_ = store.ranges[index]
        assert (range_.start, range_.stop) == self.model.bounds(index)
        skipped = {range_.stop - 1: "broken"} if skip else {}
        buffers = store.writer().buffers()
        truth = self.model.draw_range(index, skipped)
        for name, buffer in buffers.items():
            for row, values in truth.items():
                if isinstance(buffer, np.ndarray):
                    buffer[:, row - range_.start] = values[name]
                elif row not in skipped:
                    buffer.put(row, *values[name])
        try:
            store.writer().commit(range_, buffers, skipped)
        except OSError:
            return
        self.model.commit(index, truth, skipped)

    @precondition(lambda self: self.model.committed)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        index = self.draw(data, self.model.committed)
        store = self.store()
        store.forget([store.ranges[index]])
        self.model.forget(index)

    @rule(n_new=st.integers(1, 5), budget=BUDGET)
    def append(self, n_new: int, budget: int | None) -> None:
        new = self.model.new_columns(n_new)
        store = self.store(budget)
        try:
            rows = store.append(new, fingerprint=new["id"][0])
        except OSError:
            assert store.n_samples == self.model.n_samples
            return
        assert rows == range(self.model.n_samples, self.model.n_samples + n_new)
        self.model.append(new)
        # As if the answer had not been heard.
        assert self.store().append(new, fingerprint=new["id"][0]) == rows

    @rule(data=st.data(), name=st.sampled_from(["x", "y"]), kind=st.sampled_from(sorted(LABELS)), budget=BUDGET)
    def label(self, data: st.DataObject, name: str, kind: Any, budget: int | None) -> None:
        n = self.model.n_samples
        values = data.draw(st.lists(LABELS[kind], min_size=n, max_size=n))
        if not any(value not in (None, []) for value in values):
            return
        ids = self.model.columns["id"]
        if name in self.model.labels:
            with pytest.raises(StoreError, match="already"):
                self.store(budget).add_labels(name, ids, values, kind=kind)
        try:
            self.store(budget).add_labels(name, ids[::-1], values[::-1], kind=kind, overwrite=True)
        except OSError:
            return
        self.model.labels[name] = kind, values

    @precondition(lambda self: self.model.poolable)
    @rule(data=st.data(), budget=BUDGET)
    def pool(self, data: st.DataObject, budget: int | None) -> None:
        tokens = self.draw(data, self.model.poolable)
        store = self.store(budget)
        try:
            store.pool(tokens)
        except OSError:
            assert f"z/{tokens}" not in {spec.name for spec in store.arrays}
            return
        self.model.pool(tokens)

    @rule(data=st.data(), size=st.integers(0, 40))
    def leave_litter(self, data: st.DataObject, size: int) -> None:
        """A writer was killed before it could rename."""
        targets = ["zarr.json", "commits/00000000.json", "samples/id/c/0", "samples/zarr.json", "labels/x/zarr.json"]
        target = self.path / data.draw(st.sampled_from(targets))
        if target.parent.is_dir():
            target.with_name(f".{target.name}.partial").write_bytes(bytes(size))

    @precondition(lambda self: self.model.committed)
    @rule(data=st.data(), damage=st.sampled_from(["flip", "truncate", "extend", "remove", "swap", "record"]))
    def corrupt(self, data: st.DataObject, damage: str) -> None:
        """Bytes rot; they are found where they are, and only there, and their ranges can be made again."""
        index = self.draw(data, self.model.committed)
        record = self.path / f"commits/{index:08d}.json"
        chunks = [path for pattern in self.model.chunk_patterns(index) for path in self.path.glob(pattern)]
        one, other = (data.draw(st.sampled_from(sorted(chunks))) for _ in range(2))
        whole = one.read_bytes()
        where = data.draw(st.integers(0, len(whole) - 1))
        if damage == "flip":
            one.write_bytes(whole[:where] + bytes([whole[where] ^ 1 << where % 8]) + whole[where + 1 :])
        elif damage == "truncate":
            one.write_bytes(whole[:where])
        elif damage == "extend":
            one.write_bytes(whole + b"\0")
        elif damage == "remove":
            one.unlink()
        elif damage == "record":
            record.write_bytes(record.read_bytes()[:where])
        elif other.read_bytes() == whole:
            return
        else:
            one.write_bytes(other.read_bytes())
            other.write_bytes(whole)
        if damage == "record":
            with pytest.raises(CorruptStoreError):
                Store.open(self.path)
        store = Store.open(self.path, strict=False)
        found = store.verify()
        assert [d.range.index for d in found if d.range is not None] == [index] == [index] * len(found)
        assert store.repair(found) == []
        self.model.forget(index)

    @precondition(lambda self: self.model.committed)
    @rule(data=st.data())
    def read_rows(self, data: st.DataObject) -> None:
        store, n = self.store(), self.model.n_samples
        there = [row for index in self.model.committed for row in range(*self.model.bounds(index))]
        rows = data.draw(st.lists(st.sampled_from(there), max_size=2 * n))
        spec = data.draw(st.sampled_from(store.arrays))
        layer = data.draw(st.sampled_from(spec.layers))
        if spec.ragged:
            read: Any = store.tokens(spec.site, layer).samples(rows)
        else:
            read = store.layer(spec.site, spec.tokens, layer).rows(rows)
        for row, x in zip(rows, read, strict=True):
            self.model.check(spec, layer, row, x)

    @rule()
    def verify(self) -> None:
        assert self.store().verify() == []

    @invariant()
    def a_reader_finds_what_the_model_says(self) -> None:
        store, model = Store.open(self.path), self.model
        assert {name: store.columns[name].tolist() for name in NAMES} == model.columns
        assert store.n_samples == model.n_samples
        assert set(store.commits) == model.committed
        assert {range_.index for range_ in store.missing} == model.missing
        assert store.skipped == model.skipped
        assert np.flatnonzero(store.valid).tolist() == model.valid
        assert [spec.name for spec in store.arrays] == model.array_names
        assert {name: model.read_labels(store.labels(name)) for name in store.label_names} == model.expected_labels()
        for spec in store.arrays:
            for layer in spec.layers:
                read: list[Any] = []
                if spec.ragged:
                    for part in store.tokens(spec.site, layer):
                        model.check_layout(part)
                        read += [(part.rows.start + i, part.sample(i)) for i in range(len(part))]
                else:
                    for rows, x in store.layer(spec.site, spec.tokens, layer):
                        read += zip(range(*rows.indices(store.n_samples)), x, strict=True)
                assert [row for row, _ in read] == model.rows
                for row, x in read:
                    model.check(spec, layer, row, x)
                if store.complete and not spec.ragged:
                    whole = store.layer(spec.site, spec.tokens, layer).numpy()
                    assert whole.tobytes() == np.stack([x for _, x in read]).tobytes()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    StoreMachine.folder = str(tmp_path)


class TestStore(StoreMachine.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(
        max_examples=int(os.environ.get("SONDE_STATE_EXAMPLES", "45")),
        stateful_step_count=25,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
