"""What is committed comes back bit for bit; what is not committed is not there."""

import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonde.errors import InputError, StoreError
from sonde.store import ArraySpec


def crc32c(data: bytes) -> int:
    """Compute Castagnoli's CRC bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def assert_same_bits(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> None:
    assert (x.dtype, x.shape) == (y.dtype, y.shape)
    assert x.tobytes() == y.tobytes()


@settings(max_examples=12, deadline=None)
@given(n_samples=st.integers(1, 30), range_size=st.integers(1, 34), hidden=st.integers(1, 7), data=st.data())
def test_rows_come_back_for_any_range_size(
    build: Callable[..., Any], scratch: str, n_samples: int, range_size: int, hidden: int, data: st.DataObject
) -> None:
    arrays = (ArraySpec("embed", "mean", (0, 5), hidden),)
    wanted = data.draw(st.lists(st.integers(0, n_samples - 1), max_size=12))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        example = build(Path(folder) / "run.zarr", n_samples=n_samples, range_size=range_size, arrays=arrays)
        store = example.reopen()
        assert store.complete
        for site, tokens, number, values in example.layers():
            layer = store.layer(site, tokens, number)
            assert layer.shape == (n_samples, hidden)
            assert_same_bits(layer.numpy(), values)
            assert_same_bits(layer.rows(wanted), values[np.array(wanted, dtype=int)])
            assert_same_bits(np.concatenate([x for _, x in layer]), values)
            for range_ in store.ranges:
                assert_same_bits(layer.range(range_.index), values[range_.rows])


def test_iteration_gives_the_rows_of_each_range(example: Any) -> None:
    values = example.values["vision/resid_post/mean"][1]
    seen = list(example.store.layer("vision/resid_post", "mean", 2))
    assert [(rows.start, rows.stop) for rows, _ in seen] == [(0, 4), (4, 8), (8, 10)]
    for rows, x in seen:
        assert_same_bits(x, values[rows])


def test_what_is_not_committed_is_not_there(build: Callable[..., Any], tmp_path: Path) -> None:
    example = build(tmp_path / "run.zarr", commit=[2, 0])
    store = example.reopen()
    assert not store.complete
    assert [r.index for r in store.missing] == [1]
    assert store.valid.tolist() == [True] * 4 + [False] * 4 + [True] * 2
    layer = store.layer("resid_post", "last", 3)
    assert [rows.start for rows, _ in layer] == [0, 8]
    for read in (layer.numpy, layer.torch, lambda: layer.range(1), lambda: layer.rows([0, 5])):
        with pytest.raises(StoreError, match=r"range 1 of 3 is not committed.*--resume"):
            read()
    assert_same_bits(layer.rows([9, 0]), example.values["resid_post/last"][1][[9, 0]])


def test_chunks_without_their_commit_record_do_not_exist(example: Any) -> None:
    example.record(0).unlink()
    store = example.reopen()
    assert [r.index for r in store.missing] == [0]
    assert [rows.start for rows, _ in store.layer("resid_post", "last", 0)] == [4, 8]


def test_a_commit_lists_every_chunk_with_its_true_length_and_checksum(example: Any) -> None:
    listed: dict[str, dict[str, Any]] = {}
    for index in range(3):
        record = json.loads(example.record(index).read_text())
        assert record["range"] == {"index": index, "start": 4 * index, "stop": min(4 * index + 4, 10)}
        for array in record["arrays"].values():
            assert array["nonfinite"] == 0
            listed |= {chunk["key"]: chunk for chunk in array["chunks"]}
    on_disk = {p.relative_to(example.path).as_posix(): p.read_bytes() for p in example.path.rglob("c.*")}
    assert len(on_disk) == 3 * (3 + 3 + 2)
    assert listed.keys() == on_disk.keys()
    for key, data in on_disk.items():
        crc = crc32c(data[:-4]).to_bytes(4, "little")
        assert data[-4:] == crc
        assert listed[key] == {"key": key, "nbytes": len(data), "crc32c": crc.hex()}
    assert example.reopen().info()["bytes"] == sum(map(len, on_disk.values()))


def test_skipped_samples_are_recorded_masked_and_nan(build: Callable[..., Any], tmp_path: Path) -> None:
    why = {1: "cannot read a.png", 8: "prompt of 9000 tokens"}
    example = build(tmp_path / "run.zarr", skipped=why)
    store = example.reopen()
    assert store.skipped == why
    assert np.flatnonzero(~store.valid).tolist() == [1, 8]
    for site, tokens, number, values in example.layers():
        x = store.layer(site, tokens, number).numpy()
        assert np.isnan(x[[1, 8]].astype(np.float32)).all()
        kept = np.delete(np.arange(10), [1, 8])
        assert_same_bits(x[kept], values[kept])
    assert store.info()["skipped"] == 2
    assert store.info()["nonfinite"] == 0


def test_nonfinite_values_are_counted_by_array_and_range(build: Callable[..., Any], tmp_path: Path) -> None:
    example = build(tmp_path / "run.zarr", commit=[])
    example.values["resid_post/last"][0, 5, :3] = np.nan
    example.values["resid_post/last"][2, 4, 0] = np.inf
    example.values["resid_post/mean"][1, 9, 0] = -np.inf
    for range_ in example.store.ranges:
        example.commit(range_)
    store = example.reopen()
    counts = {(i, name): a.nonfinite for i, c in store.commits.items() for name, a in c.arrays.items() if a.nonfinite}
    assert counts == {(1, "resid_post/last"): 4, (2, "resid_post/mean"): 1}
    assert store.info()["nonfinite"] == 5


def test_the_files_do_not_depend_on_the_order_of_the_commits(build: Callable[..., Any], tmp_path: Path) -> None:
    orders = list(itertools.permutations(range(3)))
    first = build(tmp_path / "first", commit=orders[0]).files()
    for i, order in enumerate(orders[1:]):
        assert build(tmp_path / str(i), commit=order).files() == first


def test_committing_again_changes_no_byte(example: Any) -> None:
    before = example.files()
    for range_ in example.store.ranges:
        example.commit(range_)
    assert example.files() == before


def test_what_a_buffer_held_before_does_not_reach_the_disk(build: Callable[..., Any], tmp_path: Path) -> None:
    expected = build(tmp_path / "fresh", skipped={9: "broken"}).files()
    example = build(tmp_path / "reused", commit=[0, 1])
    last = example.store.ranges[2]
    buffers = example.store.writer().buffers()
    for name, buffer in buffers.items():
        buffer[:] = 7
        buffer[:, : len(last)] = example.values[name][:, last.rows]
    example.store.writer().commit(last, buffers, {9: "broken"})
    assert example.files() == expected


def test_fresh_buffers_are_nan_and_of_the_planned_size(example: Any) -> None:
    buffers = example.store.writer().buffers()
    assert {name: b.shape for name, b in buffers.items()} == {
        "resid_post/last": (3, 4, 8),
        "resid_post/mean": (3, 4, 8),
        "vision/resid_post/mean": (2, 4, 5),
    }
    assert all(np.isnan(b.astype(np.float32)).all() for b in buffers.values())
    assert example.store.writer().nbytes == sum(b.nbytes for b in buffers.values())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b: b.pop("resid_post/mean"), "range 0 of resid_post/mean needs a buffer.*got None"),
        (lambda b: b.update({"resid_post/last": b["resid_post/last"].astype(np.float32)}), "got float32"),
        (lambda b: b.update({"resid_post/last": b["resid_post/last"][:, :3]}), r"bfloat16 \[3, 4, 8\].*\[3, 3, 8\]"),
    ],
)
def test_buffers_of_another_form_are_refused_before_anything_is_written(
    example: Any, spoil: Callable[[Any], Any], message: str
) -> None:
    before = example.files()
    buffers = example.store.writer().buffers()
    spoil(buffers)
    with pytest.raises(InputError, match=message):
        example.store.writer().commit(example.store.ranges[0], buffers)
    assert example.files() == before


@pytest.mark.parametrize("row", [3, 8])
def test_a_range_cannot_skip_rows_of_another(example: Any, row: int) -> None:
    writer = example.store.writer()
    with pytest.raises(InputError, match=rf"rows 4 to 7: it cannot skip \[{row}\]"):
        writer.commit(example.store.ranges[1], writer.buffers(), {row: "broken"})


@pytest.mark.parametrize("rows", [[-1], [10], [0.5], [True, False], [[0, 1]]])
def test_rows_outside_the_store_are_refused(example: Any, rows: Any) -> None:
    with pytest.raises(InputError, match="rows must be integers from 0 to 9"):
        example.store.layer("resid_post", "last", 0).rows(rows)


def test_what_the_store_lacks_is_named_with_what_it_has(example: Any) -> None:
    with pytest.raises(StoreError, match=r"'attn_out/last'.*resid_post/last, resid_post/mean, vision/resid_post/mean"):
        example.store.layer("attn_out", "last", 0)
    with pytest.raises(StoreError, match=r"'resid_post/last' has no layer 1; it has \[0, 3, 7\]"):
        example.store.layer("resid_post", "last", 1)
    for index in (-1, 3):
        with pytest.raises(StoreError, match=f"no range {index}: the store has 3"):
            example.store.layer("resid_post", "last", 0).range(index)
