"""File systems of fsspec keep the contract."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from sonde.errors import StoreError
from sonde.store import Location, Store, locate
from sonde.store.filesystem import FileSystem

from .location_contract import LocationContract
from .store_contract import StoreContract

SETTLE = 0.05


@pytest.fixture
def memory_url() -> Iterator[str]:
    folder = f"memory://{uuid4().hex}"
    yield f"{folder}/run.zarr"
    fsspec.filesystem("memory").rm(folder, recursive=True)


class TestMemory(LocationContract):
    @pytest.fixture
    def location(self, memory_url: str) -> Location:
        fsspec.filesystem("memory").makedirs(memory_url)
        return FileSystem(memory_url, settle_seconds=SETTLE)

    def again(self, location: Location) -> Location:
        return FileSystem(str(location), settle_seconds=SETTLE)


class Remembering(MemoryFileSystem):
    """Memory that lists a folder once and remembers it, as file systems behind a network do."""

    protocol = "remembering"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.listings: dict[str, Any] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.removeprefix("remembering://"))

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        if path not in self.listings:
            self.listings[path] = super().ls(path, detail=True, **options)
        return self.listings[path] if detail else [entry["name"] for entry in self.listings[path]]

    def info(self, path: str, **options: Any) -> Any:
        folder, _, _ = path.rpartition("/")
        for entry in self.listings.get(folder, ()):
            if entry["name"] == path:
                return entry
        return super().info(path, **options)

    def invalidate_cache(self, path: str | None = None) -> None:
        self.listings.clear()


class TestRemembering(LocationContract):
    @pytest.fixture
    def location(self, memory_url: str) -> Location:
        fsspec.register_implementation("remembering", Remembering, clobber=True)
        fsspec.filesystem("memory").makedirs(memory_url)
        return FileSystem(memory_url.replace("memory", "remembering"), settle_seconds=SETTLE)

    def again(self, location: Location) -> Location:
        return FileSystem(str(location), settle_seconds=SETTLE)


class TestLocal(LocationContract):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Location:
        return FileSystem(f"local://{tmp_path}/run.zarr", settle_seconds=SETTLE)

    def again(self, location: Location) -> Location:
        return FileSystem(str(location), settle_seconds=SETTLE)


class TestStoreInMemory(StoreContract):
    @pytest.fixture
    def url(self, memory_url: str) -> str:
        fsspec.filesystem("memory").makedirs(memory_url)
        return memory_url


class TestStoreInALocalFileSystem(StoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"local://{tmp_path}/run.zarr"


def test_the_memory_is_that_of_the_whole_process(memory_url: str) -> None:
    locate(memory_url).write("a/b", [b"1"])
    assert locate(f"{memory_url}/").read("a/b") == b"1"
    assert fsspec.filesystem("memory").cat(f"{memory_url}/a/b") == b"1"


def test_it_is_pickled_by_its_url(memory_url: str) -> None:
    location = FileSystem(memory_url, lease_seconds=7)
    location.write("a", [b"1"])
    copy = pickle.loads(pickle.dumps(location))
    assert copy.read("a") == b"1"
    assert copy.lease_seconds == 7


def test_links_are_not_followed_when_a_folder_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("kept")
    (tmp_path / "run.zarr" / "labels").mkdir(parents=True)
    (tmp_path / "run.zarr" / "labels" / "link").symlink_to(tmp_path / "precious")
    location = FileSystem(f"local://{tmp_path}/run.zarr")
    assert list(location.walk()) == ["labels/link"]
    location.clear("labels")
    assert (tmp_path / "precious" / "file").read_text() == "kept"
    assert list(location.walk()) == []


@pytest.mark.parametrize("url", ["foo://x/run.zarr", "https://host/run.zarr", "zip://x", "simplecache::s3://b/x"])
def test_a_scheme_that_cannot_hold_a_store_is_refused_with_those_that_can(url: str) -> None:
    with pytest.raises(StoreError, match=r"stores cannot live in .*s3://.*memory://.*sftp://"):
        Store.open(url)


@pytest.mark.parametrize(("url", "package"), [("lakefs://r/b/run.zarr", "lakefs-spec"), ("box://run.zarr", "boxfs")])
def test_a_missing_driver_is_named(url: str, package: str) -> None:
    with pytest.raises(StoreError, match=f"not installed: .*{package}"):
        Store.open(url)


def test_a_file_system_of_no_folder_is_refused() -> None:
    with pytest.raises(StoreError, match="names no folder"):
        locate("memory://")
