"""Statistics are kept in the store beside the activations: whole or not at all, and never believed when damaged."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sonde.errors import StoreError
from sonde.store import Store

ARRAYS = {"vectors": np.arange(24.0).reshape(2, 3, 4), "n": np.array([5, 7])}
ABOUT = {"site": "resid_post", "layer": 3}


def kept(example: Any) -> Path:
    example.store.statistics.put("k1", ARRAYS, ABOUT)
    return example.path / "statistics" / "k1"


def same(got: Any) -> bool:
    return got is not None and all(np.array_equal(got[k], v) and got[k].dtype == v.dtype for k, v in ARRAYS.items())


def test_what_was_put_is_got_by_whoever_opens_the_store(example: Any) -> None:
    assert example.store.statistics.get("k1") is None
    kept(example)
    statistics = Store.open(example.path).statistics
    assert same(statistics.get("k1"))
    [entry] = statistics.entries()
    assert (entry.key, entry.about, entry.nbytes) == ("k1", ABOUT, 24 * 8 + 2 * 8 + 2 * 4)


def test_every_reader_of_zarr_opens_them(example: Any) -> None:
    group = zarr.open_group(kept(example), mode="r")
    for name, values in ARRAYS.items():
        assert np.array_equal(np.asarray(group[name]), values)
    assert same({name: np.asarray(zarr.open_array(example.path / "statistics/k1" / name)) for name in ARRAYS})


def test_many_layers_may_be_put_at_once(example: Any) -> None:
    def put(i: int) -> None:
        Store.open(example.path).statistics.put(f"k{i}", ARRAYS, ABOUT)

    for _ in range(5):
        example.store.statistics.clear()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(put, range(16)))
        assert [entry.key for entry in example.store.statistics.entries()] == sorted(f"k{i}" for i in range(16))
    assert zarr.open_group(example.path / "statistics", mode="r").attrs.asdict() == {}


def test_activations_and_labels_do_not_see_them(example: Any) -> None:
    kept(example)
    store = Store.open(example.path)
    assert store.verify() == []
    assert store.label_names == example.store.label_names


@pytest.mark.parametrize("part", ["vectors/c/0/0/0", "n/c/0", "zarr.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone", "longer"])
def test_a_damaged_entry_is_not_there_and_can_be_put_again(part: str, how: str, example: Any) -> None:
    file = kept(example) / part
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    else:
        data[len(data) // 2] ^= 4
        file.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "longer": file.read_bytes() + b"1"}[how])
    assert example.store.statistics.get("k1") is None or (part == "zarr.json" and how == "flipped")
    kept(example)
    assert same(example.store.statistics.get("k1"))


@pytest.mark.parametrize(
    "arrays",
    [
        {"n": {"dtype": "<f8", "shape": [2**60], "nbytes": 2**63 + 4, "crc32c": "00000000"}},
        {"../../../secret": {"dtype": "<i8", "shape": [2], "nbytes": 20, "crc32c": "00000000"}},
        {"n": {"dtype": "O", "shape": [2], "nbytes": 20, "crc32c": "00000000"}},
        {"n": {"dtype": "<i8", "shape": [-2], "nbytes": -12, "crc32c": "00000000"}},
        {"n": 7},
        [],
    ],
)
def test_an_entry_of_someone_hostile_is_not_there(arrays: Any, example: Any) -> None:
    document = kept(example) / "zarr.json"
    content = json.loads(document.read_bytes())
    content["attributes"]["arrays"] = arrays
    document.write_text(json.dumps(content))
    assert example.store.statistics.get("k1") is None


def test_clearing_leaves_nothing_of_them_and_all_else(example: Any) -> None:
    before = example.files()
    kept(example)
    example.store.statistics.clear()
    assert example.store.statistics.entries() == []
    assert example.files() == before


def test_a_disk_that_cannot_be_written_is_an_error_with_the_way_out(example: Any) -> None:
    (example.path / "statistics").write_text("in the way")
    with pytest.raises(StoreError, match="probe without the cache"):
        kept(example)
