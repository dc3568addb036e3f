"""Stores that claim to be larger than they are take no memory: they are refused by what is really there."""

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc

from sonde.errors import CorruptStoreError, InputError, StoreError
from sonde.store import ArraySpec, Schema, Store

from .hostile import (
    PEAK_BYTES,
    bounded_memory,
    deep,
    forge_chunk,
    sign_commit,
    with_crc,
)
from .hostile_store import ROWS, Base, build, copy_of, edit, forged_schema, put, read_watched

GIB = 2**30


@pytest.fixture(scope="module")
def sound(scratch: str) -> Iterator[dict[str, Base]]:
    """A store by codec."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield {codec: build(Path(folder) / codec, "float32", codec) for codec in ("zstd", "lz4+bitshuffle")}


@pytest.fixture
def base(sound: dict[str, Base], tmp_path: Path) -> Base:
    return copy_of(sound["zstd"], tmp_path / "run.zarr")


def samples(n: int, size: int = 2) -> Callable[[dict[str, Any]], object]:
    """Claim ``n`` samples in ranges of ``size``, of one value each where the size is large."""
    return lambda s: (
        s.update(n_samples=n, range_size=size, parts=[{"n_samples": n, "fingerprint": ""}]),
        [array.update(hidden=1) for array in s["arrays"] if size > 2],
    )


SHAPES: dict[str, Callable[[dict[str, Any]], object]] = {
    "10^15 samples": samples(10**15),
    "10^15 samples in large ranges": samples(10**15, 2**30),
    "10^9 samples": samples(10**9, 2**12),
    "10^6 samples in ranges of one": samples(10**6, 1),
    "2^18 samples": samples(2**18, 1),
    "as many samples as there is room for in a number": samples(2**53 - 1, 2**30),
    "many parts": lambda s: s.update(n_samples=10**5, parts=[{"n_samples": 1, "fingerprint": ""}] * 10**5),
    "a first part and an endless second": lambda s: s.update(
        n_samples=2**40, range_size=2**30, parts=[{"n_samples": n, "fingerprint": ""} for n in (1, 2**40 - 1)]
    ),
    "ranges of 2^60": lambda s: s.update(range_size=2**60),
    "ranges of 2^29": lambda s: s.update(range_size=2**29),
    "a number of 4,000 digits": lambda s: s.update(range_size=10**4000),
    "hidden of 2^40": lambda s: s["arrays"][0].update(hidden=2**40),
    "hidden of 2^29": lambda s: [array.update(hidden=2**29) for array in s["arrays"]],
    "layers of 10^30": lambda s: [array.update(layers=[10**30, 10**31]) for array in s["arrays"]],
    "10^5 layers": lambda s: [array.update(layers=list(range(10**5))) for array in s["arrays"]],
    "no layers": lambda s: [array.update(layers=[]) for array in s["arrays"]],
    "2,000 arrays": lambda s: s.update(arrays=[s["arrays"][0] | {"site": f"s{i}"} for i in range(2000)]),
    "arrays inside of arrays": lambda s: s["arrays"].append(s["arrays"][0] | {"site": "resid_post/last"}),
    "an array in the place of coordinates": lambda s: s["arrays"][0].update(tokens="layer"),
    "the same array twice": lambda s: s["arrays"].append(s["arrays"][0]),
    "no arrays": lambda s: s.update(arrays=[]),
    "a name without end": lambda s: s["arrays"][0].update(site="x" * 10**6),
    "a name longer than that of a file": lambda s: s["arrays"][0].update(site="x" * 250),
    "deep provenance": lambda s: s.update(model=deep(500)),
    "a dtype that is a list": lambda s: s.update(dtype=["float32"]),
    "a version that is nearly one": lambda s: s.update(version=2.0),
    "the first version": lambda s: s.update(version=1, n_samples=10**9),
}


@pytest.mark.parametrize("change", SHAPES.values(), ids=SHAPES.keys())
def test_an_absurd_schema_is_refused_before_memory_is_taken(base: Base, change: Callable[[Any], object]) -> None:
    put(base, forged_schema(base, change))
    with pytest.raises(StoreError):
        read_watched(base)


def test_a_layer_larger_than_the_memory_is_an_error_that_says_so(sound: dict[str, Base], tmp_path: Path) -> None:
    """The records agree with the schema, and zstd may be of any ratio: only the chunks are not there."""
    base = copy_of(sound["zstd"], tmp_path / "run.zarr")
    put(base, forged_schema(base, lambda s: s.update(arrays=[s["arrays"][0] | {"hidden": 2**29}])))
    with pytest.raises(CorruptStoreError, match="speaks of other rows or chunks"):
        read_watched(base)
    for key in base.files:
        if key.startswith("commits/0"):
            record = json.loads(base.files[key])
            record["arrays"] = {ROWS.name: record["arrays"][ROWS.name]}
            for chunk in record["arrays"][ROWS.name]["chunks"]:
                chunk["nbytes"] = 2**18
            put(base, {key: sign_commit(record)})
    with bounded_memory(8 * GIB) as peak:
        with pytest.raises(StoreError, match=r"Unable to allocate 14.0 GiB .* read ranges or rows"):
            base.reopen().layer("resid_post", "last", 0).numpy()
        with pytest.raises(CorruptStoreError, match="range 1 of layer 0 of resid_post/last has"):
            base.reopen().layer("resid_post", "last", 0).range(1)
        assert peak() < PEAK_BYTES


def zstd_of_unknown_size(n_blocks: int) -> bytes:
    """A frame that does not say how much it holds: blocks of 128 KiB of one byte each (RFC 8878, section 3.1.1)."""
    blocks = [(2**17 << 3 | 1 << 1 | (i == n_blocks - 1)).to_bytes(3, "little") + b"x" for i in range(n_blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(blocks)


def zstd_of_size(n: int, n_blocks: int) -> bytes:
    """The same, said to hold ``n`` bytes."""
    return b"\x28\xb5\x2f\xfd\xc0\x38" + n.to_bytes(8, "little") + zstd_of_unknown_size(n_blocks)[6:]


def blosc_of_size(n: int, **fields: int) -> bytes:
    """A Blosc buffer with false numbers in its header: bytes of content and of itself, where its blocks start."""
    buffer = bytearray(Blosc(cname="lz4", shuffle=Blosc.BITSHUFFLE).encode(np.zeros(24, dtype=np.float32)))
    struct.pack_into("<I", buffer, 4, n)
    for name, position in (("size", 12), ("start", 16)):
        if name in fields:
            struct.pack_into("<I", buffer, position, fields[name])
    return bytes(buffer)


ROW_BYTES, TOKEN_BYTES = 2 * 4 * 4, 6 * 4 * 4
BOMBS: dict[str, tuple[str, bytes]] = {
    "zstd that claims 10 GiB": ("zstd", zstd_of_size(10 * GIB, 1)),
    "zstd that holds 512 MiB and says so": ("zstd", zstd_of_size(GIB // 2, 4096)),
    "zstd that holds 512 MiB and does not say": ("zstd", zstd_of_unknown_size(4096)),
    "zstd that holds 512 MiB and claims a chunk": ("zstd", zstd_of_size(ROW_BYTES, 4096)),
    "zstd that holds less than a chunk": ("zstd", zstd_of_size(ROW_BYTES - 1, 1)),
    "nothing": ("zstd", b"?"),
    "blosc that claims 2 GiB": ("lz4+bitshuffle", blosc_of_size(2**31 - 1)),
    "blosc that claims less than a chunk": ("lz4+bitshuffle", blosc_of_size(ROW_BYTES - 4)),
    "blosc that points behind its end": ("lz4+bitshuffle", blosc_of_size(ROW_BYTES, size=2**31 - 1, start=2**30)),
    "blosc that is longer than it is": ("lz4+bitshuffle", blosc_of_size(ROW_BYTES, size=2**31 - 1)),
    "blosc of a header alone": ("lz4+bitshuffle", blosc_of_size(ROW_BYTES)[:16]),
}


@pytest.mark.parametrize("array", ["rows", "tokens"])
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_chunk_that_does_not_hold_what_it_should_is_refused(
    sound: dict[str, Base], tmp_path: Path, array: str, bomb: tuple[str, bytes]
) -> None:
    codec, data = bomb
    base = copy_of(sound[codec], tmp_path / "run.zarr")
    key = {"rows": "activations/resid_post/last/c.0.0.0", "tokens": "activations/z/all/00000000/values/c.0.0.0"}[array]
    put(base, forge_chunk(base.files, "commits/00000000.json", key, data))
    with pytest.raises(CorruptStoreError):
        read_watched(base)


@pytest.mark.parametrize("field", ["n_tokens", "chunk_tokens"])
@pytest.mark.parametrize("value", [2**62, 2**40 - 1, 2**34, 2**31, 10**30, 0, -1, 1.5, None])
def test_absurd_numbers_of_tokens_are_refused(base: Base, field: str, value: Any) -> None:
    key = "commits/00000001.json"
    record = json.loads(base.files[key])
    tokens = record["arrays"]["z/all"]["tokens"]
    tokens |= {"n_tokens": value, "chunk_tokens": value} if field == "n_tokens" else {"chunk_tokens": value}
    if isinstance(value, int):
        tokens["token_ids"]["nbytes"], tokens["modality"]["nbytes"] = 4 * value + 4, value + 4
    put(base, {key: sign_commit(record)})
    with pytest.raises(CorruptStoreError):
        read_watched(base)


@pytest.mark.parametrize(
    "offsets", [[0, 2**62, 6], [0, 2**63 - 1, -(2**63)], [0, -1, 6], [1, 3, 6], [0, 3, 7], [6, 3, 0], [0, 7, 6]]
)
def test_offsets_that_do_not_ascend_are_refused(base: Base, offsets: list[int]) -> None:
    index, key = 1, "activations/z/all/00000001/offsets/c.0"
    data = np.array(offsets, dtype="<i8").tobytes()
    put(base, forge_chunk(base.files, f"commits/{index:08d}.json", key, data))
    with pytest.raises(CorruptStoreError, match="ascend"):
        read_watched(base)


def grid(*chunk: int) -> dict[str, Any]:
    return {"name": "regular", "configuration": {"chunk_shape": chunk}}


def codecs(*names: str, **configuration: Any) -> list[dict[str, Any]]:
    middle = [{"name": name, "configuration": configuration} for name in names]
    return [{"name": "bytes", "configuration": {"endian": "little"}}, *middle, {"name": "crc32c"}]


ZSTD = {"level": 0, "checksum": False}
SMALL_ARRAYS: dict[str, dict[str, Any]] = {
    "endless in the second axis": {"shape": [5, 2**40], "chunk_grid": grid(5, 2**40)},
    "endless in the first axis": {"shape": [2**62], "chunk_grid": grid(5)},
    "of many chunks": {"shape": [2**24], "chunk_grid": grid(1)},
    "of an endless chunk": {"chunk_grid": grid(2**40)},
    "without dimensions": {"shape": [], "chunk_grid": grid(), "dimension_names": []},
    "of many dimensions": {"shape": [5] * 40, "chunk_grid": grid(*[1] * 40), "dimension_names": ["x"] * 40},
    "of texts": {"data_type": "string", "codecs": [{"name": "vlen-utf8"}, {"name": "crc32c"}], "fill_value": ""},
    "of endless texts": {
        "data_type": {"name": "fixed_length_utf32", "configuration": {"length_bytes": 2**40}},
        "fill_value": "",
    },
    "of endless bytes": {"data_type": {"name": "null_terminated_bytes", "configuration": {"length_bytes": 2**40}}},
    "of structures": {"data_type": {"name": "structured", "configuration": {"fields": [["a", "int64"]] * 10**4}}},
    "of objects": {"data_type": "object"},
    "zstd": {"codecs": codecs("zstd", **ZSTD)},
    "gzip": {"codecs": codecs("gzip", level=1)},
    "blosc": {"codecs": codecs("blosc", typesize=4, cname="lz4", clevel=5, shuffle="noshuffle", blocksize=0)},
    "zstd of zstd of zstd": {"codecs": codecs("zstd", "zstd", "zstd", **ZSTD)},
    "shards": {
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {"chunk_shape": [1], "codecs": codecs(), "index_codecs": codecs()},
            }
        ]
    },
    **{
        f"codec {name}": {"codecs": [{"name": name, "configuration": {"id": name.rpartition(".")[2]}}]}
        for name in ("pickle", "numcodecs.pickle", "json2", "numcodecs.json2", "msgpack2", "vlen-array", "vlen-bytes")
    },
    "no codec": {"codecs": []},
    "of Zarr 2": {"zarr_format": 2},
    "a group": {"node_type": "group"},
}


@pytest.mark.parametrize("changes", SMALL_ARRAYS.values(), ids=SMALL_ARRAYS.keys())
@pytest.mark.parametrize("array", ["labels/colour/values", "samples/id"])
def test_absurd_arrays_of_labels_and_columns_are_refused(base: Base, array: str, changes: dict[str, Any]) -> None:
    put(base, edit(base, f"{array}/zarr.json", **changes) | {f"{array}/c/0": with_crc(zstd_of_size(10 * GIB, 1))})
    with pytest.raises(CorruptStoreError):
        read_watched(base)


TEXTS = {
    "2^32 texts": (2**32 - 1).to_bytes(4, "little") + bytes(24),
    "a text of 4 GiB": (6).to_bytes(4, "little") + (2**32 - 1).to_bytes(4, "little") + bytes(20),
    "a text of 2 GiB": (6).to_bytes(4, "little") + (2**31).to_bytes(4, "little") + bytes(20),
    "texts that are none": (6).to_bytes(4, "little") + b"\x01\0\0\0\xff" * 6,
    "nothing": b"",
}


@pytest.mark.parametrize("data", TEXTS.values(), ids=TEXTS.keys())
def test_absurd_texts_are_refused(base: Base, data: bytes) -> None:
    put(base, {"samples/id/c/0": with_crc(data)})
    with pytest.raises(CorruptStoreError, match="sample columns"):
        read_watched(base)


@pytest.mark.parametrize("bomb", [zstd_of_size(10 * GIB, 1), zstd_of_unknown_size(4096), zstd_of_size(28, 4096)])
def test_compressed_texts_of_the_first_version_are_bounded(base: Base, bomb: bytes) -> None:
    array = {"codecs": [{"name": "vlen-utf8"}, {"name": "zstd", "configuration": ZSTD}]}
    put(base, edit(base, "samples/id/zarr.json", **array) | {"samples/id/c/0": bomb})
    with pytest.raises(CorruptStoreError, match="sample columns"):
        read_watched(base)


def test_one_long_text_does_not_widen_all_of_them(tmp_path: Path) -> None:
    """Columns are arrays of equally wide texts: 2,000 times a million characters of four bytes each."""
    texts = ["x" * 10**6, *map(str, range(1, 2000))]
    schema = Schema((ArraySpec("resid_post", "last", (0,), 1),), 2000, 2000, {}, {})
    with pytest.raises(InputError, match=r"longest text of the column 'id' has 1000000 characters"):
        Store.create(tmp_path / "run.zarr", schema, {"id": texts, "group": ["g"] * 2000})
    store = Store.create(tmp_path / "run.zarr", schema, {"id": ["0", *texts[1:]], "group": ["g"] * 2000})
    data = b"".join(len(text).to_bytes(4, "little") + text.encode() for text in texts)
    (tmp_path / "run.zarr/samples/id/c/0").write_bytes(with_crc((2000).to_bytes(4, "little") + data))
    with bounded_memory() as peak:
        with pytest.raises(CorruptStoreError, match="sample columns"):
            _ = store.columns
        assert peak() < PEAK_BYTES
