"""A power cut at any moment leaves the old store or the new one, whatever the disk had not been told to keep."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import ArraySpec, Directory, Labels, Range, Schema, Store, metadata

from .crash import Disk, Mirror, crashes, record
from .observe import observe

NAME = "run.zarr"
N_SAMPLES, RANGE_SIZE, HIDDEN = 5, 2, 3
ROWS = ArraySpec("resid_post", "last", (0, 4), HIDDEN)
TOKENS = ArraySpec("mlp_out", "all", (0, 4), HIDDEN)
COLUMNS = {"id": [f"s{i}" for i in range(N_SAMPLES)], "group": list("aabbc")}
MORE = {"id": ["t0", "t1", "t2"], "group": list("ccd")}
SCHEMA = Schema((ROWS,), N_SAMPLES, RANGE_SIZE, {"name": "tiny"}, {"fingerprint": "f"})
Observation = Mapping[str, Any] | None
Step = Callable[[Path], None]


def look(path: Path) -> Observation:
    """Everything that a reader can learn; None where there is no store."""
    try:
        return observe(Store.open(path))
    except CorruptStoreError:
        raise
    except StoreError:
        return None


def assert_old_or_new(folder: Path, *steps: Step, path: str = NAME, fsync: bool = True) -> None:
    """Run steps on the store at ``folder / path``, and hold every state that a crash may leave against theirs.

    Before, between and after the steps the store is in a state of its own, durably; a crash leaves the one before or
    the one after. Without ``fsync`` only the process crashes.
    """
    mirror = Mirror(folder.parent / "after the crash")
    new = look(folder / path)
    for step in steps:
        disk, old = Disk(folder), new
        with record(folder) as operations:
            step(folder / path)
        new = look(folder / path)
        assert old != new, "the step does nothing"
        assert all(state is None or not state["damage"] for state in (old, new))
        for what, image in crashes(disk, operations, fsync=fsync):
            try:
                found = look(mirror.show(image) / path)
            except StoreError as error:
                raise AssertionError(f"{what}: {error}") from error
            assert found in (old, new), f"{what}: neither the old store nor the new one"
        assert disk.issued() == Disk(folder).issued(), "the recorder missed an operation"
        if fsync:
            assert look(mirror.show(disk.durable()) / path) == new, "what was done is not on the disk"


def create(schema: Schema = SCHEMA) -> Step:
    return lambda path: void(Store.create(path, schema, COLUMNS))


def void(result: object) -> None:
    """For steps that are one call."""


def commit(ranges: Iterable[int], seed: int = 0, *, skip: int | None = None) -> Step:
    def step(path: Path) -> None:
        store = Store.open(path)
        for index in ranges:
            fill(store, store.ranges[index], seed, {} if skip is None else {skip: "broken"})

    return step


def fill(store: Store, range_: Range, seed: int, skipped: Mapping[int, str]) -> None:
    draw = np.random.default_rng([seed, range_.index])
    buffers = store.writer().buffers()
    dtype = store.schema.numpy_dtype
    for spec in (a for a in store.arrays if not a.pooled):
        if not spec.ragged:
            buffers[spec.name][:] = draw.normal(size=buffers[spec.name].shape)
            continue
        for row in range(range_.start, range_.stop):
            n = 1 + row % 3
            values = draw.normal(size=(len(spec.layers), n, spec.hidden)).astype(dtype)
            buffers[spec.name].put(row, values, np.arange(n), np.arange(n) % 2)
    store.writer().commit(range_, buffers, skipped)


def forget(index: int) -> Step:
    return lambda path: (store := Store.open(path)).forget([store.ranges[index]])


def label(values: Sequence[Any]) -> Step:
    return lambda path: Store.open(path).write_labels(Labels.from_column("x", values), overwrite=True)


COLOURS = label(["red", "blue", None, "red", "blue"])
SHADES = label(["pink", "pink", "navy", None, "navy"])
TOPICS = label([["a"], ["b"], ["a", "c"], [], None])
SCORES = label([0.5, 1.5, 2.5, None, 3.5])


def append(path: Path) -> None:
    assert Store.open(path).append(MORE, fingerprint="more") == range(5, 8)


def pool(path: Path) -> None:
    Store.open(path).pool("mean")


def all_tokens(dtype: str, codec: str = "none") -> Schema:
    return replace(SCHEMA, arrays=(TOKENS,), dtype=dtype, codec=codec)


CASES: dict[str, tuple[list[Step], list[Step]]] = {
    "commit a range": ([create()], [commit([1])]),
    "commit the last, short range with a skipped sample": ([create(), commit([0])], [commit([2], skip=4)]),
    "replace a range": ([create(), commit([0, 1, 2])], [forget(1), commit([1], seed=1)]),
    "commit a range of int8": ([create(replace(SCHEMA, dtype="int8"))], [commit([0])]),
    "commit a range of all tokens": ([create(all_tokens("int8", "zstd"))], [commit([0])]),
    "replace a range of all tokens": ([create(all_tokens("int8")), commit([0])], [forget(0), commit([0], seed=1)]),
    "add labels": ([create()], [COLOURS]),
    "overwrite labels": ([create(), COLOURS], [SHADES, COLOURS, SHADES]),
    "overwrite labels by such of another kind": ([create(), COLOURS], [TOPICS, SCORES, TOPICS]),
    "append samples": ([create(), commit([0, 2]), COLOURS], [append]),
    "commit what was appended": ([create(), commit([0, 1, 2]), append], [commit([3]), commit([4])]),
    "label what was appended": ([create(), COLOURS, append], [label([0, 1, 0, 1, 0, 1, None, 1])]),
    "pool all tokens": ([create(all_tokens("int8")), commit([0])], [pool]),
    "commit a range with a pooled array": ([create(all_tokens("int8")), commit([0]), pool], [commit([1])]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.mkdir()
    return path


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_power_cut_leaves_the_old_store_or_the_new(folder: Path, case: tuple[list[Step], list[Step]]) -> None:
    before, steps = case
    for step in before:
        step(folder / NAME)
    assert_old_or_new(folder, *steps)


@pytest.mark.parametrize("path", [NAME, f"new/folders/{NAME}"])
def test_a_power_cut_while_a_store_is_made_leaves_it_or_none(folder: Path, path: str) -> None:
    assert_old_or_new(folder, create(all_tokens("int8")), path=path)


def test_a_store_can_be_made_where_a_power_cut_ended_the_making_of_another(folder: Path) -> None:
    schema, mirror = all_tokens("int8"), Mirror(folder.parent / "after the crash")
    create(schema)(folder.parent / NAME)
    wanted = look(folder.parent / NAME)
    disk = Disk(folder)
    with record(folder) as operations:
        Store.create(folder / NAME, replace(SCHEMA, n_samples=4, parts=()), {"id": list("wxyz"), "group": list("wxyz")})
    unfinished = [image for _, image in crashes(disk, operations) if f"{NAME}/zarr.json" not in image]
    assert len(unfinished) > 50
    for image in unfinished[::7]:
        create(schema)(mirror.show(image) / NAME)
        assert look(mirror.folder / NAME) == wanted
        mirror.reset()


def test_a_repair_that_was_cut_off_can_be_repeated(folder: Path) -> None:
    path, mirror = folder / NAME, Mirror(folder.parent / "after the crash")
    for step in (create(), commit([0, 1, 2]), COLOURS):
        step(path)
    (path / "activations/resid_post/last/c.1.0.0").write_bytes(b"")
    (path / "commits/00000002.json").write_bytes(b"{}")
    (path / "activations/resid_post/last/zarr.json").unlink()
    disk = Disk(folder)
    with record(folder) as operations:
        store = Store.open(path, strict=False)
        assert store.repair(store.verify()) == []
    repaired = look(path)
    assert repaired is not None
    assert repaired["commits"] == [1]
    for what, image in crashes(disk, operations):
        store = Store.open(mirror.show(image) / NAME, strict=False)
        assert store.repair(store.verify()) == [], what
        assert look(mirror.folder / NAME) == repaired, what
        mirror.reset()


@pytest.mark.parametrize("name", ["commit a range", "overwrite labels", "append samples"])
def test_without_fsync_a_crash_of_the_process_alone_costs_nothing(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, steps = CASES[name]
    for step in before:
        step(folder / NAME)
    opened = Store.open
    monkeypatch.setattr(Store, "open", lambda path: opened(path, fsync=False))
    assert_old_or_new(folder, *steps, fsync=False)


class Unsynced(Directory):
    """Takes names for durable."""

    def sync(self, folders: Sequence[str]) -> None:
        return


class Cached(Directory):
    """Takes the data of chunks for durable."""

    def write(self, key: str, parts: Iterable[Any]) -> None:
        Directory(self.root, fsync=False).write(key, parts)


class Hasty(Directory):
    """Publishes the record before the data that it vouches for."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._late: list[tuple[str, list[bytes]]] = []

    def write(self, key: str, parts: Iterable[Any]) -> None:
        self._late.append((key, [bytes(part) for part in parts]))

    def sync(self, folders: Sequence[str]) -> None:
        super().sync([] if self._late else folders)

    def publish(self, key: str, data: bytes) -> None:
        super().publish(key, data)
        late, self._late = self._late, []
        for other, parts in late:
            super().write(other, parts)
        super().sync([key.rpartition("/")[0] for key, _ in late])


@pytest.mark.parametrize("broken", [Unsynced, Cached, Hasty])
@pytest.mark.parametrize("name", ["commit a range", "add labels"])
def test_a_store_that_takes_no_care_does_not_pass(
    folder: Path, name: str, broken: type[Directory], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, steps = CASES[name]
    for step in before:
        step(folder / NAME)

    def careless(path: Path) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "open", lambda path: Store(broken(path), *metadata.open_schema(Directory(path))))
            steps[0](path)

    with pytest.raises(AssertionError, match=r"crash after|not on the disk"):
        assert_old_or_new(folder, careless)
