"""What a store promises wherever it lies: written, read, damaged and mended through nothing but its location."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import google_crc32c
import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import ArraySpec, Location, Store

ARRAY, ROW, LAYER, INDEX = "resid_post/last", 1, 3, 1
KEY = f"activations/{ARRAY}/c.{ROW}.{INDEX}.0"
ARRAYS = (ArraySpec("resid_post", "last", (0, LAYER), 8), ArraySpec("vision/resid_post", "mean", (1,), 5))


def rewrite(change: Callable[[bytearray], Any]) -> Callable[[Location], None]:
    def damage(location: Location) -> None:
        data = bytearray(location.read(KEY))
        change(data)
        location.write(KEY, [data])

    return damage


def flip(data: bytearray) -> None:
    data[17] ^= 4


def forge(data: bytearray) -> None:
    data[:-4] = bytes(len(data) - 4)
    data[-4:] = google_crc32c.value(bytes(data[:-4])).to_bytes(4, "little")


def swap(location: Location) -> None:
    other = f"activations/{ARRAY}/c.0.{INDEX}.0"
    one, two = location.read(KEY), location.read(other)
    location.write(KEY, [two])
    location.write(other, [one])


DAMAGES: dict[str, tuple[Callable[[Location], None], int]] = {
    "missing": (lambda location: location.remove(KEY), 1),
    "flipped": (rewrite(flip), 1),
    "cut": (rewrite(lambda data: data.pop()), 1),
    "longer": (rewrite(lambda data: data.append(0)), 1),
    "empty": (rewrite(bytearray.clear), 1),
    "forged": (rewrite(forge), 1),
    "swapped": (swap, 2),
}


class StoreContract(ABC):
    """Subclasses say by the fixture ``url`` where the store lies."""

    @pytest.fixture
    @abstractmethod
    def url(self) -> str: ...

    @pytest.fixture
    def example(self, url: str, build: Any) -> Any:
        return build(url, arrays=ARRAYS)

    def test_every_layer_reads_as_it_was_written(self, url: str, example: Any) -> None:
        store = Store.open(url)
        assert store.complete
        assert store.ids.tolist() == [f"s{i}" for i in range(10)]
        for site, tokens, row, values in example.layers():
            layer = store.layer(site, tokens, row)
            np.testing.assert_array_equal(layer.numpy(), values)
            np.testing.assert_array_equal(layer.rows([9, 0, 5]), values[[9, 0, 5]])
            for rows, x in layer:
                np.testing.assert_array_equal(x, values[rows])
        assert store.verify() == []

    def test_only_what_is_committed_is_there(self, url: str, build: Any) -> None:
        example = build(url, arrays=ARRAYS, commit=[2, 0])
        store = Store.open(url)
        assert [r.index for r in store.missing] == [1]
        layer = store.layer("resid_post", "last", LAYER)
        assert [rows.start for rows, _ in layer] == [0, 8]
        with pytest.raises(StoreError, match="range 1 of 3 is not committed"):
            layer.numpy()
        # Chunks without a commit are nothing.
        example.commit(store.ranges[1])
        store.location.remove("commits/00000001.json")
        store.refresh()
        assert [r.index for r in store.missing] == [1]
        example.commit(store.ranges[1])
        np.testing.assert_array_equal(
            Store.open(url).layer("resid_post", "last", LAYER).numpy(), example.values[ARRAY][ROW]
        )

    def test_what_is_there_is_not_overwritten(self, url: str, example: Any, build: Any) -> None:
        before = {key: example.store.location.read(key) for key in example.store.location.walk()}
        with pytest.raises(StoreError, match="exists already"):
            build(url, arrays=ARRAYS)
        assert {key: example.store.location.read(key) for key in example.store.location.walk()} == before

    def test_nothing_there_is_an_error_that_names_it(self, url: str) -> None:
        with pytest.raises(StoreError, match=r"run\.zarr"):
            Store.open(url)

    def test_labels_are_joined_replaced_and_read(self, url: str, example: Any) -> None:
        ids = [f"s{i}" for i in range(10)]
        example.store.add_labels("100% sure?", ids[::-1], [i % 3 for i in range(10)], kind="multiclass")
        example.store.add_labels("y", ids[:4], [0, 1, 1, 0])
        store = Store.open(url)
        assert store.label_names == ["100% sure?", "y"]
        assert store.labels("100% sure?").values.tolist() == [i % 3 for i in range(10)][::-1]
        assert store.labels("y").values.tolist() == [0, 1, 1, 0] + 6 * [-1]
        store.write_labels(type(store.labels("y"))("y", "regression", np.arange(10.0)), overwrite=True)
        assert Store.open(url).labels("y").values.tolist() == list(range(10))
        assert store.verify() == []

    @pytest.mark.parametrize(("damage", "count"), DAMAGES.values(), ids=DAMAGES.keys())
    def test_damage_is_found_and_mended(
        self, url: str, example: Any, damage: Callable[[Location], None], count: int
    ) -> None:
        location = example.store.location
        before = {key: location.read(key) for key in location.walk()}
        damage(location)
        store = Store.open(url)
        with pytest.raises(CorruptStoreError, match=f"range {INDEX} of layer {LAYER} of {ARRAY}"):
            store.layer("resid_post", "last", LAYER).numpy()
        [found] = store.verify()
        assert found.range == store.ranges[INDEX]
        assert len(found.errors) == count
        store.forget([found.range])
        assert [r.index for r in Store.open(url).missing] == [INDEX]
        example.commit(store.ranges[INDEX])
        assert Store.open(url).verify() == []
        assert {key: location.read(key) for key in location.walk()} == before

    @pytest.mark.parametrize("change", [flip, bytearray.clear, lambda data: data.__delitem__(slice(100, None))])
    def test_a_damaged_record_is_found(self, url: str, example: Any, change: Callable[[bytearray], Any]) -> None:
        key = "commits/00000001.json"
        data = bytearray(example.store.location.read(key))
        change(data)
        example.store.location.publish(key, bytes(data))
        with pytest.raises(CorruptStoreError, match="commit record"):
            Store.open(url)
        [found] = Store.open(url, strict=False).verify()
        assert found.range == example.store.ranges[1]
