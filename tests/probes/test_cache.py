"""What no label changes is computed once, and the next labels have the numbers of a run that computes it again."""

import functools
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import sonde.probes.fit
from sonde.probes import Results, load_probes, probe
from sonde.store import Store

CHOSEN: dict[str, Any] = {"n_draws": 20}


@pytest.fixture
def store(example: Any, tmp_path: Path) -> Store:
    """A copy of the example, that may be written to."""
    shutil.copytree(example.path, tmp_path / "run.zarr")
    store = Store.open(tmp_path / "run.zarr")
    store.statistics.clear()  # of other tests
    return store


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been decomposed, a layer at a time; the decomposition itself stays the real one."""
    calls: list[Any] = []
    for name in ("ridge_bases", "logistic_bases"):
        real = getattr(sonde.probes.fit, name)

        @functools.wraps(real)
        def counted(stats: Any, real: Any = real) -> Any:
            calls.append(stats)
            return real(stats)

        monkeypatch.setattr(sonde.probes.fit, name, counted)
    return calls


def run(store: Store, folder: Path, labels: str = "objects", **chosen: Any) -> tuple[Results, list[Any]]:
    return probe(store, labels, out=folder, **CHOSEN | chosen), load_probes(folder)


def assert_same(one: tuple[Results, list[Any]], other: tuple[Results, list[Any]]) -> None:
    pd.testing.assert_frame_equal(one[0].rows, other[0].rows, check_exact=True)
    for mine, theirs in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(mine.weights, theirs.weights)
        np.testing.assert_array_equal(mine.bias, theirs.bias)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("solver", ["ridge", "logistic", "lda"])
def test_the_next_labels_decompose_nothing_and_have_the_same_bits(
    solver: str, device: str | None, store: Store, computed: list[Any], tmp_path: Path
) -> None:
    asked = {"solver": solver, "device": device, "alphas": [1.0, 10.0]}
    run(store, tmp_path / "first", "entailment", **asked)
    assert len(computed) == len(store.statistics.entries()) == 5
    again = run(store, tmp_path / "again", **asked)
    assert len(computed) == 5
    assert_same(again, run(store, tmp_path / "anew", **asked, cache=False))
    assert len(computed) == 10


def test_other_rows_folds_or_devices_have_statistics_of_their_own(
    store: Store, computed: list[Any], tmp_path: Path
) -> None:
    for i, other in enumerate(({}, {"n_folds": 4}, {"seed": 1}, {"device": "cpu"}, {"test_size": 0.3})):
        found = run(store, tmp_path / f"{i}", layers=[5], **other)
        assert len(computed) == len(store.statistics.entries()) == i + 1
        assert_same(found, run(store, tmp_path / f"{i}-again", layers=[5], **other, cache=False))
        computed.pop()


def test_statistics_of_a_layer_that_was_extracted_anew_are_not_taken_for_its_own(
    make_store: Any, example: Any, computed: list[Any], tmp_path: Path
) -> None:
    groups = [f"g{i // 2}" for i in range(len(example.used))]
    layers = {"resid_post": (0, 2, 5, 9), "embed": (0,)}
    stores = []
    for name, factor in (("one", 1.0), ("other", -2.0)):
        values = {array: np.nan_to_num(factor * x) for array, x in example.activations.items()}
        store = make_store(tmp_path / name / "run.zarr", values, layers, groups)
        store.write_labels(example.store.labels("objects"))
        stores.append(store)
    run(stores[0], tmp_path / "a")
    shutil.copytree(tmp_path / "one" / "run.zarr" / "statistics", tmp_path / "other" / "run.zarr" / "statistics")
    found = run(stores[1], tmp_path / "b")
    assert len(computed) == 10
    assert_same(found, run(stores[1], tmp_path / "c", cache=False))


def test_damaged_statistics_are_computed_again(store: Store, computed: list[Any], tmp_path: Path) -> None:
    first = run(store, tmp_path / "first")
    for chunk in Path(str(store.location)).glob("statistics/*/vectors/c/0/0/0"):
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
    assert_same(first, run(store, tmp_path / "again"))
    assert len(computed) == 10
    assert len(store.statistics.entries()) == 5


def test_a_store_that_cannot_be_written_is_probed_all_the_same_and_said_so_once(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (Path(str(store.location)) / "statistics").write_text("in the way")
    sonde.probes.cache.tell_once.cache_clear()
    with caplog.at_level(logging.WARNING, "sonde"):
        run(store, tmp_path / "out")
    assert [r.message.partition(" (")[0] for r in caplog.records if "statistics" in r.message] == [
        f"cannot keep statistics in {store.location}"
    ]


def test_statistics_larger_than_their_layer_are_not_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sonde.probes.cache, "_SMALL", 1)
    run(store, tmp_path / "out", n_folds=8)
    kept = {entry.about["site"] for entry in store.statistics.entries()}
    # Nine bases of 12 columns are larger than 240 float32 rows of them, and nine of 5 columns are smaller.
    assert kept == {"embed"}
