"""Reading takes the memory of what is read, and no second copy of it."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.store import ArraySpec, Directory, Layer

N_SAMPLES, RANGE_SIZE, HIDDEN = 3100, 200, 512
LAYER_BYTES, CHUNK_BYTES = N_SAMPLES * HIDDEN * 2, RANGE_SIZE * HIDDEN * 2


@pytest.fixture
def layer(build: Callable[..., Any], tmp_path: Path) -> Layer:
    arrays = (ArraySpec("resid_post", "last", (0, 1), HIDDEN),)
    example = build(tmp_path / "run.zarr", n_samples=N_SAMPLES, range_size=RANGE_SIZE, arrays=arrays)
    layer: Layer = example.reopen().layer("resid_post", "last", 1)
    # What is imported on the way is not what is measured.
    layer.torch()
    layer.rows([0])
    return layer


def peak(read: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        read()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def last_of(layer: Layer) -> None:
    for _ in layer:
        pass


def test_a_whole_layer_takes_one_layer_and_none_into_a_buffer_of_the_caller(layer: Layer) -> None:
    # The short last range is read into a chunk of its own.
    assert LAYER_BYTES <= peak(layer.numpy) <= LAYER_BYTES + 1.25 * CHUNK_BYTES
    out = layer.numpy()
    assert peak(lambda: layer.numpy(out)) <= 1.25 * CHUNK_BYTES
    # The tensor's own memory is not Python's to count.
    assert peak(layer.torch) <= 1.25 * CHUNK_BYTES


def test_iteration_takes_a_few_chunks_and_a_range_takes_one(layer: Layer) -> None:
    assert CHUNK_BYTES <= peak(lambda: layer.range(3)) <= 1.25 * CHUNK_BYTES
    # Besides what is in flight, the caller still holds the last chunk.
    assert peak(lambda: last_of(layer)) <= (Directory.in_flight + 1.25) * CHUNK_BYTES


def test_rows_take_their_own_size_and_a_few_chunks(layer: Layer) -> None:
    wanted = list(range(0, N_SAMPLES, 50))
    assert peak(lambda: layer.rows(wanted)) <= len(wanted) * HIDDEN * 2 + (Directory.in_flight + 1.25) * CHUNK_BYTES


def test_looking_at_a_store_reads_no_activations(layer: Layer, tmp_path: Path) -> None:
    for chunk in tmp_path.rglob("c.*"):
        chunk.unlink()
    assert layer.shape == (N_SAMPLES, HIDDEN)
    assert (len(layer), layer.hidden_size) == layer.shape
