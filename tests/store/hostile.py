"""Stores that someone made to do harm: mutants of sound ones, and a watch over whoever reads them."""

import contextlib
import hashlib
import json
import os
import resource
import signal
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import google_crc32c

from sonde.store.schema import checksum

Files = dict[str, bytes]

SECONDS = 20
PEAK_BYTES = 64 * 2**20
ADDRESS_BYTES = 32 * 2**30

NUMBERS = (0, 1, -1, 2, 7, 255, 2**31, 2**31 - 1, 2**32, 2**53, 2**60, 2**63, 2**64, 10**15, 10**40, -(2**63))
FLOATS = (0.5, 1.0, -0.0, 1e308, float("nan"), float("inf"), -float("inf"))
TEXTS = (
    *(
        "",
        ".",
        "..",
        "/",
        "../outside",
        "/etc/passwd",
        "a/../../outside",
        "a//b",
        "a\0b",
        "a\nb",
        "C:\\x",
        "..\\outside",
    ),
    *("\u202egnp", "\ud800", "é", "e\u0301", "x" * 300, "9" * 5000, "values", "id", "int8", "object", "string", "zstd"),
    *("bfloat16", "float64", "pickle", "sharding_indexed", "c", "zarr.json", "__class__", "nan", "-1", "1e9", "true"),
)


def deep(n: int) -> Any:
    """A list in a list in a list."""
    value: Any = []
    for _ in range(n):
        value = [value]
    return value


def junk(draw: Random) -> Any:
    """A value that is out of place nearly everywhere."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(NUMBERS),
        lambda: draw.choice(FLOATS),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice([None, True, False, [], {}, [[]], [None], {"": None}]),
        lambda: deep(draw.choice([1, 5, 200])),
        lambda: [draw.choice(NUMBERS)] * draw.choice([1, 3, 1000]),
        lambda: [draw.choice(TEXTS)] * draw.choice([1, 3, 100]),
        lambda: {draw.choice(TEXTS): draw.choice(NUMBERS), draw.choice(TEXTS): []},
        lambda: {"name": draw.choice(TEXTS), "configuration": {draw.choice(TEXTS): draw.choice(NUMBERS)}},
        lambda: draw.randint(-10, 20),
        lambda: "".join(draw.choice(string.printable) for _ in range(draw.randint(0, 12))),
    ]
    return draw.choice(kinds)()


def mutate_json(draw: Random, data: Any) -> Any:
    """Replace, remove, double, swap or rename some of the nodes of a JSON value, in place."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        nodes = list(_containers(data))
        if not nodes:
            return junk(draw)
        node = draw.choice(nodes)
        keys: list[Any] = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            _insert(draw, node, junk(draw))
            continue
        key, other = draw.choice(keys), draw.choice(keys)
        match draw.randint(0, 7):
            case 0:
                del node[key]
            case 1:
                _insert(draw, node, junk(draw))
            case 2:
                node[key], node[other] = node[other], node[key]
            case 3:
                _insert(draw, node, json.loads(json.dumps(node[key])))
            case 4 if type(node[key]) is int:
                node[key] += draw.choice([-1, 1, 3, -node[key], node[key], 2**32])
            case 5:
                donor = draw.choice(nodes)
                node[key] = json.loads(json.dumps(donor))
            case _:
                node[key] = junk(draw)
    return data


def _containers(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from _containers(value)


def _insert(draw: Random, node: Any, value: Any) -> None:
    if isinstance(node, dict):
        node[draw.choice(TEXTS)] = value
    else:
        node.insert(draw.randint(0, len(node)), value)


def mutate_bytes(draw: Random, data: bytes, files: Files) -> bytes:
    """Flip, cut, double, insert, or splice with another file."""
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        at = draw.randint(0, len(data))
        end = min(len(data), at + draw.choice([1, 1, 2, 8, 64]))
        match draw.randint(0, 6):
            case 0:
                data = data[:at]
            case 1:
                data = data[:at] + data[end:]
            case 2:
                data = data[:end] + data[at:]
            case 3:
                data = data[:at] + draw.randbytes(draw.choice([1, 4, 50])) + data[end:]
            case 4:
                other = files[draw.choice(sorted(files))]
                data = data[:at] + other[draw.randint(0, len(other)) :]
            case 5:
                data = data[:at] + draw.choice([b"\xff" * 4, b"\0" * 8, b"\xff\xff\xff\x7f", b"[" * 3000]) + data[end:]
            case _ if at < len(data):
                data = data[:at] + bytes([data[at] ^ 1 << draw.randint(0, 7)]) + data[at + 1 :]
    return data


def dumps(data: Any) -> bytes:
    return json.dumps(data).encode()


def with_crc(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(4, "little")


# Signatures, made as whoever knows the format can make them


def sign_root(root: Any) -> bytes:
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        attribute = root["attributes"]["sonde"]
        attribute.pop("sha256", None)
        attribute["sha256"] = checksum(attribute)
    return dumps(root)


def sign_commit(record: Any) -> bytes:
    if isinstance(record, dict):
        record.pop("sha256", None)
        record["sha256"] = checksum(record)
    return dumps(record)


def sign_labels(group: Any, array: Any, values: bytes) -> bytes:
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        attributes = group["attributes"]
        head = {"kind": attributes["kind"], "names": attributes["names"], "shape": array["shape"]}
        canonical = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
        attributes["sha256"] = hashlib.sha256(canonical + values[:-4]).hexdigest()
    return dumps(group)


def forge_chunk(files: Files, record_key: str, chunk_key: str, data: bytes) -> Files:
    """Put a chunk in a place, with its checksum, and change its commit so that it vouches for it."""
    whole = with_crc(data)
    record = json.loads(files[record_key])
    for node in _containers(record):
        if isinstance(node, dict) and node.get("key") == chunk_key:
            node |= {"nbytes": len(whole), "crc32c": whole[-4:].hex()}
    return {chunk_key: whole, record_key: sign_commit(record)}


# The watch


_CHANGES = {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
_CODE = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pickle.find_class"}


class Watch:
    """Sees which files are opened, listed or changed while stores are read, how long it takes and how much memory."""

    def __init__(self) -> None:
        self.active = False
        self.folder = ""
        self.offences: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike) and not self._allowed(os.fsdecode(path)):
                self.offences.append(f"{event} {path!r}")
            if (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            ):
                self.offences.append(f"{path!r} opened for writing")
        elif event in _CHANGES or event in _CODE:
            self.offences.append(f"{event} {arguments!r}")

    def _allowed(self, path: str) -> bool:
        real = os.path.realpath(path)
        inside = f"{real}/".startswith(f"{self.folder}/")
        return inside or real.startswith((sys.prefix, sys.base_prefix, "/proc/")) or real.endswith((".py", ".pyc"))

    @contextlib.contextmanager
    def over(self, folder: Path) -> Iterator[None]:
        """Watch; whoever reads longer than `SECONDS` is interrupted."""
        self.folder, self.offences = os.path.realpath(folder), []

        def interrupt(*_: Any) -> None:
            raise TimeoutError(f"not done after {SECONDS} s")

        previous = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.active = True
        try:
            yield
        finally:
            self.active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        assert not self.offences, self.offences


# One for all modules: a hook cannot be taken back.
WATCH = Watch()


@contextlib.contextmanager
def bounded_memory(address_bytes: int = ADDRESS_BYTES) -> Iterator[Callable[[], int]]:
    """Limit the address space, and yield a function that gives the growth of the peak of resident memory, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    start = _status("VmHWM")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + address_bytes, hard))
    try:
        yield lambda: _status("VmHWM") - start
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _status(name: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024
