"""A store in S3 behind a network that fails: the same bytes, or an error that says so."""

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import ArraySpec, Store, locate
from sonde.store.objects import ObjectStorage

from .s3_server import BUCKET, Fault, Kind, Proxy, environment, proxy_to, serve_s3

KEY = "activations/resid_post/last/c.1.1.0"
SMALL: dict[str, Any] = {"arrays": (ArraySpec("resid_post", "last", (0, 3), 8),), "n_samples": 5, "range_size": 2}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def proxy(s3: str) -> Iterator[Proxy]:
    with proxy_to(s3) as proxy, environment(proxy.url):
        yield proxy


@pytest.fixture
def url(proxy: Proxy) -> str:
    return f"s3://{BUCKET}/{uuid4().hex}/run.zarr"


@pytest.fixture(scope="module")
def complete(s3: str, proxy: Proxy, build: Any) -> Any:
    """A store that tests only read."""
    return build(direct(s3, f"s3://{BUCKET}/{uuid4().hex}/run.zarr"), **SMALL)


def direct(s3: str, url: str) -> ObjectStorage:
    """A way to the server that leaves the proxy out."""
    from obstore.store import S3Store

    client = S3Store(
        BUCKET, prefix=url.removeprefix(f"s3://{BUCKET}/"), endpoint=s3, client_options={"allow_http": True}
    )
    return ObjectStorage(url, client=client)


def patient(url: str) -> ObjectStorage:
    """A location that meets a fault soon, and bears it for long."""
    return ObjectStorage(url, timeout=0.3, limit=20)


def hasty(url: str) -> ObjectStorage:
    return ObjectStorage(url, timeout=0.3, limit=0.5)


def contents(location: Any) -> dict[str, bytes]:
    return {key: location.read(key) for key in location.walk()}


def assert_reads_as(location: ObjectStorage, example: Any) -> None:
    store = Store.open(location)
    for site, tokens, row, values in example.layers():
        np.testing.assert_array_equal(store.layer(site, tokens, row).numpy(), values)


def test_names_of_spans_and_places_are_keys_as_they_are(s3: str, url: str, build: Any) -> None:
    names = ("span:traffic light", "span:Grüße 👩", "span:a#b?c%20&d+[x]", "image:0,-1:2x2")
    arrays = tuple(ArraySpec("resid_post", tokens, (0,), 4) for tokens in names)
    location = direct(s3, url)
    example = build(location, arrays=arrays, n_samples=3, range_size=2)
    assert_reads_as(location, example)
    assert {key.split("/")[2] for key in location.walk() if key.count("/") > 2} >= set(names)


@pytest.mark.parametrize(
    ("kind", "status", "times"),
    [("status", 500, 2), ("status", 429, 2), ("hang", 0, 1), ("reset", 0, 2), ("lost", 0, 2)],
)
def test_what_is_written_through_faults_is_the_same(
    s3: str, proxy: Proxy, url: str, tmp_path: Path, build: Any, kind: Kind, status: int, times: int
) -> None:
    faults = [Fault(kind, "PUT", key, times, status) for key in ("zarr.json", "/c.0.0.0", "commits/00000001.json")]
    with proxy.failing(*faults):
        build(patient(url), **SMALL)
    assert all(fault.hits == times for fault in faults)
    local = build(tmp_path / "run.zarr", **SMALL)
    assert contents(direct(s3, url)) == local.files()


@pytest.mark.parametrize(
    ("kind", "status", "times"),
    [
        *(("status", 503, 2), ("status", 429, 2), ("hang", 0, 1), ("reset", 0, 2)),
        *(("break", 0, 2), ("drip", 0, 1)),
    ],
)
def test_what_is_read_through_faults_is_the_same(
    proxy: Proxy, complete: Any, kind: Kind, status: int, times: int
) -> None:
    keys = ("/c.1.1.0", "/c.0.2.0", *(() if kind == "drip" else ("commits/00000001.json", "list-type")))
    faults = [Fault(kind, "GET", key, times, status) for key in keys]
    with proxy.failing(*faults):
        assert_reads_as(patient(str(complete.store.location)), complete)
    assert all(fault.hits == times for fault in faults)


def test_a_body_that_breaks_off_is_read_on_from_where_it_broke(proxy: Proxy, url: str) -> None:
    data = np.random.default_rng(0).integers(0, 256, 3_000_000, dtype=np.uint8)
    locate(url).write("x", [data])
    out = np.zeros_like(data)
    blocks = [out[start : start + 2**19].data for start in range(0, len(out), 2**19)]
    with proxy.failing(fault := Fault("break", "GET", "/x", 3)):
        assert patient(url).read_into("x", blocks) == len(data)
    assert fault.hits == 3
    np.testing.assert_array_equal(out, data)


def test_an_object_that_is_replaced_while_it_is_read_is_an_error_not_a_mixture(proxy: Proxy, url: str) -> None:
    location = patient(url)
    location.write("x", [b"a" * 100_000])
    fault = Fault("break", "GET", "/x", 1, then=lambda: location.write("x", [b"b" * 100_000]))
    out = bytearray(100_000)
    with proxy.failing(fault), pytest.raises(OSError, match="/x was replaced while it was read"):
        patient(url).read_into("x", [memoryview(out)])
    assert b"b" not in out


@pytest.mark.parametrize("kind", ["status", "hang", "reset"])
def test_a_fault_without_an_end_costs_only_the_range_in_the_making(
    s3: str, proxy: Proxy, url: str, build: Any, kind: Kind
) -> None:
    example = build(direct(s3, url), **SMALL, commit=[0, 1])
    example.store.location = hasty(url)
    rows = example.store.ranges[2]
    for key in ("/c.0.2.0", "commits/00000002.json"):
        with proxy.failing(Fault(kind, "PUT", key)), pytest.raises(OSError, match=f"{url}.*no success within 0.5"):
            example.commit(rows)
        store = Store.open(direct(s3, url))
        assert store.missing == (rows,)
        assert store.verify() == []
        for site, tokens, row, values in example.layers():
            for there, x in store.layer(site, tokens, row):
                np.testing.assert_array_equal(x, values[there])
    example.commit(rows)
    assert_reads_as(patient(url), example)


@pytest.mark.parametrize(
    ("kind", "error"), [("status", OSError), ("hang", TimeoutError), ("reset", OSError), ("drip", TimeoutError)]
)
def test_reading_through_a_fault_without_an_end_is_an_error_that_names_the_url(
    proxy: Proxy, complete: Any, kind: Kind, error: type[OSError]
) -> None:
    url = str(complete.store.location)
    layer = Store.open(hasty(url)).layer("resid_post", "last", 3)
    with proxy.failing(Fault(kind, "GET", "/c.1.1.0")), pytest.raises(error, match=f"{url}/{KEY}.*check the network"):
        layer.numpy()
    assert len(layer.numpy()) == 5


@pytest.mark.parametrize("key", ["/c.1.1.0", "commits/00000001.json", "samples/id/c", "run.zarr/zarr.json"])
def test_a_byte_that_changes_on_the_way_down_is_never_data(proxy: Proxy, complete: Any, key: str) -> None:
    def read() -> Any:
        store = Store.open(str(complete.store.location))
        return store.layer("resid_post", "last", 3).numpy(), store.ids

    with proxy.failing(fault := Fault("flip", "GET", key)), pytest.raises(StoreError):
        read()
    assert fault.hits
    read()


def test_a_byte_that_changes_on_the_way_up_is_found(proxy: Proxy, url: str, build: Any) -> None:
    with proxy.failing(Fault("flip", "PUT", KEY)):
        example = build(url, **SMALL)
    store = Store.open(url)
    with pytest.raises(CorruptStoreError, match="range 1 of layer 3 of resid_post/last"):
        store.layer("resid_post", "last", 3).numpy()
    [found] = store.verify()
    store.repair([found])
    example.commit(store.ranges[1])
    assert_reads_as(patient(url), example)


def test_a_removal_whose_answer_is_lost_is_a_removal(proxy: Proxy, url: str) -> None:
    location = patient(url)
    for key in ("a", "d/zarr.json", "d/x"):
        location.write(key, [b""])
    with proxy.failing(fault := Fault("lost", "POST DELETE", times=1)):
        location.remove("a")
    assert fault.hits == 1
    with proxy.failing(fault := Fault("lost", "POST DELETE", times=2)):
        location.clear("d")
    assert fault.hits == 2
    assert contents(location) == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_credentials_that_are_asked_for(proxy: Proxy, url: str, status: int) -> None:
    location = patient(url)
    with proxy.failing(fault := Fault("status", "GET PUT", status=status)):
        for call in (lambda: location.read("x"), lambda: location.write("x", [b""])):
            with pytest.raises(PermissionError, match=f"{url}/x.*AWS_ACCESS_KEY_ID"):
                call()
    assert fault.hits == 2


def test_any_other_refusal_is_not_repeated(proxy: Proxy, url: str) -> None:
    with (
        proxy.failing(fault := Fault("status", "PUT", status=400)),
        pytest.raises(OSError, match=f"{url}/x: the store refuses.*400"),
    ):
        patient(url).write("x", [b""])
    assert fault.hits == 1


def test_a_server_that_is_not_there_is_named(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with environment(f"http://127.0.0.1:{port}"), pytest.raises(ConnectionError, match=f"{url}/x.*{port}"):
        hasty(url).read("x")


def test_without_credentials_what_is_public_is_read_unsigned(s3: str, proxy: Proxy, url: str, tmp_path: Path) -> None:
    public = {"x-amz-acl": "public-read", "Content-Type": "application/octet-stream"}
    place = f"{s3}/{url.removeprefix('s3://')}/x"
    urllib.request.urlopen(urllib.request.Request(place, b"public", public, method="PUT")).close()
    # What answers for a cloud's machine is silent here, as it is elsewhere.
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        environment(
            proxy.url,
            AWS_ACCESS_KEY_ID="",
            AWS_SECRET_ACCESS_KEY="",
            AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"),
            AWS_CONFIG_FILE=str(tmp_path / "none"),
            AWS_METADATA_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}",
        ),
    ):
        location = patient(url)
        assert location.read("x") == b"public"
        assert proxy.authorizations[-1] == ""
        with (
            proxy.failing(Fault("status", "PUT", status=403)),
            pytest.raises(PermissionError, match=r"without credentials.*AWS_ACCESS_KEY_ID"),
        ):
            location.write("x", [b"mine"])


def test_the_keys_of_a_profile_are_used(proxy: Proxy, url: str, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = one\naws_secret_access_key = s\n"
        "[work]\naws_access_key_id = two\naws_secret_access_key = s\n"
    )
    (tmp_path / "config").write_text("[profile work]\nregion = eu-north-1\n")
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "config")}
    signed = {
        "Credential=one/": {"AWS_ACCESS_KEY_ID": ""},
        "Credential=two/": {"AWS_ACCESS_KEY_ID": "", "AWS_PROFILE": "work", "AWS_REGION": ""},
        "Credential=key/": {"AWS_PROFILE": "work"},
    }
    for credential, variables in signed.items():
        with environment(proxy.url, **files, **variables):
            patient(url).exists("x")
        assert credential in proxy.authorizations[-1]
        assert ("/eu-north-1/" in proxy.authorizations[-1]) == (variables.get("AWS_REGION") == "")


def test_a_forked_child_is_told_instead_of_left_hanging(proxy: Proxy, url: str) -> None:
    locate(url).write("x", [b"1"])
    code = f"""
import os, sys
from sonde.errors import StoreError
from sonde.store import locate
location = locate({url!r})
if sys.argv[1] == "after":
    assert location.read("x") == b"1"
child = os.fork()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os._exit(0 if location.read("x") == b"1" else 1)
except StoreError as error:
    os._exit(7 if "spawn" in str(error) else 1)
"""
    for when, status in {"before": 0, "after": 7}.items():
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, when], check=False, timeout=60)
        assert done.returncode == status, when


def test_other_readers_read_the_same_values_from_the_server(s3: str, complete: Any) -> None:
    import tensorstore
    import zarr
    from obstore.store import S3Store
    from zarr.storage import ObjectStore

    folder = str(complete.store.location).removeprefix(f"s3://{BUCKET}/")
    bucket = S3Store(BUCKET, prefix=folder, client_options={"allow_http": True})
    group = zarr.open_group(ObjectStore(bucket, read_only=True), mode="r")
    for name, values in complete.values.items():
        np.testing.assert_array_equal(np.asarray(group[f"activations/{name}"][:]), values)
        place = {"driver": "s3", "bucket": BUCKET, "endpoint": s3, "aws_region": "us-east-1"}
        array = tensorstore.open(
            {"driver": "zarr3", "kvstore": {**place, "path": f"{folder}/activations/{name}/"}}, open=True
        ).result()
        np.testing.assert_array_equal(array.read().result(), values)
