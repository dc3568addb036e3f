"""Any reader of Zarr v3 opens a store and finds the same bits, names and coordinates in it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr


def bits(x: Any) -> np.ndarray[Any, Any]:
    x = np.asarray(x)
    raw: np.ndarray[Any, Any] = x.view(f"u{x.itemsize}")
    return raw


def test_every_array_says_bfloat16_and_its_checksum(example: Any) -> None:
    for spec in example.store.arrays:
        metadata = json.loads((example.path / spec.path / "zarr.json").read_text())
        assert metadata["zarr_format"] == 3
        assert metadata["data_type"] == "bfloat16"
        assert metadata["shape"] == [len(spec.layers), 10, spec.hidden]
        assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 4, spec.hidden]
        assert metadata["dimension_names"] == ["layer", "sample", "hidden"]
        assert metadata["fill_value"] == "NaN"
        assert metadata["codecs"] == [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "crc32c"},
        ]


def test_zarr_python_reads_the_same_bits(example: Any) -> None:
    for spec in example.store.arrays:
        array = zarr.open_array(example.path / spec.path, mode="r")
        np.testing.assert_array_equal(bits(array[:]), bits(example.values[spec.name]))


def test_zarr_python_refuses_a_chunk_with_a_flipped_bit(example: Any) -> None:
    chunk = example.chunk("resid_post/last", 0, 0)
    data = bytearray(chunk.read_bytes())
    data[5] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(ValueError, match=r"(?i)checksum|crc32c"):
        zarr.open_array(example.path / "activations/resid_post/last", mode="r")[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_tensorstore_opens_every_array_and_reads_the_same_bits(
    build: Callable[..., Any], tmp_path: Path, dtype: str
) -> None:
    example = build(tmp_path / "run.zarr", dtype=dtype)
    for spec in example.store.arrays:
        kvstore = {"driver": "file", "path": str(example.path / spec.path)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
        assert array.dtype.name == dtype
        assert array.domain.labels == ("layer", "sample", "hidden")
        np.testing.assert_array_equal(bits(array.read().result()), bits(example.values[spec.name]))


def test_xarray_opens_a_site_with_named_dimensions_and_coordinates(example: Any) -> None:
    path = example.path / "activations" / "resid_post"
    with xarray.open_dataset(path, engine="zarr", chunks=None, consolidated=False) as dataset:
        assert set(dataset.data_vars) == {"last", "mean"}
        assert dict(dataset.sizes) == {"layer": 3, "sample": 10, "hidden": 8}
        assert dataset["layer"].values.tolist() == [0, 3, 7]
        assert dataset["sample"].values.tolist() == example.store.ids.tolist()
        chosen = dataset["mean"].sel(layer=3, sample="s6").values
        np.testing.assert_array_equal(bits(chosen), bits(example.values["resid_post/mean"][1, 6]))


def test_xarray_opens_samples_and_labels(example: Any) -> None:
    example.store.add_labels("colour", [f"s{i}" for i in range(9)], ["red", "blue", "red"] * 3)
    with xarray.open_dataset(example.path / "samples", engine="zarr", chunks=None, consolidated=False) as samples:
        assert samples["id"].dims == ("sample",)
        assert samples["group"].values.tolist() == [f"g{i // 2}" for i in range(10)]
    with xarray.open_dataset(example.path / "labels/colour", engine="zarr", chunks=None, consolidated=False) as labels:
        assert labels["values"].values.tolist() == [1, 0, 1] * 3 + [-1]
        assert labels.attrs["names"] == ["blue", "red"]


def test_nothing_but_arrays_and_groups_lies_where_readers_look(build: Callable[..., Any], tmp_path: Path) -> None:
    example = build(tmp_path / "run.zarr")
    example.store.add_labels("colour", example.store.ids.tolist(), ["red", "blue"] * 5)
    found = set()
    for part in ("samples", "activations", "labels"):
        # zarr warns of any object that is none of its own, and warnings are errors here
        found |= {
            f"{part}/{name}" for name, _ in zarr.open_group(example.path / part, mode="r").members(max_depth=None)
        }
    assert {name for name in found if name.startswith("samples/")} == {"samples/id", "samples/group"}
    assert {a.path for a in example.store.arrays} < found


def test_our_reader_gives_what_the_others_read(example: Any) -> None:
    for site, tokens, layer, values in example.layers():
        read = example.store.layer(site, tokens, layer)
        np.testing.assert_array_equal(bits(read.numpy()), bits(values))
        np.testing.assert_array_equal(read.torch().float().numpy(), values.astype(np.float32))
