"""All tokens of every sample: ragged arrays, read by sample or by range, pooled without the model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import xarray
import zarr

from sonde.errors import CorruptStoreError, InputError, StoreError
from sonde.store import ArraySpec, Range, Schema, Store, as_float32, token_buffer
from sonde.store.copying import copy_store

HIDDEN = 6
LENGTHS = [3, 1, 7, 2, 5, 1, 1, 9, 4, 2]
ALL, LAST = ArraySpec("resid_post", "all", (0, 3), HIDDEN), ArraySpec("resid_post", "last", (0, 3), HIDDEN)
SKIPPED = {5: "a broken image"}


@dataclass(frozen=True, slots=True)
class Ragged:
    """A store of all tokens, and what it must hold by sample."""

    path: Path
    store: Store
    values: list[np.ndarray[Any, Any]]
    token_ids: list[list[int]]
    modality: list[list[int]]

    def commit(self, range_: Range) -> None:
        buffers = self.store.writer().buffers()
        for i in range(range_.start, range_.stop):
            if i not in SKIPPED:
                buffers["resid_post/all"].put(i, self.values[i], self.token_ids[i], self.modality[i])
                buffers["resid_post/last"][:, i - range_.start] = self.values[i][:, -1]
        self.store.writer().commit(
            range_, buffers, {r: why for r, why in SKIPPED.items() if r in range(*slice_of(range_))}
        )


def slice_of(range_: Range) -> tuple[int, int]:
    return range_.start, range_.stop


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ragged]:
    # Chunks of five tokens, so that samples straddle them.
    monkeypatch.setattr(token_buffer, "MAX_CHUNK_BYTES", 5 * HIDDEN * 2)

    def build(dtype: str = "bfloat16", codec: str = "none", name: str = "run.zarr") -> Ragged:
        schema = Schema((ALL, LAST), 10, 4, {"name": "tiny"}, {}, dtype=dtype, codec=codec)
        ids = [f"s{i}" for i in range(10)]
        store = Store.create(tmp_path / name, schema, {"id": ids, "group": ids})
        draw = np.random.default_rng(0)
        values = [draw.normal(size=(2, n, HIDDEN)).astype(schema.numpy_dtype) for n in LENGTHS]
        token_ids = [draw.integers(0, 99, n).tolist() for n in LENGTHS]
        modality = [(draw.random(n) < 0.5).astype(int).tolist() for n in LENGTHS]
        ragged = Ragged(tmp_path / name, store, values, token_ids, modality)
        for range_ in store.ranges:
            ragged.commit(range_)
        store.refresh()
        return ragged

    return build


def lengths() -> list[int]:
    return [0 if i in SKIPPED else n for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("codec", ["none", "zstd", "lz4+bitshuffle"])
def test_every_way_of_reading_gives_the_tokens_of_each_sample(make: Callable[..., Ragged], codec: str) -> None:
    ragged = make(codec=codec)
    store = Store.open(ragged.path)
    assert store.verify() == []
    for row, number in enumerate((0, 3)):
        layer = store.tokens("resid_post", number)
        expected = [np.empty((0, HIDDEN)) if i in SKIPPED else x[row] for i, x in enumerate(ragged.values)]
        assert len(layer) == 10
        assert layer.hidden_size == HIDDEN
        assert layer.lengths.tolist() == lengths()
        assert layer.offsets.tolist() == [0, *np.cumsum(lengths()).tolist()]
        wanted = [7, 0, 5, 9, 7, 2]
        for i, x in zip(wanted, layer.samples(wanted), strict=True):
            assert x.shape == expected[i].shape
            assert x.tobytes() == expected[i].tobytes() or not len(x)
        assert layer[8].tobytes() == expected[8].tobytes()
        for range_, tokens in zip(store.ranges, layer, strict=True):
            assert tokens.rows == range_.rows
            assert len(tokens) == len(range_)
            for i in range(len(tokens)):
                sample = range_.start + i
                a, b = tokens.offsets[i : i + 2]
                assert tokens.sample(i).tobytes() == expected[sample].astype(tokens.values.dtype).tobytes()
                if sample not in SKIPPED:
                    assert tokens.token_ids[a:b].tolist() == ragged.token_ids[sample]
                    assert tokens.modality[a:b].tolist() == ragged.modality[sample]


def test_any_zarr_reader_opens_a_range(make: Callable[..., Ragged]) -> None:
    ragged = make()
    folder = ragged.path / "activations/resid_post/all/00000001"
    expected = np.concatenate([ragged.values[i] for i in (4, 6, 7)], axis=1)
    group: Any = zarr.open_group(folder, mode="r")
    assert group.attrs["modality"] == ["text", "image"]
    assert group["values"].metadata.dimension_names == ("layer", "token", "hidden")
    np.testing.assert_array_equal(group["values"][:].view(np.uint16), expected.view(np.uint16))
    assert group["offsets"][:].tolist() == [0, 5, 5, 6, 15]
    assert group["token_ids"][:].tolist() == [token for i in (4, 6, 7) for token in ragged.token_ids[i]]
    opened = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "values")}}
    ).result()
    np.testing.assert_array_equal(np.asarray(opened.read().result()).view(np.uint16), expected.view(np.uint16))
    dataset = xarray.open_zarr(folder, consolidated=False)
    assert dict(dataset.sizes) == {"layer": 2, "token": 15, "hidden": HIDDEN, "boundary": 5}


def test_sample_and_token_arrays_agree(make: Callable[..., Ragged]) -> None:
    ragged = make()
    last = ragged.store.layer("resid_post", "last", 3).numpy()
    for i in range(10):
        if i not in SKIPPED:
            assert last[i].tobytes() == ragged.store.tokens("resid_post", 3)[i][-1].tobytes()


def expected_pool(ragged: Ragged, i: int, tokens: str) -> np.ndarray[Any, Any]:
    x, kinds = as_float32(ragged.values[i]).astype(np.float64), np.array(ragged.modality[i])
    nothing = np.full((2, HIDDEN), np.nan)
    return {
        "first": lambda: x[:, 0],
        "mean": lambda: x.mean(axis=1),
        "max": lambda: x.max(axis=1),
        "image_mean": lambda: x[:, kinds == 1].mean(axis=1) if (kinds == 1).any() else nothing,
        "text_mean": lambda: x[:, kinds == 0].mean(axis=1) if (kinds == 0).any() else nothing,
    }[tokens]()


@pytest.mark.parametrize("tokens", ["first", "mean", "max", "image_mean", "text_mean"])
def test_pooling_makes_an_array_of_one_row_per_sample(make: Callable[..., Ragged], tokens: str) -> None:
    ragged = make(dtype="float32")
    reader = Store.open(ragged.path)
    [spec] = ragged.store.pool(tokens)
    assert (spec.name, spec.pooled) == (f"resid_post/{tokens}", True)
    for store in (ragged.store, Store.open(ragged.path)):
        assert store.verify() == []
        for row, number in enumerate((0, 3)):
            got = store.layer("resid_post", tokens, number).numpy()
            for i in range(10):
                expected = np.full(HIDDEN, np.nan) if i in SKIPPED else expected_pool(ragged, i, tokens)[row]
                np.testing.assert_allclose(got[i], expected, rtol=1e-5)
    # Who opened the store before goes on without the new array.
    reader.refresh()
    assert [a.name for a in reader.arrays] == ["resid_post/all", "resid_post/last"]
    assert reader.complete


def test_ranges_that_come_after_a_pooling_are_pooled_as_they_are_written(make: Callable[..., Ragged]) -> None:
    whole, later = make(name="whole.zarr"), make(name="later.zarr")
    for ragged in (whole, later):
        ragged.store.pool("mean")
    later.store.forget([later.store.ranges[1]])
    later.commit(later.store.ranges[1])
    later.store.refresh()
    files = [{p.relative_to(r.path): p.read_bytes() for p in r.path.rglob("*") if p.is_file()} for r in (whole, later)]
    assert files[0] == files[1]


def test_pooling_what_is_not_there_is_an_error(make: Callable[..., Ragged], example: Any) -> None:
    store = make(name="tokens.zarr").store
    with pytest.raises(InputError, match="cannot be pooled by 'median'; there are last, first"):
        store.pool("median")
    with pytest.raises(StoreError, match="has activations 'resid_post/last' already"):
        store.pool("last")
    with pytest.raises(StoreError, match="has no activations 'embed/all': it has"):
        store.pool("mean", sites=["embed"])
    with pytest.raises(StoreError, match="keeps no array of all tokens"):
        example.store.pool("mean")


def test_an_array_of_all_tokens_is_no_array_of_rows(make: Callable[..., Ragged]) -> None:
    store = make().store
    with pytest.raises(StoreError, match=r"keeps every token.*store\.tokens\('resid_post', 0\).*store\.pool"):
        store.layer("resid_post", "all", 0)
    with pytest.raises(StoreError, match="has no layer 1"):
        store.tokens("resid_post", 1)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_tokens_of_one_modality_are_kept_read_pooled_and_copied(tmp_path: Path, dtype: str) -> None:
    specs = [ArraySpec("resid_post", f"all:{kind}", (0, 3), HIDDEN) for kind in ("text", "image")]
    schema = Schema(tuple(specs), 10, 4, {"name": "tiny"}, {}, dtype=dtype)
    ids = [f"s{i}" for i in range(10)]
    store = Store.create(tmp_path / "run.zarr", schema, {"id": ids, "group": ids})
    draw = np.random.default_rng(0)
    # The first sample has no image.
    values = {spec.tokens: [draw.normal(size=(2, n, HIDDEN)) for n in [0, *LENGTHS[1:]]] for spec in specs}
    for range_ in store.ranges:
        buffers = store.writer().buffers()
        for kind, tokens in enumerate(values):
            for i in range(range_.start, range_.stop):
                x = values[tokens][i].astype(np.float32)
                buffers[f"resid_post/{tokens}"].put(i, x, np.arange(x.shape[1]), np.full(x.shape[1], kind))
        store.writer().commit(range_, buffers)
    store.refresh()
    for tokens, samples in values.items():
        layer = store.tokens("resid_post", 3, tokens)
        assert layer.lengths.tolist() == [x.shape[1] for x in samples]
        for got, x in zip(layer.samples(range(10)), samples, strict=True):
            np.testing.assert_allclose(got, x[1], atol=0.02 if dtype == "int8" else 1e-6)
    with pytest.raises(
        StoreError, match=r"every image token.*tokens\('resid_post', 0, 'all:image'\).*pool\('image_mean'"
    ):
        store.layer("resid_post", "all:image", 0)
    with pytest.raises(InputError, match="'mean' keeps one row per sample"):
        store.tokens("resid_post", 0, "mean")
    with pytest.raises(StoreError, match="has no activations 'resid_post/all': it has resid_post/all:text"):
        store.tokens("resid_post", 0)
    with pytest.raises(StoreError, match="keeps no array of all tokens to make 'mean' of"):
        store.pool("mean")
    for kind in ("image", "text"):
        [spec] = store.pool(f"{kind}_mean")
        expected = [x[1].mean(axis=0) if x.size else np.full(HIDDEN, np.nan) for x in values[f"all:{kind}"]]
        np.testing.assert_allclose(store.layer(spec.site, spec.tokens, 3).numpy(), expected, atol=0.05)
    assert copy_store(store, tmp_path / "copy.zarr").store.verify() == store.verify() == []
    assert "resid_post/all:image [2, tokens, 6]" in repr(store)


PARTS = {
    "values": ("values/c.1.2.0", "chunk 2 of range 1 of layer 3 of resid_post/all"),
    "offsets": ("offsets/c.0", "offsets of range 1 of resid_post/all"),
    "token_ids": ("token_ids/c.0", "token_ids of range 1 of resid_post/all"),
    "modality": ("modality/c.0", "modality of range 1 of resid_post/all"),
}


@pytest.mark.parametrize(("key", "name"), PARTS.values(), ids=PARTS.keys())
@pytest.mark.parametrize("how", ["flipped", "missing", "short", "another's"])
def test_a_damaged_part_is_named(make: Callable[..., Ragged], key: str, name: str, how: str) -> None:
    ragged = make()
    path = ragged.path / "activations/resid_post/all/00000001" / key
    data = bytearray(path.read_bytes())
    data[1] ^= 4
    other = Path(
        str(path).replace("c.1.2.0", "c.0.2.0").replace("00000001", "00000000" if "values" not in key else "00000001")
    )
    spoilt = {"flipped": bytes(data), "short": bytes(data[:-1]), "another's": other.read_bytes()}
    path.unlink() if how == "missing" else path.write_bytes(spoilt[how])
    store = Store.open(ragged.path)
    layer = store.tokens("resid_post", 3)
    with pytest.raises(CorruptStoreError, match=name):
        layer.range(1)
    with pytest.raises(CorruptStoreError, match=name):
        list(layer)
    [damage] = store.verify()
    assert damage.range == store.ranges[1]
    assert name in damage.errors[0]
    assert layer.range(0).sample(0).tobytes() == ragged.values[0][1].tobytes()
    store.repair([damage])
    ragged.commit(store.ranges[1])
    assert Store.open(ragged.path).verify() == []


def test_buffers_take_only_what_fits(make: Callable[..., Ragged]) -> None:
    store = make().store
    buffer = store.writer().buffers()["resid_post/all"]
    x = np.zeros((2, 3, HIDDEN), dtype=store.schema.numpy_dtype)
    for bad in (
        lambda: buffer.put(0, x[:1], [1, 2, 3], [0, 0, 0]),
        lambda: buffer.put(0, x, [1, 2], [0, 0]),
        lambda: buffer.put(0, x, [1, 2, 3], [0]),
        lambda: buffer.put(0, x.astype(np.float32), [1, 2, 3], [0, 0, 0]),
        lambda: buffer.put(0, x, [1, 2, 3], [0, 0, 9]),
    ):
        with pytest.raises(InputError):
            bad()


def test_a_range_whose_samples_are_not_all_there_is_refused(make: Callable[..., Ragged]) -> None:
    store = make().store
    store.forget([store.ranges[0]])
    buffers = store.writer().buffers()
    x = np.zeros((2, 1, HIDDEN), dtype=store.schema.numpy_dtype)
    for row in (0, 1, 9):
        buffers["resid_post/all"].put(row, x, [1], [0])
    with pytest.raises(InputError, match=r"lacks \[2, 3\] and has \[9\] besides"):
        store.writer().commit(store.ranges[0], buffers)
    assert Store.open(str(store.location)).missing == (store.ranges[0],)


def test_int8_tokens_come_back_within_half_a_scale(make: Callable[..., Ragged]) -> None:
    ragged = make(dtype="int8")
    store = Store.open(ragged.path)
    assert store.verify() == []
    for row, number in enumerate((0, 3)):
        for i, x in enumerate(store.tokens("resid_post", number).samples(range(10))):
            if i not in SKIPPED:
                exact = ragged.values[i][row]
                assert x.dtype == np.float32
                assert (np.abs(x - exact) <= np.abs(exact).max(axis=1, keepdims=True) / 254 * 1.0001).all()
    [spec] = store.pool("mean")
    got = store.layer("resid_post", "mean", 0).numpy()
    np.testing.assert_allclose(got[2], ragged.values[2][0].mean(axis=0), atol=0.05)
    assert spec.pooled
