"""A lease keeps two writers apart, outlives no holder for long, and tells a holder that it was lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from sonde.errors import StoreError
from sonde.store import locate
from sonde.store.filesystem import FileSystem
from sonde.store.lease import LeasedLocation
from sonde.store.objects import ObjectStorage

from .s3_server import BUCKET, Fault, Proxy, environment, proxy_to, serve_s3

LEASE = ".lease.json"
SECONDS, SETTLE = 0.6, 0.1

# Writes a key for each line that it is given, and says how that went.
HOLDER = f"""
import signal
import sys
from sonde.errors import StoreError
from sonde.store.filesystem import FileSystem
from sonde.store.objects import ObjectStorage
make = ObjectStorage if sys.argv[1].startswith("s3") else FileSystem
# A shell lets what it starts in the background not be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)
location = make(sys.argv[1], lease_seconds={SECONDS}, settle_seconds={SETTLE})
with location.lock():
    print("locked", flush=True)
    for line in sys.stdin:
        try:
            location.publish(line.strip(), b"holder")
            print("written", flush=True)
        except StoreError as error:
            print(error, flush=True)
"""


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with serve_s3() as s3, proxy_to(s3) as proxy, environment(proxy.url):
        yield proxy


@pytest.fixture
def s3(proxy: Proxy) -> str:
    return f"s3://{BUCKET}/{uuid4().hex}/run.zarr"


@pytest.fixture(params=["s3", "local"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.getfixturevalue("s3")) if request.param == "s3" else f"local://{tmp_path}/run.zarr"


def at(url: str, seconds: float = SECONDS, settle: float = SETTLE) -> LeasedLocation:
    if url.startswith("s3"):
        return ObjectStorage(url, timeout=2, limit=5, lease_seconds=seconds, settle_seconds=settle)
    return FileSystem(url, lease_seconds=seconds, settle_seconds=settle)


@contextlib.contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[str], key: str) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(f"{key}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


@contextlib.contextmanager
def taken_over(location: LeasedLocation) -> Iterator[int]:
    """Take the lease as soon as it can be had; yields how often it was refused."""
    for refusals in range(1000):
        lock = location.lock()
        try:
            lock.__enter__()
        except StoreError:
            time.sleep(0.1)
            continue
        with contextlib.ExitStack() as stack:
            stack.push(lock)
            yield refusals
        return
    pytest.fail("the lease was never given up")


def test_a_refusal_names_the_holder_since_when_and_until_when(url: str) -> None:
    before = time.time()
    with at(url, 40).lock():
        record = json.loads(at(url).read(LEASE))
        assert (record["host"], record["pid"]) == (socket.gethostname(), os.getpid())
        assert before <= record["since"] <= time.time()
        with pytest.raises(StoreError) as refusal, at(url).lock():
            pass
    text = str(refusal.value)
    since, until = (time.localtime(t) for t in (record["since"], record["renewed"] + 40))
    assert text.startswith(f"{url}: another process is writing to this store")
    assert f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M', since)}" in text
    assert f"taken over from {time.strftime('%Y-%m-%d', until)}" in text
    assert not at(url).exists(LEASE)


def test_a_lease_that_is_renewed_outlives_its_seconds(s3: str) -> None:
    with holder(url := s3) as process:
        first = at(url).read(LEASE)
        end = time.monotonic() + 3 * SECONDS
        while time.monotonic() < end:
            with pytest.raises(StoreError, match="another process is writing"), at(url).lock():
                pass
            time.sleep(SECONDS / 3)
        assert at(url).read(LEASE) != first
        assert tell(process, "x") == "written"


def test_a_killed_holder_is_followed_when_its_lease_has_run_out(url: str) -> None:
    with holder(url) as process:
        process.kill()
        process.wait()
        location = at(url)
        with taken_over(location) as refusals:
            assert refusals > 0
            location.publish("x", b"next")
        assert list(location.walk()) == ["x"]
        assert not location.exists(LEASE)


def test_a_holder_that_slept_through_a_takeover_writes_no_more(s3: str) -> None:
    with holder(url := s3) as process:
        assert tell(process, "before") == "written"
        process.send_signal(signal.SIGSTOP)
        location = at(url)
        with taken_over(location):
            process.send_signal(signal.SIGCONT)
            assert "may not write to the store any more" in tell(process, "after")
            time.sleep(SECONDS)
            assert "another process has taken over" in tell(process, "after")
            assert process.stdin
            process.stdin.close()
            assert process.wait() == 0
            assert location.exists(LEASE)
            location.publish("x", b"mine")
        assert sorted(location.walk()) == ["before", "x"]


def test_a_holder_that_cannot_renew_writes_no_more_and_nor_does_its_process(proxy: Proxy, s3: str) -> None:
    location, beside = at(s3), locate(s3)
    with location.lock():
        beside.write("x", [b""])
        with proxy.failing(Fault("status", "PUT", LEASE)):
            time.sleep(1.2 * SECONDS)
            for writer in (location, beside):
                for call in (
                    lambda writer=writer: writer.write("y", [b""]),
                    lambda writer=writer: writer.publish("y", b""),
                    lambda writer=writer: writer.remove("x"),
                    lambda writer=writer: writer.clear("x"),
                ):
                    with pytest.raises(StoreError, match="its lease could not be renewed in time"):
                        call()
            assert location.read("x") == b""
    # It is free to write again when it does not claim to be the only one.
    beside.write("y", [b""])
    assert sorted(location.walk()) == ["x", "y"]


def test_a_renewal_whose_answer_is_lost_keeps_the_lease(proxy: Proxy, s3: str) -> None:
    location = at(s3)
    with proxy.failing(fault := Fault("lost", "PUT", LEASE, 1)), location.lock():
        assert fault.hits == 1
        with proxy.failing(fault := Fault("lost", "PUT", LEASE, 1)):
            time.sleep(SECONDS)
            assert fault.hits == 1
            location.write("x", [b""])
    assert not location.exists(LEASE)


@pytest.mark.parametrize("kind", ["conditional", "ignores conditions", "refuses conditions"])
def test_of_many_that_come_at_once_one_gets_the_lease(proxy: Proxy, s3: str, kind: str) -> None:
    # One of them writes late: what is there at first is not what stays.
    def late() -> None:
        time.sleep(0.4)

    faults = {
        "conditional": [],
        "ignores conditions": [Fault("weak", "PUT", LEASE, 1, first=late), Fault("weak", "PUT", LEASE)],
        "refuses conditions": [
            *(Fault("status", "PUT", LEASE, header=h, status=501) for h in ("If-Match", "If-None-Match")),
            Fault("none", "PUT", LEASE, 1, first=late),
        ],
    }[kind]

    # All have looked and found the place free before the first of them writes.
    together, refused = threading.Barrier(6, timeout=20), threading.Semaphore(0)
    faults.append(Fault("none", "GET", LEASE, 6, then=together.wait))

    def contend(_: int) -> bool:
        try:
            with at(s3, 30, settle=1).lock():
                return all(refused.acquire(timeout=20) for _ in range(5))
        except StoreError:
            refused.release()
            return False

    with proxy.failing(*faults), ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(contend, range(6))) == 1
        with at(s3).lock():
            pass


@pytest.mark.parametrize("conditions", ["kept", "ignored"])
def test_a_renewal_does_not_overwrite_the_lease_of_another(proxy: Proxy, s3: str, conditions: str) -> None:
    other = json.dumps({"token": "x", "host": "h", "pid": 1, "since": 0, "renewed": 0, "seconds": 60}).encode()
    faults = [Fault("weak", "PUT", LEASE)] if conditions == "ignored" else []
    with proxy.failing(*faults), at(s3).lock():
        at(s3)._put(LEASE, other)
        time.sleep(0.8 * SECONDS)
        with pytest.raises(StoreError, match="another process has taken over"):
            locate(s3).write("x", [b""])
    assert locate(s3).read(LEASE) == other


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff", b'{"seconds": 1e999}', b"[" * 5000, b'{"token": 1, "since": 1e99}']
)
def test_a_damaged_lease_runs_out_like_any_other(tmp_path: Path, data: bytes) -> None:
    location = at(f"local://{tmp_path}/run.zarr")
    location._put(LEASE, data)
    with pytest.raises(StoreError, match="an unknown host"), location.lock():
        pass
    os.utime(tmp_path / "run.zarr" / LEASE, (0, time.time() - 62))
    with location.lock():
        pass
    assert not (tmp_path / "run.zarr" / LEASE).exists()


def test_a_lease_cannot_claim_to_last_for_ever(tmp_path: Path) -> None:
    location = at(f"local://{tmp_path}/run.zarr")
    record = {"token": "x", "host": "h", "pid": 1, "since": 0, "renewed": time.time(), "seconds": 1e300}
    location._put(LEASE, json.dumps(record).encode())
    with pytest.raises(StoreError, match="another process is writing"), location.lock():
        pass
    os.utime(tmp_path / "run.zarr" / LEASE, (0, time.time() - 3700))
    with location.lock():
        assert json.loads(location.read(LEASE))["token"] != "x"


def test_a_forked_child_that_leaves_the_block_does_not_give_back_its_parents_lease(tmp_path: Path) -> None:
    code = f"""
import os
from sonde.store.filesystem import FileSystem
location = FileSystem("local://{tmp_path}/run.zarr", settle_seconds=0.1)
child = 0
with location.lock():
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert location.exists(".lease.json")
if not child:
    os._exit(0)
assert not location.exists(".lease.json")
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_an_interrupt_gives_the_lease_back(url: str) -> None:
    with holder(url) as process:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert not at(url).exists(LEASE)
