"""A commit record that is damaged, or speaks of something else, is an error; a store cannot lead out of its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import Directory, Store
from sonde.store.schema import checksum


def signed(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the checksum that it should have: what is behind that is put to the test."""
    record.pop("sha256")
    return record | {"sha256": checksum(record)}


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        record = json.loads(data)
        change(record)
        return json.dumps(signed(record)).encode()

    return edit


def chunk(record: dict[str, Any], position: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = record["arrays"]["resid_post/last"]["chunks"][position]
    return found


RECORDS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "not text": lambda data: b"\xff\xfe" + data,
    "not JSON": lambda data: b"commit",
    "null": lambda data: b"null",
    "a list": lambda data: b"[]",
    "a number": lambda data: b"1",
    "very deep": lambda data: b"[" * 200_000,
    "an empty object": lambda data: b"{}",
    "without skipped": edited(lambda r: r.pop("skipped")),
    "of another index": edited(lambda r: r["range"].update(index=2)),
    "of other rows": edited(lambda r: r["range"].update(start=3)),
    "of more rows": edited(lambda r: r["range"].update(stop=9)),
    "with an unknown field": edited(lambda r: r["range"].update(step=2)),
    "without an array": edited(lambda r: r["arrays"].pop("resid_post/mean")),
    "with an array too many": edited(lambda r: r["arrays"].update(z=r["arrays"]["resid_post/mean"])),
    "without a chunk": edited(lambda r: r["arrays"]["resid_post/last"]["chunks"].pop()),
    "with chunks in another order": edited(lambda r: r["arrays"]["resid_post/last"]["chunks"].reverse()),
    "with a chunk of another range": edited(lambda r: chunk(r).update(key="activations/resid_post/last/c.0.0.0")),
    "with a chunk outside": edited(lambda r: chunk(r).update(key="../outside/c.0.1.0")),
    "with a chunk far outside": edited(lambda r: chunk(r).update(key="/etc/passwd")),
    "with a chunk back inside": edited(lambda r: chunk(r).update(key="commits/../activations/resid_post/last/c.0.1.0")),
    "with a chunk of another length": edited(lambda r: chunk(r).update(nbytes=67)),
    "with a length that is no number": edited(lambda r: chunk(r).update(nbytes="68")),
    "with chunks that are none": edited(lambda r: r["arrays"]["resid_post/last"].update(chunks=[1, 2, 3])),
    "with arrays that are none": edited(lambda r: r.update(arrays=["resid_post/last"])),
    "with endless non-finite values": edited(lambda r: r["arrays"]["resid_post/last"].update(nonfinite=float("inf"))),
    "skipping a row of another range": edited(lambda r: r["skipped"].update({"0": "why"})),
    "skipping a row before all": edited(lambda r: r["skipped"].update({"-1": "why"})),
    "skipping what is no row": edited(lambda r: r["skipped"].update({"s1": "why"})),
}


@pytest.mark.parametrize("edit", RECORDS.values(), ids=RECORDS.keys())
def test_a_damaged_record_is_an_error_that_names_it(example: Any, edit: Callable[[bytes], bytes]) -> None:
    record = example.record(1)
    record.write_bytes(edit(record.read_bytes()))
    with pytest.raises(CorruptStoreError, match=r"commits/00000001\.json.*run `sonde verify --repair`"):
        example.reopen()
    lenient = Store.open(example.path, strict=False)
    assert [damage.range.index for damage in lenient.verify()] == [1]
    lenient.forget([damage.range for damage in lenient.verify()])
    store = example.reopen()
    assert [r.index for r in store.missing] == [1]


def test_a_record_of_another_range_is_refused(example: Any) -> None:
    shutil.copyfile(example.record(0), example.record(1))
    with pytest.raises(CorruptStoreError, match=r"00000001\.json speaks of other rows"):
        example.reopen()


def test_a_record_with_another_checksum_condemns_its_chunk(example: Any) -> None:
    record = example.record(1)
    record.write_bytes(edited(lambda r: chunk(r).update(crc32c="00000000"))(record.read_bytes()))
    with pytest.raises(CorruptStoreError, match=r"range 1 of layer 0 .* is not the chunk that was committed"):
        example.reopen().layer("resid_post", "last", 0).numpy()


def test_a_record_behind_a_link_is_refused(example: Any) -> None:
    outside = example.path.parent / "record.json"
    example.record(1).rename(outside)
    example.record(1).symlink_to(outside)
    with pytest.raises(CorruptStoreError, match="symbolic link"):
        example.reopen()


def test_strangers_among_the_records_do_not_disturb(example: Any) -> None:
    for name in ("00000003.json", "0000001.json", ".00000001.json.partial", "note.txt"):
        (example.path / "commits" / name).write_text("{")
    assert example.reopen().complete


@pytest.mark.parametrize("site", ["../../outside", "/etc", "a/../../../outside", "./resid_post", "a//b"])
def test_a_schema_cannot_lead_out_of_the_store(example: Any, site: str) -> None:
    outside = example.path.parent / "outside"
    shutil.copytree(example.path / "activations/resid_post", outside)
    root = json.loads((example.path / "zarr.json").read_text())
    root["attributes"]["sonde"]["arrays"] = [{"site": site, "tokens": "last", "layers": [0], "hidden": 8}]
    (example.path / "zarr.json").write_text(json.dumps(root))
    for index in range(3):
        record = json.loads(example.record(index).read_text())
        chunks = [chunk(record) | {"key": f"activations/{site}/last/c.0.{index}.0"}]
        record["arrays"] = {f"{site}/last": {"chunks": chunks, "nonfinite": 0}}
        example.record(index).write_text(json.dumps(record))
    with pytest.raises(CorruptStoreError, match="leads out of the store"):
        Store.open(example.path).layer(site, "last", 0).numpy()


@pytest.mark.parametrize("key", ["/a", "../a", "a/../b", "a/./b", "a//b", "a/", "", "."])
def test_keys_stay_in_the_folder(tmp_path: Path, key: str) -> None:
    location = Directory(tmp_path / "store")
    uses = (location.read, location.exists, location.remove, location.clear, lambda key: location.write(key, [b""]))
    for use in uses:
        with pytest.raises(StoreError, match="leads out of the store"):
            use(key)
    assert list(tmp_path.iterdir()) == []
