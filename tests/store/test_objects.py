"""Object stores keep the contract: one in memory, and S3 on a server."""

import pickle
import urllib.request
from collections.abc import Iterator
from urllib.parse import quote
from uuid import uuid4

import pytest

from sonde.errors import StoreError
from sonde.store import Location, Store, locate
from sonde.store.objects import ObjectStorage

from .location_contract import LocationContract, ManyProcesses
from .s3_server import BUCKET, environment, fill, serve_s3
from .store_contract import StoreContract


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve_s3() as endpoint, environment(endpoint):
        yield endpoint


@pytest.fixture
def s3_url(s3: str) -> str:
    return f"s3://{BUCKET}/a folder/{uuid4().hex}/run.zarr"


class TestObjectsInMemory(LocationContract):
    @pytest.fixture
    def location(self) -> Location:
        from obstore.store import MemoryStore

        return ObjectStorage(f"s3://{BUCKET}/run.zarr", client=MemoryStore())

    def again(self, location: Location) -> Location:
        assert isinstance(location, ObjectStorage)
        return ObjectStorage(str(location), client=location.client)


class TestS3(LocationContract, ManyProcesses):
    @pytest.fixture
    def location(self, s3_url: str) -> Location:
        return locate(s3_url)

    def again(self, location: Location) -> Location:
        return locate(str(location))


class TestStoreInS3(StoreContract):
    @pytest.fixture
    def url(self, s3_url: str) -> str:
        return s3_url


def test_a_whole_bucket_may_be_a_store(s3_url: str) -> None:
    root = locate(f"s3://{BUCKET}/")
    locate(s3_url).write("x", [b"1"])
    key = f"{s3_url.removeprefix(f's3://{BUCKET}/')}/x"
    assert root.name == BUCKET
    assert root.read(key) == b"1"
    assert key in list(root.walk())


def test_listings_go_on_past_a_page(s3_url: str) -> None:
    folder = s3_url.removeprefix(f"s3://{BUCKET}/")
    fill([f"{folder}/d/{name}" for name in ("zarr.json", *range(2100))])
    location = locate(s3_url)
    assert len(location.list("d")) == len(set(location.walk("d"))) == 2101
    location.clear("d")
    assert list(location.walk()) == []


def test_an_object_in_several_parts_comes_back_whole(s3_url: str) -> None:
    location = locate(s3_url)
    block = bytes(range(256)) * 4096
    location.write("big", [block] * 65)
    out = bytearray(65 * len(block))
    assert location.read_into("big", [memoryview(out)]) == len(out)
    assert out == block * 65


def test_the_marker_of_a_folder_is_no_object_of_it(s3: str, s3_url: str) -> None:
    location = locate(s3_url)
    location.write("labels/y/x", [b""])
    for marker in ("", "labels/"):
        url = f"{s3}/{quote(s3_url.removeprefix('s3://'))}/{marker}"
        urllib.request.urlopen(urllib.request.Request(url, method="PUT", data=b"")).close()
    assert location.list("labels") == ["y"]
    location.clear("labels")
    assert location.list("labels") == []


def test_it_is_pickled_by_its_url(s3_url: str) -> None:
    location = ObjectStorage(s3_url, timeout=3, limit=4, lease_seconds=5, settle_seconds=6)
    location.write("a", [b"1"])
    copy = pickle.loads(pickle.dumps(location))
    assert (copy.timeout, copy.limit, copy.lease_seconds, copy.settle_seconds) == (3, 4, 5, 6)
    assert copy.read("a") == b"1"


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("s3://b/a//x.zarr/", "s3://b/a/x.zarr"),
        ("s3a://b/x", "s3://b/x"),
        ("s3:/b/x", "s3://b/x"),
        ("S3://b/100% sure", "s3://b/100% sure"),
        ("gcs://b/x", "gs://b/x"),
        ("az://c/x", "az://c/x"),
        ("abfs://c@account.dfs.core.windows.net/x", "abfss://c@account.dfs.core.windows.net/x"),
    ],
)
def test_urls_have_one_form_that_leads_back(url: str, normal: str) -> None:
    location = locate(url)
    assert isinstance(location, ObjectStorage)
    assert str(location) == normal
    assert str(locate(str(location))) == normal


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://key:secret@b/x", "gs://u@b/x", "az://@a/x"])
def test_a_url_without_a_bucket_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="does not name a bucket"):
        locate(url)


@pytest.mark.parametrize("url", ["s3://b/x?version=1", "s3://b/x#y", "s3://b/../x", "memory://a/./b", "file:///a/../b"])
def test_a_url_with_more_than_a_place_is_refused(url: str) -> None:
    with pytest.raises(StoreError, match="in it, which the URL of a store cannot have"):
        locate(url)


def test_a_bucket_that_is_not_there_is_named(s3: str) -> None:
    location = locate("s3://nobody-has-this/run.zarr")
    calls = [lambda: location.read("x"), lambda: location.list("x"), lambda: location.write("x", [b""])]
    for call in (*calls, lambda: list(location.walk()), lambda: Store.open("s3://nobody-has-this/run.zarr")):
        with pytest.raises(StoreError, match="there is no bucket 'nobody-has-this'"):
            call()


def test_a_key_that_no_object_store_takes_is_refused(s3_url: str) -> None:
    with pytest.raises(StoreError, match="control character"):
        locate(s3_url).write("a\nb", [b""])
