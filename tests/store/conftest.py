"""A small store with known values, for every test of the store."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from sonde.store import ArraySpec, Location, Range, Schema, Store


@dataclass(frozen=True, slots=True)
class Example:
    """A store, where it lies, and what every array of it must hold: ``[layer, sample, hidden]``."""

    path: Path
    store: Store
    values: Mapping[str, np.ndarray[Any, Any]]

    def commit(self, range_: Range, skipped: Mapping[int, str] | None = None) -> None:
        writer = self.store.writer()
        buffers = writer.buffers()
        for name, buffer in buffers.items():
            buffer[:, : len(range_)] = self.values[name][:, range_.rows]
        writer.commit(range_, buffers, skipped)

    def layers(self) -> Iterable[tuple[str, str, int, np.ndarray[Any, Any]]]:
        """(site, tokens, layer, the values it must hold) for every layer of every array."""
        for spec in self.store.arrays:
            for row, layer in enumerate(spec.layers):
                yield spec.site, spec.tokens, layer, self.values[spec.name][row]

    def files(self) -> dict[str, bytes]:
        """Every file below the store's folder."""
        return {p.relative_to(self.path).as_posix(): p.read_bytes() for p in self.path.rglob("*") if p.is_file()}

    def chunk(self, name: str, row: int, index: int) -> Path:
        return self.path / "activations" / name / f"c.{row}.{index}.0"

    def record(self, index: int) -> Path:
        return self.path / "commits" / f"{index:08d}.json"

    def reopen(self) -> Store:
        return Store.open(str(self.store.location))


ARRAYS = (
    ArraySpec("resid_post", "last", (0, 3, 7), 8),
    ArraySpec("resid_post", "mean", (0, 3, 7), 8),
    ArraySpec("vision/resid_post", "mean", (1, 2), 5),
)


def build_example(
    path: Path | str | Location,
    *,
    n_samples: int = 10,
    range_size: int = 4,
    arrays: tuple[ArraySpec, ...] = ARRAYS,
    dtype: str = "bfloat16",
    commit: Iterable[int] | None = None,
    skipped: Mapping[int, str] | None = None,
    seed: int = 0,
) -> Example:
    """Create a store of random values somewhere and commit all of its ranges, or those of ``commit`` in its order."""
    model, data = {"name": "tiny", "revision": None}, {"manifest": "samples.jsonl"}
    schema = Schema(arrays, n_samples, range_size, model, data, dtype=dtype)
    columns = {"id": [f"s{i}" for i in range(n_samples)], "group": [f"g{i // 2}" for i in range(n_samples)]}
    store = Store.create(path, schema, columns)
    draw = np.random.default_rng(seed)
    native = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    values = {a.name: draw.normal(size=(len(a.layers), n_samples, a.hidden)).astype(native) for a in arrays}
    example = Example(Path(str(path)), store, values)
    for index in range(len(store.ranges)) if commit is None else commit:
        rows = store.ranges[index]
        example.commit(rows, {r: why for r, why in (skipped or {}).items() if rows.start <= r < rows.stop})
    store.refresh()
    return example


@pytest.fixture(scope="session")
def scratch() -> str:
    """Folder for many small stores: they wait for the disk at every file, and a memory file system answers at once."""
    memory = "/dev/shm"
    return memory if os.access(memory, os.W_OK) else tempfile.gettempdir()


@pytest.fixture
def tmp_path(scratch: str) -> Iterator[Path]:
    """A folder of the test's own, in memory where the system has such a place."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def build() -> Callable[..., Example]:
    """Maker of stores, at a path of the test's choice."""
    return build_example


@pytest.fixture
def example(tmp_path: Path) -> Example:
    """A complete store of 10 samples in ranges of 4, 4 and 2, with three arrays."""
    return build_example(tmp_path / "run.zarr")
