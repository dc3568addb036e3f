"""bfloat16 in Zarr: every bit pattern survives, and its views cost nothing."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from sonde.store import as_float32, as_numpy, as_torch, bfloat16
from sonde.store.dtype import count_nonfinite

PATTERNS = np.arange(2**16, dtype=np.uint16)


def every_value() -> np.ndarray[Any, Any]:
    values: np.ndarray[Any, Any] = PATTERNS.view(ml_dtypes.bfloat16).copy()
    return values


def written(path: Path) -> zarr.Array[Any]:
    array = zarr.create_array(
        path,
        shape=(2**16,),
        chunks=(2**14,),
        dtype=bfloat16,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=float("nan"),
        config={"write_empty_chunks": True},
    )
    array[:] = every_value()
    return array


def test_every_bit_pattern_survives_zarr(tmp_path: Path) -> None:
    written(tmp_path)
    back = zarr.open_array(tmp_path, mode="r")[:]
    assert isinstance(back, np.ndarray)
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back.view(np.uint16), PATTERNS)


def test_the_metadata_names_the_registered_type_and_its_byte_order(tmp_path: Path) -> None:
    written(tmp_path)
    metadata = json.loads((tmp_path / "zarr.json").read_text())
    assert metadata["data_type"] == "bfloat16"
    assert metadata["fill_value"] == "NaN"
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    assert metadata["codecs"][0]["configuration"] == {"endian": "little"}


def test_the_payload_is_the_upper_half_of_a_little_endian_float32(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path, shape=(2,), dtype=bfloat16, compressors=None, filters=None)
    array[:] = np.array([1.0, -2.5], dtype=ml_dtypes.bfloat16)
    assert (tmp_path / "c" / "0").read_bytes() == np.array([1.0, -2.5], "<f4").tobytes()[2:4] + b"\x20\xc0"


@pytest.mark.parametrize("fill", [0.0, 1.5, -np.inf, np.inf, np.nan])
def test_fill_values_survive_the_metadata(tmp_path: Path, fill: float) -> None:
    zarr.create_array(tmp_path, shape=(3,), dtype=bfloat16, fill_value=fill)
    back = zarr.open_array(tmp_path, mode="r")
    assert back.dtype == bfloat16
    np.testing.assert_array_equal(np.asarray(back[:]).astype(np.float64), [fill] * 3)


def test_the_other_float_types_of_zarr_are_what_they_were(tmp_path: Path) -> None:
    for dtype in ("float16", "float32", "float64"):
        array = zarr.create_array(tmp_path / dtype, shape=(1,), dtype=dtype)
        assert array.dtype == np.dtype(dtype)
        assert json.loads((tmp_path / dtype / "zarr.json").read_text())["data_type"] == dtype


def test_widening_to_float32_is_exact_for_every_bit_pattern() -> None:
    wide = as_float32(every_value())
    halves = np.zeros((2**16, 2), dtype="<u2")
    halves[:, 1] = PATTERNS
    assert wide.dtype == np.float32
    assert wide.tobytes() == halves.tobytes()
    finite = np.isfinite(wide)
    np.testing.assert_array_equal(wide[finite], every_value()[finite].astype(np.float32))


def test_widening_takes_other_floats_and_odd_strides() -> None:
    x = np.linspace(-3, 3, 24).reshape(4, 6)
    np.testing.assert_array_equal(as_float32(x.astype(np.float16)), x.astype(np.float16).astype(np.float32))
    narrow = x.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(as_float32(narrow[::2, ::-3]), narrow.astype(np.float32)[::2, ::-3])


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_torch_and_numpy_share_memory_both_ways(dtype: Any) -> None:
    x = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = as_torch(x)
    assert str(tensor.dtype) == f"torch.{np.dtype(dtype).name}"
    tensor[1, 2] = 50
    assert x[1, 2] == 50
    back = as_numpy(tensor)
    assert back.dtype == x.dtype
    assert back.ctypes.data == x.ctypes.data == tensor.data_ptr()


def test_every_bit_pattern_survives_torch() -> None:
    tensor = as_torch(every_value())
    np.testing.assert_array_equal(tensor.view(torch.int16).numpy().view(np.uint16), PATTERNS)
    np.testing.assert_array_equal(as_numpy(tensor).view(np.uint16), PATTERNS)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_nonfinite_values_are_counted(dtype: Any) -> None:
    x = np.array([0, 1, np.nan, np.inf, -np.inf, -np.nan, 3e4], dtype=dtype)
    assert count_nonfinite(x) == 4


def test_the_nonfinite_bit_patterns_are_those_that_torch_names() -> None:
    tensor = torch.from_numpy(PATTERNS.view(np.int16).copy()).view(torch.bfloat16)
    assert count_nonfinite(every_value()) == int((~torch.isfinite(tensor)).sum())
