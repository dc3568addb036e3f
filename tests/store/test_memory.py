"""Reading takes the memory of what is read, and no second copy of it."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.store import ArraySpec, Layer

N_SAMPLES, RANGE_SIZE, HIDDEN = 1500, 200, 512
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


def test_a_whole_layer_takes_one_layer_and_its_padding(layer: Layer) -> None:
    padded = -(-N_SAMPLES // RANGE_SIZE) * CHUNK_BYTES
    for read in (layer.numpy, layer.torch):
        assert LAYER_BYTES <= peak(read) <= padded + CHUNK_BYTES // 4


def test_iteration_and_single_ranges_take_a_chunk_at_a_time(layer: Layer) -> None:
    assert CHUNK_BYTES <= peak(lambda: layer.range(3)) <= 1.25 * CHUNK_BYTES
    # The caller still holds the last chunk while the next one is read.
    assert peak(lambda: last_of(layer)) <= 2.25 * CHUNK_BYTES


def test_rows_take_their_own_size_and_a_chunk_at_a_time(layer: Layer) -> None:
    wanted = list(range(0, N_SAMPLES, 50))
    assert peak(lambda: layer.rows(wanted)) <= len(wanted) * HIDDEN * 2 + 2.25 * CHUNK_BYTES


def test_looking_at_a_store_reads_no_activations(layer: Layer, tmp_path: Path) -> None:
    for chunk in tmp_path.rglob("c.*"):
        chunk.unlink()
    assert layer.shape == (N_SAMPLES, HIDDEN)
    assert (len(layer), layer.hidden_size) == layer.shape
