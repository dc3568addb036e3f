"""Compressed chunks and eight-bit values: smaller, still plain Zarr, and damaged ones are named all the same."""

import json
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sonde.errors import CorruptStoreError, InputError
from sonde.store import ArraySpec, Schema, Store
from sonde.store.codecs import CODECS, encode, max_encoded_bytes
from sonde.store.quantize import dequantize, quantize
from sonde.store.schema import checksum

COMPRESSED = ("zstd", "lz4+bitshuffle")
ONE = (ArraySpec("resid_post", "last", (0, 3), 64),)


def build(path: Path, codec: str, dtype: str = "bfloat16", n_samples: int = 40) -> tuple[Store, np.ndarray[Any, Any]]:
    schema = Schema(ONE, n_samples, 16, {"name": "tiny"}, {}, dtype=dtype, codec=codec)
    ids = [f"s{i}" for i in range(n_samples)]
    store = Store.create(path, schema, {"id": ids, "group": ids})
    # Few distinct values: they compress.
    values = np.random.default_rng(0).integers(-3, 4, size=(2, n_samples, 64)).astype(schema.numpy_dtype)
    for range_ in store.ranges:
        buffers = store.writer().buffers()
        buffers["resid_post/last"][:, : len(range_)] = values[:, range_.rows]
        store.writer().commit(range_, buffers)
    store.refresh()
    return store, values


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_compressed_values_are_the_same_for_us_and_for_other_readers(tmp_path: Path, codec: str, dtype: str) -> None:
    build(tmp_path / "run.zarr", codec, dtype)
    store, values = Store.open(tmp_path / "run.zarr"), build(tmp_path / "plain.zarr", "none", dtype)[1]
    assert store.schema.codec == store.info()["codec"] == codec
    bits = f"u{values.itemsize}"
    for row, number in enumerate((0, 3)):
        layer = store.layer("resid_post", "last", number)
        for read in (layer.numpy(), np.concatenate([x for _, x in layer]), layer.rows(range(40))):
            assert read.tobytes() == values[row].tobytes()
    path = "activations/resid_post/last"
    array: Any = zarr.open_array(tmp_path / "run.zarr", path=path, mode="r")
    assert array[:].tobytes() == values.tobytes()
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        array = zarr.open_array(tmp_path / "run.zarr", path=path, mode="r")
        assert np.asarray(array[:]).view(bits).tobytes() == values.tobytes()
    kvstore = {"driver": "file", "path": str(tmp_path / "run.zarr" / path)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result().read().result()
    assert np.asarray(opened).tobytes() == values.tobytes()
    assert store.info()["bytes"] < Store.open(tmp_path / "plain.zarr").info()["bytes"]
    names = [c["name"] for c in json.loads((tmp_path / "run.zarr" / path / "zarr.json").read_text())["codecs"]]
    assert names == ["bytes", "zstd" if codec == "zstd" else "blosc", "crc32c"]


@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
@pytest.mark.parametrize("codec", ["none", *COMPRESSED])
def test_buffers_of_any_memory_order_are_stored_in_c_order(tmp_path: Path, codec: str, dtype: str) -> None:
    schema = Schema(ONE, 16, 16, {}, {}, dtype=dtype, codec=codec)
    ids = [f"s{i}" for i in range(16)]
    x = np.arange(2 * 16 * 64).reshape(2, 16, 64).astype(schema.numpy_dtype)
    orders = {
        "fortran": np.asfortranarray(x),
        "transposed": np.ascontiguousarray(x.transpose(0, 2, 1)).transpose(0, 2, 1),
        "strided": np.repeat(x, 2, axis=2)[:, :, ::2],
    }
    reference = None
    for name, buffer in {"c": x, **orders}.items():
        store = Store.create(tmp_path / name, schema, {"id": ids, "group": ids})
        store.writer().commit(store.ranges[0], {"resid_post/last": buffer})
        store.refresh()
        read = store.layer("resid_post", "last", 3).numpy()
        reference = read if reference is None else reference
        assert read.tobytes() == reference.tobytes()
        assert store.verify() == []
    if dtype != "int8":
        assert reference is not None
        assert reference.tobytes() == x[1].tobytes()


@pytest.mark.parametrize("codec", COMPRESSED)
def test_every_flipped_byte_of_a_compressed_chunk_is_found(tmp_path: Path, codec: str) -> None:
    store, _ = build(tmp_path / "run.zarr", codec)
    chunk = tmp_path / "run.zarr/activations/resid_post/last/c.1.1.0"
    whole = chunk.read_bytes()
    for position in range(0, len(whole), 7):
        chunk.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(CorruptStoreError, match="range 1 of layer 3 of resid_post/last"):
            store.layer("resid_post", "last", 3).numpy()
        [damage] = store.verify()
        assert "range 1 of layer 3 of resid_post/last" in damage.errors[0]


@pytest.mark.parametrize("codec", COMPRESSED)
@pytest.mark.parametrize("content", ["too short", "too long", "noise", "nothing"])
def test_a_chunk_that_decompresses_to_something_else_is_refused(tmp_path: Path, codec: str, content: str) -> None:
    """Its checksum and its commit are forged to match."""
    store, values = build(tmp_path / "run.zarr", codec)
    compressor = CODECS[codec]
    assert compressor is not None
    data = {
        "too short": lambda: bytes(encode(compressor, values[0, :15].copy())),
        "too long": lambda: bytes(encode(compressor, np.zeros((2**10, 64), dtype=values.dtype))),
        "noise": lambda: bytes(range(200)),
        "nothing": lambda: b"\0",
    }[content]()
    crc32c = google_crc32c.value(data).to_bytes(4, "little")
    (tmp_path / "run.zarr/activations/resid_post/last/c.1.1.0").write_bytes(data + crc32c)
    record = tmp_path / "run.zarr/commits/00000001.json"
    commit = json.loads(record.read_text())
    commit["arrays"]["resid_post/last"]["chunks"][1] |= {"nbytes": len(data) + 4, "crc32c": crc32c.hex()}
    commit.pop("sha256")
    record.write_text(json.dumps(commit | {"sha256": checksum(commit)}))
    with pytest.raises(CorruptStoreError, match="range 1 of layer 3 of resid_post/last"):
        Store.open(str(store.location)).layer("resid_post", "last", 3).numpy()


def test_a_commit_cannot_claim_more_bytes_than_a_chunk_can_have(tmp_path: Path) -> None:
    build(tmp_path / "run.zarr", "zstd")
    record = tmp_path / "run.zarr/commits/00000001.json"
    commit = json.loads(record.read_text())
    commit["arrays"]["resid_post/last"]["chunks"][1]["nbytes"] = 2**40
    commit.pop("sha256")
    record.write_text(json.dumps(commit | {"sha256": checksum(commit)}))
    with pytest.raises(CorruptStoreError, match="speaks of other rows or chunks"):
        Store.open(tmp_path / "run.zarr")


@pytest.mark.parametrize("codec", COMPRESSED)
def test_noise_stays_below_the_bound_of_encoded_sizes(codec: str) -> None:
    compressor = CODECS[codec]
    assert compressor is not None
    for n in (1, 100, 10**6):
        noise = np.frombuffer(np.random.default_rng(0).bytes(n * 2), dtype=np.uint16)
        assert len(encode(compressor, noise)) <= max_encoded_bytes(noise.nbytes)


@pytest.mark.parametrize(("dtype", "codec"), [("int4", "none"), ("bfloat16", "gzip")])
def test_unknown_dtypes_and_codecs_are_refused(tmp_path: Path, dtype: str, codec: str) -> None:
    with pytest.raises(InputError, match=f"dtype '{dtype}' and codec '{codec}': there are bfloat16.*lz4"):
        Store.create(
            tmp_path / "run.zarr", Schema(ONE, 1, 1, {}, {}, dtype=dtype, codec=codec), {"id": ["a"], "group": ["a"]}
        )


# Eight bits

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(deadline=None, max_examples=200)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=3, max_side=5), elements=FLOATS))
def test_a_quantised_value_is_within_half_a_scale(x: np.ndarray[Any, Any]) -> None:
    q, scale = quantize(x)
    out = np.empty_like(x)
    dequantize(q, scale, out)
    # Half a scale, and the float32 rounding of a value that lies halfway. A scale that underflows loses its vector to
    # zeros, whose error is below the smallest of normal numbers.
    bound = np.abs(x).max(axis=-1).astype(np.float64) * (1 / 254 + 2**-22) + 2e-38
    assert (np.abs(out.astype(np.float64) - x) <= bound[..., None]).all()
    assert (q.dtype, scale.dtype) == (np.int8, np.float32)


def test_a_vector_with_a_value_that_is_not_finite_is_nan_and_counted(tmp_path: Path) -> None:
    schema = Schema(ONE, 4, 4, {}, {}, dtype="int8")
    store = Store.create(tmp_path / "run.zarr", schema, {"id": list("abcd"), "group": list("abcd")})
    buffers = store.writer().buffers()
    buffers["resid_post/last"][:] = 1.0
    buffers["resid_post/last"][0, 1, 5] = np.inf
    buffers["resid_post/last"][1, 2, 7] = np.nan
    store.writer().commit(store.ranges[0], buffers, {3: "a broken image"})
    store.refresh()
    assert store.info()["nonfinite"] == 2
    assert np.isnan(store.layer("resid_post", "last", 0).numpy()).all(axis=1).tolist() == [False, True, False, True]
    assert np.isnan(store.layer("resid_post", "last", 3).numpy()).all(axis=1).tolist() == [False, False, True, True]


@pytest.mark.parametrize("codec", ["none", *COMPRESSED])
def test_int8_is_read_as_float32_and_by_others_as_integers_with_a_scale(tmp_path: Path, codec: str) -> None:
    store, values = build(tmp_path / "run.zarr", codec, "int8")
    layer = store.layer("resid_post", "last", 3)
    assert layer.dtype == np.float32
    bound = np.abs(values[1]).max(axis=1, keepdims=True) / 254 * (1 + 1e-6)
    for read in (layer.numpy(), layer.torch().numpy(), np.concatenate([x for _, x in layer]), layer.rows(range(40))):
        assert (np.abs(read - values[1]) <= bound).all()
    group: Any = zarr.open_group(tmp_path / "run.zarr/activations/resid_post", mode="r")
    assert group["last"].dtype == np.int8
    assert (group["last"][:] * group["last_scale"][:][..., None]).astype(np.float32).tobytes() == np.stack(
        [store.layer("resid_post", "last", n).numpy() for n in (0, 3)]
    ).tobytes()


def test_a_damaged_scale_is_named(tmp_path: Path) -> None:
    store, _ = build(tmp_path / "run.zarr", "none", "int8")
    scale = tmp_path / "run.zarr/activations/resid_post/last_scale/c.0.1"
    scale.write_bytes(scale.read_bytes()[:-5] + b"\1" + scale.read_bytes()[-4:])
    with pytest.raises(CorruptStoreError, match="the scale of range 1 of layer 0 of resid_post/last"):
        store.layer("resid_post", "last", 0).numpy()
    [damage] = store.verify()
    assert "the scale of range 1 of resid_post/last" in damage.errors[0]


def test_int8_takes_half_of_bfloat16(tmp_path: Path) -> None:
    sizes: dict[str, int] = {}
    for dtype in ("int8", "bfloat16"):
        sizes[dtype] = build(tmp_path / dtype, "none", dtype)[0].info()["bytes"]
    assert sizes["int8"] < 0.6 * sizes["bfloat16"]


def test_int8_stores_can_grow(tmp_path: Path) -> None:
    store, values = build(tmp_path / "run.zarr", "zstd", "int8")
    ids = [f"t{i}" for i in range(3)]
    store.append({"id": ids, "group": ids})
    buffers: dict[str, Any] = store.writer().buffers()
    buffers["resid_post/last"][:, :3] = 2.0
    store.writer().commit(store.missing[0], buffers)
    store.refresh()
    assert store.layer("resid_post", "last", 0).rows([40, 41, 42]).tolist() == [[2.0] * 64] * 3
    assert store.verify() == []
    assert values.shape[1] == 40
