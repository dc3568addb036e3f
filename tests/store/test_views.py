"""Dask and xarray see the arrays that were written, block by block, and no block that is not what was committed."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray

from sonde.errors import CorruptStoreError, InputError, StoreError
from sonde.store import ArraySpec, Labels, Schema, Store
from sonde.store.views import dask_array, to_xarray


def bits(x: Any) -> np.ndarray[Any, Any]:
    x = np.asarray(x)
    raw: np.ndarray[Any, Any] = x.view(f"u{x.itemsize}")
    return raw


def fill(store: Store, values: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Commit what is missing of ``values``, ``[layer, sample, hidden]`` by array name."""
    for range_ in store.missing:
        writer = store.writer()
        buffers = writer.buffers()
        for name, buffer in buffers.items():
            buffer[:, : len(range_)] = values[name][:, range_.rows]
        writer.commit(range_, buffers)
    store.refresh()


@pytest.fixture
def grown(example: Any) -> tuple[Store, dict[str, np.ndarray[Any, Any]]]:
    """The example after an append: ranges of 4, 4, 2, 4 and 1 samples."""
    example.store.append({"id": [f"n{i}" for i in range(5)], "group": ["new"] * 5})
    draw = np.random.default_rng(5)
    values = {
        name: np.concatenate([x, draw.normal(size=(x.shape[0], 5, x.shape[2])).astype(x.dtype)], axis=1)
        for name, x in example.values.items()
    }
    fill(example.store, values)
    return example.store, values


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_dask_array_has_the_bits_of_the_store(build: Callable[..., Any], tmp_path: Path, dtype: str) -> None:
    example = build(tmp_path / "run.zarr", dtype=dtype)
    for spec in example.store.arrays:
        x = dask_array(example.store, spec.site, spec.tokens)
        assert x.dtype == dtype
        np.testing.assert_array_equal(bits(x.compute()), bits(example.values[spec.name]))


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_int8_is_seen_as_the_float32_that_it_stands_for(tmp_path: Path, codec: str) -> None:
    arrays = (ArraySpec("a", "last", (4, 5), 16),)
    schema = Schema(arrays, 5, 2, {"name": "tiny"}, {}, dtype="int8", codec=codec)
    columns = {"id": list("abcde"), "group": list("abcde")}
    store = Store.create(tmp_path / "run.zarr", schema, columns)
    values = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    fill(store, {"a/last": values})
    x = dask_array(store, "a", "last")
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.compute(), values, atol=np.abs(values).max() / 127)


def test_a_block_is_a_chunk_of_the_store_whatever_the_lengths_of_the_ranges(grown: Any) -> None:
    store, values = grown
    x = dask_array(store, "resid_post", "last")
    assert x.chunks == ((1, 1, 1), (4, 4, 2, 4, 1), (8,))
    np.testing.assert_array_equal(bits(x.compute()), bits(values["resid_post/last"]))
    np.testing.assert_array_equal(bits(x[1, 9:12].compute()), bits(values["resid_post/last"][1, 9:12]))


def test_nothing_is_read_before_compute_and_then_only_the_blocks_that_are_asked_for(example: Any) -> None:
    for row, index in ((0, 0), (2, 1)):
        example.chunk("resid_post/last", row, index).unlink()
    x = dask_array(example.store, "resid_post", "last")
    np.testing.assert_array_equal(bits(x[1].compute()), bits(example.values["resid_post/last"][1]))
    with pytest.raises(CorruptStoreError, match="range 1 of layer 7 of resid_post/last"):
        x[2, 5].compute()


def test_a_flipped_bit_is_an_error_at_compute(example: Any) -> None:
    x = dask_array(example.store, "resid_post", "mean", dtype="float32")
    chunk = example.chunk("resid_post/mean", 1, 2)
    data = bytearray(chunk.read_bytes())
    data[3] ^= 16
    chunk.write_bytes(data)
    with pytest.raises(CorruptStoreError, match="range 2 of layer 3 of resid_post/mean"):
        x.sum().compute()


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", np.float32])
def test_blocks_come_in_the_dtype_that_is_asked_for(example: Any, dtype: Any) -> None:
    x = dask_array(example.store, "vision/resid_post", "mean", dtype=dtype)
    assert x.dtype == dtype
    expected = example.values["vision/resid_post/mean"].astype(np.float32).astype(dtype)
    np.testing.assert_array_equal(x.compute(), expected)
    assert x.compute().dtype == dtype


@pytest.mark.parametrize("dtype", ["int8", "bfloat", "complex64", "not a dtype"])
def test_a_dtype_that_is_no_float_of_ours_is_refused(example: Any, dtype: str) -> None:
    with pytest.raises(InputError, match=rf"dtype '{dtype}' is none of bfloat16, float16, float32, float64"):
        dask_array(example.store, "resid_post", "last", dtype=dtype)


def test_other_processes_compute_blocks_by_the_store_s_url(example: Any) -> None:
    x = dask_array(example.store, "resid_post", "last", dtype="float32")
    expected = example.values["resid_post/last"].astype(np.float32)
    with dask.config.set(scheduler="processes", num_workers=2):
        np.testing.assert_array_equal(x.map_blocks(lambda block: block * 2).compute(), expected * 2)


def test_tasks_of_one_process_share_one_open_store(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_store = Store.open
    monkeypatch.setattr(Store, "open", lambda url: opened.append(url) or open_store(url))
    arrays = [dask_array(example.store, "resid_post", tokens) for tokens in ("last", "mean")]
    dask.compute(*arrays, scheduler="synchronous")
    assert opened == [str(example.path)]


def test_a_graph_carries_no_data_and_no_task_per_block(build: Callable[..., Any], tmp_path: Path) -> None:
    layers = tuple(range(40))
    small, large = (
        build(tmp_path / f"{n}.zarr", n_samples=n, range_size=1, arrays=(ArraySpec("a", "last", layers, 2),), commit=())
        for n in (2, 50)
    )
    for example in (small, large):
        fill(example.store, example.values)
    sizes = [len(pickle.dumps(dask_array(example.store, "a", "last"))) for example in (small, large)]
    # 1,920 more blocks: two bytes for each of 48 more lengths is what may come on top.
    assert sizes[1] - sizes[0] < 1000
    assert sizes[0] < 5000


def test_the_same_array_of_the_same_store_has_the_same_name(grown: Any) -> None:
    store, _ = grown
    names = {
        dask_array(s, "resid_post", tokens, dtype=dtype).name
        for s in (store, Store.open(str(store.location)))
        for tokens in ("last", "mean")
        for dtype in (None, "float32")
    }
    assert len(names) == 4


def test_an_array_of_before_an_append_can_still_be_computed_after_it(example: Any) -> None:
    before = dask_array(example.store, "resid_post", "last")
    assert before.compute().shape == (3, 10, 8)
    values = {name: np.concatenate([x, x[:, :3]], axis=1) for name, x in example.values.items()}
    example.store.append({"id": ["x", "y", "z"], "group": ["new"] * 3})
    fill(example.store, values)
    np.testing.assert_array_equal(bits(before.compute()), bits(example.values["resid_post/last"]))
    after = dask_array(example.store, "resid_post", "last")
    np.testing.assert_array_equal(bits(after.compute()), bits(values["resid_post/last"]))


def test_a_view_reads_on_after_its_store_was_repaired(example: Any) -> None:
    x = dask_array(example.store, "resid_post", "last")
    x.compute()
    example.store.forget([example.store.ranges[1]])
    other = {name: -values for name, values in example.values.items()}
    fill(example.store, other)
    computed = x.compute()
    np.testing.assert_array_equal(bits(computed[:, 4:8]), bits(other["resid_post/last"][:, 4:8]))
    np.testing.assert_array_equal(bits(computed[:, :4]), bits(example.values["resid_post/last"][:, :4]))


def test_another_store_at_the_same_place_is_not_taken_for_the_one_that_was_seen(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "run.zarr"
    x = dask_array(build(path).store, "resid_post", "last")
    y = dask_array(build(tmp_path / "other.zarr").store, "resid_post", "last")
    shutil.rmtree(path)
    schema = Schema((ArraySpec("resid_post", "last", (0, 3, 7), 8),), 10, 4, {"name": "huge"}, {})
    store = Store.create(path, schema, {"id": [f"s{i}" for i in range(10)], "group": ["g"] * 10})
    fill(store, {"resid_post/last": np.zeros((3, 10, 8))})
    with pytest.raises(StoreError, match="is not the store that this view was made of"):
        x.compute()
    shutil.rmtree(path)
    with pytest.raises(StoreError, match="does not exist"):
        x.compute()
    assert y.compute().shape == (3, 10, 8)


@pytest.mark.parametrize("view", [lambda s: dask_array(s, "resid_post", "last"), to_xarray])
def test_a_store_that_is_not_finished_is_refused_with_the_way_out(
    build: Callable[..., Any], tmp_path: Path, view: Callable[[Store], Any]
) -> None:
    store = build(tmp_path / "run.zarr", commit=[0, 2]).store
    with pytest.raises(StoreError, match=r"1 of 3 ranges are not committed; finish it with `sonde extract --resume`"):
        view(store)


def test_an_array_that_is_not_there_is_named_beside_those_that_are(example: Any) -> None:
    with pytest.raises(StoreError, match=r"no activations 'resid_post/first': it has resid_post/last"):
        dask_array(example.store, "resid_post", "first")


# xarray


def test_the_tree_has_every_array_with_named_dimensions_and_coordinates(example: Any) -> None:
    tree = to_xarray(example.store)
    assert isinstance(tree, xarray.DataTree)
    for spec in example.store.arrays:
        x = tree[spec.name]
        assert isinstance(x, xarray.DataArray)
        assert x.dims == ("layer", "sample", "hidden")
        assert x["layer"].values.tolist() == list(spec.layers)
        assert x["sample"].values.tolist() == [f"s{i}" for i in range(10)]
        assert x["group"].dims == ("sample",)
        assert x["group"].values.tolist() == [f"g{i // 2}" for i in range(10)]
        assert set(x.indexes) == {"layer", "sample"}
        assert x.chunks is not None
        np.testing.assert_array_equal(bits(x.values), bits(example.values[spec.name]))


def test_layers_and_samples_are_selected_by_number_and_id_and_reduced(example: Any) -> None:
    tree = to_xarray(example.store, dtype="float32")
    values = example.values["resid_post/last"].astype(np.float32)
    mean = tree["resid_post/last"].sel(layer=3).mean("hidden").compute()
    np.testing.assert_allclose(mean.values, values[1].mean(axis=1), rtol=1e-6)
    chosen = tree["resid_post/last"].sel(layer=7, sample=["s8", "s1"])
    np.testing.assert_array_equal(chosen.values, values[2, [8, 1]])
    by_group = tree["resid_post/last"].sel(layer=0).groupby("group").max().compute()
    np.testing.assert_array_equal(by_group.sel(group="g4").values, values[0, 8:].max(axis=0))
    for x in (tree["vision/resid_post/mean"], tree["vision"]["resid_post"]["mean"], tree["/vision/resid_post/mean"]):
        assert x.sel(layer=2).shape == (10, 5)


def test_split_is_a_coordinate_where_the_store_has_it(tmp_path: Path) -> None:
    schema = Schema((ArraySpec("a", "last", (0,), 2),), 3, 2, {"name": "tiny"}, {})
    columns = {"id": ["a", "b", "c"], "group": ["1", "1", "2"], "split": ["train", "train", "test"]}
    store = Store.create(tmp_path / "run.zarr", schema, columns)
    fill(store, {"a/last": np.arange(6, dtype=np.float32).reshape(1, 3, 2)})
    x = to_xarray(store, dtype="float32")["a/last"]
    assert x.sel(sample=x["split"] == "test").values.tolist() == [[[4, 5]]]


def test_labels_of_every_kind_are_arrays_with_their_kind_and_names(example: Any) -> None:
    ids = [f"s{i}" for i in range(9)]
    example.store.add_labels("true", ids, [True, False, True] * 3)
    example.store.add_labels("colour", ids, ["red", "blue", "red"] * 3)
    example.store.add_labels("coco", ids, [["cat"], ["dog", "cat"], []] * 3)
    example.store.add_labels("score", ids, [0.5, 1.5, -2.0] * 3)
    tree = to_xarray(example.store)
    kinds = {"true": "binary", "colour": "multiclass", "coco": "multilabel", "score": "regression"}
    for name, kind in kinds.items():
        assert tree[f"labels/{name}"].attrs["kind"] == kind
        assert tree[f"labels/{name}"]["sample"].values.tolist() == [f"s{i}" for i in range(10)]
    assert tree["labels/true"].values.tolist() == [1, 0, 1] * 3 + [-1]
    assert tree["labels/colour"].dims == ("sample",)
    assert tree["labels/colour"].values.tolist() == [1, 0, 1] * 3 + [-1]
    assert tree["labels/colour"].attrs["names"] == ["blue", "red"]
    assert tree["labels/coco"].dims == ("sample", "target")
    assert tree["labels/coco"].sel(target="cat").values.tolist() == [1, 1, 0] * 3 + [-1]
    np.testing.assert_array_equal(tree["labels/score"].values, [0.5, 1.5, -2.0] * 3 + [np.nan])
    with_cat = tree["resid_post/last"].sel(sample=tree["labels/coco"].sel(target="cat") == 1)
    assert with_cat["sample"].values.tolist() == ["s0", "s1", "s3", "s4", "s6", "s7"]


def test_multi_label_columns_of_other_targets_stand_side_by_side(example: Any) -> None:
    ids = example.store.ids.tolist()
    example.store.add_labels("coco", ids, [["cat"], ["dog"]] * 5)
    example.store.add_labels("scene", ids, [["sea"], ["sky", "sun"]] * 5)
    tree = to_xarray(example.store)
    assert tree["labels/coco"].dims == ("sample", "target_coco")
    assert tree["labels/scene"].sel(target_scene="sun").values.tolist() == [0, 1] * 5


@pytest.mark.parametrize("name", ["group", "target", "layer", "hidden"])
def test_labels_may_bear_the_name_of_a_coordinate(example: Any, name: str) -> None:
    example.store.add_labels("coco", example.store.ids.tolist(), [["cat"], ["dog"]] * 5)
    example.store.add_labels(name, example.store.ids.tolist(), ["red", "blue"] * 5)
    tree = to_xarray(example.store)
    assert tree[f"labels/{name}"].values.tolist() == [1, 0] * 5
    assert tree["labels/coco"].shape == (10, 2)
    assert tree["resid_post/last"]["group"].values[9] == "g4"


def test_labels_named_sample_are_left_out_with_a_warning(example: Any) -> None:
    example.store.write_labels(Labels("sample", "binary", np.ones(10, dtype=np.int8)))
    with pytest.warns(UserWarning, match=r"store\.labels\('sample'\)"):
        tree = to_xarray(example.store)
    assert "sample" not in tree["labels"].data_vars


def test_the_tree_says_where_it_comes_from_in_values_that_any_format_takes(example: Any) -> None:
    attributes = to_xarray(example.store).attrs
    assert attributes["model"] == "tiny"
    assert attributes["dtype"] == "bfloat16"
    assert attributes["store"] == str(example.path)
    assert all(isinstance(value, str | int | float) for value in attributes.values())
    json.dumps(attributes)


def test_arrays_of_all_tokens_are_left_out_and_what_is_pooled_of_them_is_there(tmp_path: Path) -> None:
    arrays = (ArraySpec("resid_post", "all", (0, 1), 4), ArraySpec("embed", "last", (0,), 2))
    schema = Schema(arrays, 3, 2, {"name": "tiny"}, {}, dtype="float32")
    store = Store.create(tmp_path / "run.zarr", schema, {"id": ["a", "b", "c"], "group": ["g"] * 3})
    values = [np.random.default_rng(i).normal(size=(2, 3 + i, 4)).astype(np.float32) for i in range(3)]
    for range_ in store.ranges:
        buffers = store.writer().buffers()
        buffers["embed/last"][:] = 1
        for row in range(range_.start, range_.stop):
            n_tokens = values[row].shape[1]
            buffers["resid_post/all"].put(row, values[row], np.arange(n_tokens), np.zeros(n_tokens))
        store.writer().commit(range_, buffers)
    store.refresh()
    with pytest.raises(StoreError, match="pool"):
        dask_array(store, "resid_post", "all")
    assert set(to_xarray(store).children) == {"embed", "labels"}
    store.pool("max")
    x = to_xarray(store)["resid_post/max"].sel(layer=1)
    np.testing.assert_array_equal(x.values, [v[1].max(axis=0) for v in values])


def test_without_xarray_the_error_says_what_to_install(example: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(InputError, match=r"needs xarray: `pip install 'xarray"):
        to_xarray(example.store)
