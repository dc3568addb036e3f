"""What every kind of location promises, for each kind to subclass."""

import hashlib
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sonde.errors import CorruptStoreError, StoreError
from sonde.store import Location

NAMES = [
    *("a b", "ünïcødé 漢字", "p%41 100%", "h#a", "q?x=1", "til~de", "br[a]{c}", "st*r", "back\\slash"),
    *("quo\"te'", "plus+", "amp&<>", "trail ", "a:b;c=d@e,f$g!", "pipe|^`", "c.0.0.0"),
]
ESCAPES = ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/.", "", "..", "a\0b"]

LOCK = """
import sys
from sonde.errors import StoreError
from sonde.store import locate
try:
    with locate(sys.argv[1]).lock():
        print("locked", flush=True)
        sys.stdin.read()
except StoreError as error:
    print("refused:", error)
"""


class LocationContract(ABC):
    """Subclasses say by the fixture ``location`` where it is, and by ``again`` how it is reached a second time."""

    @pytest.fixture
    @abstractmethod
    def location(self) -> Location: ...

    @abstractmethod
    def again(self, location: Location) -> Location: ...

    def test_what_was_written_is_read(self, location: Location) -> None:
        for key, data in {"a": b"1", "b/c/d": bytes(range(256)), "empty": b""}.items():
            location.write(key, [data])
            assert location.read(key) == data
            assert location.exists(key)
            assert self.again(location).read(key) == data

    def test_parts_of_any_kind_are_joined_in_order(self, location: Location) -> None:
        array = np.arange(5, dtype=np.uint8)
        location.write("x", iter([b"ab", memoryview(b"cd"), array, bytearray(b"e"), b""]))
        assert location.read("x") == b"abcd" + bytes(range(5)) + b"e"

    def test_writing_again_replaces_all_of_the_object(self, location: Location) -> None:
        for data in (b"long and first", b"second", b""):
            location.write("x/y", [data])
            assert location.read("x/y") == data
            location.publish("x/z", data)
            assert location.read("x/z") == data

    @pytest.mark.parametrize("sizes", [[10], [3, 7], [0, 4, 0, 6], [1] * 10])
    def test_buffers_are_filled_one_after_the_other(self, location: Location, sizes: list[int]) -> None:
        location.write("x", [b"0123456789"])
        buffers = [bytearray(size) for size in sizes]
        assert location.read_into("x", map(memoryview, buffers)) == 10
        assert b"".join(buffers) == b"0123456789"

    def test_an_object_that_is_too_short_leaves_the_rest_of_the_buffers(self, location: Location) -> None:
        location.write("x", [b"012345"])
        buffers = [bytearray(b"#" * 4), bytearray(b"#" * 4), bytearray(b"#" * 4)]
        assert location.read_into("x", map(memoryview, buffers)) == 6
        assert buffers == [b"0123", b"45##", b"####"]

    def test_an_object_that_is_too_long_is_read_as_far_as_asked(self, location: Location) -> None:
        location.write("x", [b"0123456789"])
        buffers = [bytearray(2), bytearray(3)]
        assert location.read_into("x", map(memoryview, buffers)) == 10
        assert buffers == [b"01", b"234"]
        assert location.read_into("x", []) == 10

    def test_a_buffer_is_asked_for_when_the_one_before_is_full(self, location: Location) -> None:
        location.write("x", [b"abcdefgh"])
        block, seen = bytearray(3), []

        def same_block() -> Iterator[memoryview]:
            for n in (3, 3, 2):
                yield memoryview(block)[:n]
                seen.append(bytes(block[:n]))

        assert location.read_into("x", same_block()) == 8
        assert seen == [b"abc", b"def", b"gh"]

    def test_an_object_of_many_megabytes_comes_back_whole(self, location: Location) -> None:
        data = np.random.default_rng(0).integers(0, 256, 20 * 2**20 + 13, dtype=np.uint8)
        location.write("big", (data[start : start + 2**20] for start in range(0, len(data), 2**20)))
        out, digest = np.zeros_like(data), hashlib.sha256()

        def blocks() -> Iterator[memoryview]:
            for start in range(0, len(out), 2**19):
                yield out[start : start + 2**19].data
                digest.update(out[start : start + 2**19])

        assert location.read_into("big", blocks()) == len(data)
        np.testing.assert_array_equal(out, data)
        assert digest.digest() == hashlib.sha256(data).digest()

    @pytest.mark.parametrize("name", NAMES)
    def test_any_name_is_taken_literally(self, location: Location, name: str) -> None:
        key, beside = f"labels/{name}/zarr.json", "labels/beside/zarr.json"
        location.write(beside, [b"beside"])
        location.publish(key, name.encode())
        assert location.read(key) == name.encode()
        assert location.list("labels") == sorted(["beside", name])
        assert sorted(location.walk("labels")) == sorted([beside, key])
        location.clear(f"labels/{name}")
        assert list(location.walk()) == [beside]

    def test_a_name_with_wildcards_means_no_other(self, location: Location) -> None:
        for name in ("aa", "ab", "a*", "a?", "a[ab]"):
            location.write(f"labels/{name}/x", [b""])
        for name in ("a*", "a?", "a[ab]"):
            location.remove(f"labels/{name}/x")
        assert sorted(location.walk("labels")) == ["labels/aa/x", "labels/ab/x"]

    def test_a_name_that_begins_another_is_another(self, location: Location) -> None:
        for key in ("a/x", "ab/x", "a/xy/z"):
            location.write(key, [b""])
        assert location.list("a") == ["x", "xy"]
        assert sorted(location.walk("a")) == ["a/x", "a/xy/z"]
        location.clear("a")
        assert list(location.walk()) == ["ab/x"]
        assert not location.exists("a/x")

    def test_hidden_names_are_walked_but_not_listed(self, location: Location) -> None:
        for key in ("d/.hidden", "d/seen", "d/.folder/x"):
            location.write(key, [b""])
        assert location.list("d") == ["seen"]
        assert sorted(location.walk("d")) == ["d/.folder/x", "d/.hidden", "d/seen"]
        assert sorted(location.walk("d/")) == sorted(location.walk())

    def test_publishing_leaves_nothing_else_behind(self, location: Location) -> None:
        location.publish("a/b", b"1")
        location.publish("a/b", b"2")
        assert list(location.walk()) == ["a/b"]

    def test_an_empty_place_has_nothing(self, location: Location) -> None:
        assert list(location.walk()) == []
        assert list(location.walk("nothing")) == []
        assert location.list("nothing") == []
        location.clear("nothing")

    def test_a_listing_knows_what_another_wrote_and_removed(self, location: Location) -> None:
        other = self.again(location)
        assert (location.list("d"), location.exists("d/x"), list(location.walk())) == ([], False, [])
        other.write("d/x", [b""])
        assert (location.list("d"), location.exists("d/x"), list(location.walk())) == (["x"], True, ["d/x"])
        other.remove("d/x")
        assert (location.list("d"), location.exists("d/x"), list(location.walk())) == ([], False, [])

    def test_a_missing_object_is_a_missing_file(self, location: Location) -> None:
        location.write("a/b", [b""])
        for key in ("x", "a/x", "b"):
            assert not location.exists(key)
            for call in (location.read, location.remove, lambda key: location.read_into(key, [])):
                with pytest.raises(FileNotFoundError, match=key):
                    call(key)
        assert not location.exists("a")

    @pytest.mark.parametrize("key", ESCAPES)
    def test_no_key_leads_out(self, location: Location, key: str) -> None:
        calls: list[Any] = [location.read, location.remove, location.exists, location.clear, location.list]
        calls += [lambda key: location.write(key, [b""]), lambda key: location.publish(key, b"")]
        calls += [lambda key: location.read_into(key, [])]
        for call in calls:
            with pytest.raises(CorruptStoreError, match="leads out of the store"):
                call(key)

    def test_its_url_leads_to_it_again(self, location: Location) -> None:
        location.write("x", [b"1"])
        assert str(self.again(location)) == str(location)
        assert location.name == str(location).rpartition("/")[2]

    def test_a_replaced_object_is_seen_whole(self, location: Location) -> None:
        versions = [bytes([n]) * (1000 * n + 1) for n in range(1, 6)]
        location.publish("x", versions[0])
        stop, torn = threading.Event(), []

        def read() -> int:
            reader, n = self.again(location), 0
            while not stop.is_set() or n == 0:
                data = reader.read("x")
                torn.extend([data[:9]] if data not in versions else [])
                n += 1
            return n

        with ThreadPoolExecutor(3) as pool:
            reads = [pool.submit(read) for _ in range(3)]
            for n in range(30):
                location.publish("x", versions[n % 5])
            stop.set()
            assert all(r.result() for r in reads)
        assert torn == []

    def test_threads_may_write_and_read_at_once(self, location: Location) -> None:
        def work(n: int) -> bool:
            data = bytes([n]) * 100_000
            location.write(f"t/{n}", [data])
            out = bytearray(len(data))
            return location.read_into(f"t/{n}", [memoryview(out)]) == len(data) and out == data

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(24)))
        assert location.list("t") == sorted(map(str, range(24)))

    def test_one_holds_the_lock_and_gives_it_back(self, location: Location) -> None:
        other = self.again(location)
        with location.lock():
            location.write("x", [b"1"])
            location.publish("y", b"2")
            for refused in (other, location):
                with pytest.raises(StoreError, match="another process is writing"), refused.lock():
                    pass
            assert sorted(location.walk()) == ["x", "y"]
        with pytest.raises(ZeroDivisionError), other.lock():
            _ = 1 / 0
        with location.lock():
            pass
        assert sorted(location.walk()) == ["x", "y"]


class ManyProcesses:
    """For locations that other processes reach by the same URL."""

    def test_one_process_holds_the_lock(self, location: Location) -> None:
        command = [sys.executable, "-c", LOCK, str(location)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout
            assert holder.stdout.readline() == "locked\n"
            second = subprocess.run(command, input="", capture_output=True, text=True, check=True)
            assert second.stdout.startswith("refused:")
            assert "another process is writing" in second.stdout
            with pytest.raises(StoreError, match="another process is writing"), location.lock():
                pass
            holder.communicate("")
        with location.lock():
            third = subprocess.run(command, input="", capture_output=True, text=True, check=True)
            assert third.stdout.startswith("refused:")
