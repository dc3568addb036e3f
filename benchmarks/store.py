"""Whether the store writes, reads and opens at the speed of raw files on the same disk, and how far others are from it.

Questions, for an array ``[layer, sample, hidden]`` of bfloat16 in ranges of 1,024 samples:

* write its ranges, durably and to the page cache;
* read one layer from the page cache, into memory that is there and into new memory, and from the disk;
* read 256 random rows of one layer;
* open a store of 1,000 and of 10,000 ranges with 32 layers;
* write all tokens of every sample, and read one layer of them;
* the peak memory of iterating over a layer, for N and for 4 N samples.

The floor is raw files: the same bytes, one file per chunk, no checksum, no record, by one thread or by as many as the
store has, whichever is faster in this run. Writing durably is bound by the disk, reading from the page cache by one
copy of the bytes and, into new memory, by the page faults of that. A crc32c of a block that is in the processor's cache
costs about a quarter of the copy, so 0.8 of the floor is owed with it, which is always on. Random rows cost the store
and Zarr whole chunks, since a checksum can only be held against all of its data; formats without checksums read the
rows alone. Opening reads every commit record; its floor reads the records and parses them as JSON.

Fairness: all peers (`benchmarks.store_peers`, `benchmarks.store_tokens`) keep the same values in one folder, each is
checked bit for bit before its reading is timed, and they run in turns; medians are compared. The peers' chunks are
those of the store. Durable means that after every range its files and folders are on the disk. Creating an empty array
is a question of its own, and what the peer before has written is removed and synced before a write begins. Opening is
no part of reading. Cold reads begin with empty page caches, and are left out where the system does not let us empty
them. A file per sample is timed on some samples and multiplied. For the time to open there are no chunks: opening
never looks at them.

    python -m benchmarks.store [--fast | --tiny] [--folder DIR]
"""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sonde.store import ArrayCommit, ArraySpec, Commit, Layer, Schema, Store, bfloat16
from sonde.store.chunks import Chunk

from .result import Owed, conclude, interleave, launch
from .store_libraries import PEERS
from .store_peers import FLOORS, SAMPLES, SITE, TOKENS, Array, Peer, Sonde, shape_of
from .store_tokens import TOKEN_PEERS, TokenPeer

Row: TypeAlias = dict[str, Any]
Answer: TypeAlias = tuple[list[Row], list[Owed]]

_DROP_CACHES = Path("/proc/sys/vm/drop_caches")
_PACKAGES = ("tensorstore", "zarrs", "safetensors", "google-crc32c")
# The layer that is read, how many of its rows at random, and on how many samples a slow peer is timed.
_LAYER, _ROWS, _FEW = 1, 256, 256


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    layers, ranges, hidden
        Of the array that is written; ranges of 1,024 samples.
    read_layers, read_ranges
        Of the array that is read.
    rounds
        Counted runs of each peer; three times as many of warm reads.
    cold
        Whether to empty the page caches of the machine.
    opened
        Ranges of the stores that are opened.
    token_layers, token_samples, tokens
        Of the array of all tokens; ``tokens`` of a sample, on average.
    """

    layers: int
    ranges: int
    hidden: int
    read_layers: int
    read_ranges: int
    rounds: int
    cold: bool
    opened: tuple[int, ...]
    token_layers: int
    token_samples: int
    tokens: int


FULL = Size(32, 16, 1024, 32, 16, 7, True, (1000, 10_000), 16, 512, 200)
FAST = Size(8, 4, 1024, 2, 8, 3, True, (1000, 10_000), 4, 256, 100)
TINY = Size(2, 2, 64, 2, 2, 1, False, (20, 40), 2, 64, 10)


def main(folder: Path, size: Size) -> None:
    """Ask all questions and print the answers."""
    generator = np.random.default_rng(0)
    shape = (size.layers, SAMPLES, size.hidden)
    buffers = [generator.standard_normal(shape, dtype=np.float32).astype(bfloat16) for _ in range(size.ranges)]
    # The array that is read has the same values, in fewer layers and more ranges where it is to be small.
    pieces = [part for buffer in buffers for part in np.split(buffer, size.layers // size.read_layers)]
    to_read = pieces[: size.read_ranges]
    samples = cut_samples(buffers, size, generator)
    answers = [
        write_array(folder, buffers, size),
        read_array(folder, to_read, size, generator),
        open_stores(folder, size),
        write_tokens(folder, samples, size),
        read_tokens(folder, samples, size),
        iterate(folder, buffers),
    ]
    results = [row for rows, _ in answers for row in rows]
    owed = [promise for _, promises in answers for promise in promises]
    conclude("store", results, owed, peers=_PACKAGES, hardware={"file system": file_system(folder)})


def write_array(folder: Path, buffers: Sequence[Array], size: Size) -> Answer:
    """Create the array, and write it durably and to the page cache."""
    few = [buffers[0][:, :_FEW]]
    contents = {peer.name: few if peer.slow else buffers for peer in PEERS}
    return _write(folder / "written", PEERS, contents, shape_of(buffers), size.rounds, "the array")


def write_tokens(folder: Path, samples: Sequence[Array], size: Size) -> Answer:
    """Create an array of all tokens, and write it durably and to the page cache."""
    n_layers, _, hidden = samples[0].shape
    shape = n_layers, len(samples), hidden
    contents = {peer.name: samples for peer in TOKEN_PEERS}
    return _write(folder / "written", TOKEN_PEERS, contents, shape, max(1, size.rounds // 2), "all tokens")


def _write(
    place: Path,
    peers: Sequence[Peer] | Sequence[TokenPeer],
    contents: Mapping[str, Sequence[Array]],
    shape: tuple[int, int, int],
    rounds: int,
    what: str,
) -> Answer:
    by_name: dict[str, Any] = {peer.name: peer for peer in peers}
    nbytes = sum(x.nbytes for x in contents[Sonde.name])
    results, owed = [], []
    for durable, how in ((True, "durably"), (False, "to the page cache")):
        targets: dict[str, Any] = {}

        def create(name: str, durable: bool = durable) -> Any:
            return by_name[name].create(place, shape, durable=durable)

        def begin(name: str, targets: dict[str, Any] = targets, create: Callable[[str], Any] = create) -> None:
            targets.clear()
            remove(place)
            targets[name] = create(name)

        def write(name: str, targets: dict[str, Any] = targets, durable: bool = durable) -> None:
            by_name[name].write(targets[name], contents[name], durable=durable)

        if durable:
            seconds = interleave({n: partial(create, n) for n in by_name}, rounds, before=lambda name: remove(place))
            results += table(f"create {what} durably", seconds, peers)
        seconds = interleave({name: partial(write, name) for name in by_name}, rounds, before=begin)
        rows = table(f"write {what} {how}", seconds, peers, nbytes, shape[1])
        results += rows
        if durable:
            owed.append(Owed(f"write of {what} with fsync, of raw files", of_raw(rows), 0.8))
        targets.clear()
        remove(place)
    return results, owed


def read_array(folder: Path, buffers: Sequence[Array], size: Size, generator: np.random.Generator) -> Answer:
    """Read a layer, from the page cache and from the disk, and random rows."""
    n_layers, n_samples, hidden = shape_of(buffers)
    places = {peer.name: folder / f"kept {i}" for i, peer in enumerate(PEERS)}
    places |= {floor.name: places[Sonde.name] for floor in FLOORS}
    for peer in PEERS:
        if peer not in FLOORS:
            peer.write(peer.create(places[peer.name], shape_of(buffers), durable=False), buffers, durable=False)

    def opened(peer: Peer, n_samples: int = n_samples) -> Any:
        return peer.open(places[peer.name], (n_layers, n_samples, hidden))

    chosen = generator.choice(n_samples, _ROWS, replace=False)
    expected = np.concatenate([buffer[_LAYER] for buffer in buffers]).view(np.uint16)
    whole = {peer.name: opened(peer) for peer in PEERS}
    for peer in PEERS:
        ensure_same(peer.name, [peer.layer(whole[peer.name], _LAYER)], expected)
        ensure_same(peer.name, [peer.rows(whole[peer.name], _LAYER, chosen)], expected[chosen])
    results, owed = [], []
    sources = whole | {peer.name: opened(peer, _FEW) for peer in PEERS if peer.slow}
    out = np.zeros((n_samples, hidden), dtype=bfloat16)
    for what, peers, into in (
        ("a layer into a buffer", [peer for peer in PEERS if peer.reads_into], out),
        ("a layer", PEERS, None),
    ):
        reads = {peer.name: partial(peer.layer, sources[peer.name], _LAYER, into) for peer in peers}
        rows = table(f"read {what}", interleave(reads, 3 * size.rounds), peers, out.nbytes, n_samples)
        results += rows
        owed.append(Owed(f"read of {what}, of raw files", of_raw(rows), 0.8))
    peers = [peer for peer in PEERS if peer is not FLOORS[1]]
    seconds = interleave(
        {peer.name: partial(peer.rows, whole[peer.name], _LAYER, chosen) for peer in peers}, 3 * size.rounds
    )
    results += table(f"read {_ROWS} random rows", seconds, peers, _ROWS * hidden * out.itemsize)
    zarr_python = min(took for name, took in seconds.items() if name.startswith("zarr-python"))
    owed.append(Owed("read of random rows, of zarr-python", zarr_python / seconds[Sonde.name], 1.0))
    if size.cold and os.access(_DROP_CACHES, os.W_OK):
        by_name = {peer.name: peer for peer in PEERS}

        def empty_caches(name: str) -> None:
            # What is mapped into memory stays there: what was read from is closed first.
            sources.clear()
            sources[name] = opened(by_name[name], _FEW if by_name[name].slow else n_samples)
            os.sync()
            _DROP_CACHES.write_text("1\n", encoding="ascii")

        whole.clear()
        del reads
        cold = {name: (lambda name=name: by_name[name].layer(sources[name], _LAYER)) for name in by_name}
        results += table(
            "read a layer, cold", interleave(cold, size.rounds, before=empty_caches), PEERS, out.nbytes, n_samples
        )
    else:
        print("cold reads are left out: the page caches are not ours to empty")
    sources.clear()
    for path in places.values():
        remove(path)
    return results, owed


def open_stores(folder: Path, size: Size) -> Answer:
    """Open stores of many ranges."""
    results, owed = [], []
    for n_ranges in size.opened:
        place = folder / f"{n_ranges}.zarr"
        make_commits(place, n_ranges)
        records = sorted((place / "commits").glob("0*.json"))

        def read(records: Sequence[Path] = records) -> list[bytes]:
            return [path.read_bytes() for path in records]

        def parse(read: Callable[[], list[bytes]] = read) -> list[Any]:
            return [json.loads(record) for record in read()]

        open_store = partial(Store.open, place)
        assert open_store().complete
        seconds = interleave({"raw files": read, "raw files as JSON": parse, "sonde": open_store}, size.rounds)
        nbytes = sum(path.stat().st_size for path in records)
        rows = [
            {"what": f"open {n_ranges:,} ranges", "who": who, "seconds": took, "GB/s": nbytes / took / 1e9}
            | {"of raw": seconds["raw files as JSON"] / took, "note": "the floor" if "JSON" in who else ""}
            for who, took in seconds.items()
        ]
        rows[-1]["peak MB"] = peak_bytes(open_store) / 1e6
        results += rows
        if n_ranges == size.opened[0]:
            owed.append(Owed(f"seconds to open {n_ranges:,} ranges", seconds["sonde"], 0.2, at_most=True))
        remove(place)
    return results, owed


def make_commits(place: Path, n_ranges: int) -> None:
    """Make a store of ranges of one sample and 32 layers without its chunks."""
    spec = ArraySpec(SITE, TOKENS, tuple(range(32)), 4)
    ids = [str(i) for i in range(n_ranges)]
    schema = Schema((spec,), n_ranges, 1, {"name": "benchmark"}, {})
    store = Store.create(place, schema, {"id": ids, "group": ids}, fsync=False)
    for range_ in store.ranges:
        chunks = [Chunk(spec.chunk_key(row, range_.index), 12, f"{range_.index + row:08x}") for row in spec.layers]
        Commit(range_, {spec.name: ArrayCommit(tuple(chunks), 0)}, {}).publish(store.location)


def read_tokens(folder: Path, samples: Sequence[Array], size: Size) -> Answer:
    """Read all tokens of a layer."""
    n_layers, _, hidden = samples[0].shape
    lengths = np.array([x.shape[1] for x in samples])
    expected = np.concatenate([x[_LAYER] for x in samples]).view(np.uint16)
    reads: dict[str, Callable[[], object]] = {}
    for i, peer in enumerate(TOKEN_PEERS):
        place = folder / f"tokens {i}"
        target = peer.create(place, (n_layers, len(samples), hidden), durable=False)
        peer.write(target, samples, durable=False)
        source = peer.open(place, lengths, hidden)
        ensure_same(peer.name, peer.layer(source, _LAYER), expected)
        reads[peer.name] = partial(peer.layer, source, _LAYER)
    seconds = interleave(reads, 3 * size.rounds)
    reads.clear()
    for i in range(len(TOKEN_PEERS)):
        remove(folder / f"tokens {i}")
    rows = table("read all tokens of a layer", seconds, TOKEN_PEERS, expected.nbytes)
    return rows, [Owed("read of all tokens of a layer, of raw files", of_raw(rows), 0.8)]


def iterate(folder: Path, buffers: Sequence[Array]) -> Answer:
    """Peak memory of iterating over a layer of N and of 4 N samples; N fills more chunks than are read ahead."""

    def add_up(layer: Layer) -> float:
        return sum(float(x.view(np.uint16).sum()) for _, x in layer)

    results: list[Row] = []
    for n_ranges in (8, 32):
        place = folder / "iterated"
        here = [buffers[i % len(buffers)][:1] for i in range(n_ranges)]
        Sonde().write(Sonde().create(place, shape_of(here), durable=False), here, durable=False)
        layer = Store.open(place).layer(SITE, TOKENS, 0)
        peak = max(peak_bytes(partial(add_up, layer)) for _ in range(3))
        what = f"iterate over a layer of {n_ranges * SAMPLES:,} samples"
        results.append({"what": what, "who": "sonde", "peak MB": peak / 1e6})
        remove(place)
    ratio = results[1]["peak MB"] / results[0]["peak MB"]
    return results, [Owed("peak memory of 4 N samples, of N", ratio, 1.1, at_most=True)]


def cut_samples(buffers: Sequence[Array], size: Size, generator: np.random.Generator) -> list[Array]:
    """Cut samples of all tokens, C-contiguous ``[layer, token, hidden]``, out of values that are there."""
    samples: list[Array] = []
    for n_tokens in generator.integers(size.tokens // 2, size.tokens * 3 // 2, size.token_samples).tolist():
        values = buffers[len(samples) % len(buffers)].reshape(-1)
        n = size.token_layers * n_tokens * size.hidden
        start = int(generator.integers(len(values) - n))
        samples.append(values[start : start + n].reshape(size.token_layers, n_tokens, size.hidden).copy())
    return samples


def table(
    what: str,
    seconds: Mapping[str, float],
    peers: Sequence[Peer] | Sequence[TokenPeer],
    nbytes: int | None = None,
    n_samples: int = 0,
) -> list[Row]:
    """Rows of one question; a slow peer that was timed on a few of ``n_samples`` is scaled to all of them."""
    rows: list[Row] = []
    for peer in peers:
        scale = n_samples / _FEW if n_samples and isinstance(peer, Peer) and peer.slow else 1
        row: Row = {"what": what, "who": peer.name, "seconds": seconds[peer.name] * scale}
        if nbytes is not None:
            row["GB/s"] = nbytes / row["seconds"] / 1e9
        note = f"extrapolated from {_FEW:,} of {n_samples:,} samples" if scale != 1 else ""
        rows.append(row | {"of raw": 1.0, "checks": peer.checks, "note": note})
    floor = min((row for row in rows if row["who"].startswith("raw")), key=lambda row: float(row["seconds"]))
    floor["note"] = "the floor"
    return [row | {"of raw": floor["seconds"] / row["seconds"]} for row in rows]


def of_raw(rows: Sequence[Row]) -> float:
    """Speed of the store, of that of raw files."""
    return next(float(row["of raw"]) for row in rows if row["who"] == Sonde.name)


def ensure_same(name: str, pieces: Sequence[Array], expected: NDArray[np.uint16]) -> None:
    """Raise AssertionError unless what a peer returned has these bits."""
    found = np.concatenate([np.ascontiguousarray(x).view(np.uint16) for x in pieces])
    np.testing.assert_array_equal(found, expected, err_msg=name)


def peak_bytes(run: Callable[[], object]) -> int:
    """Peak of what Python and numpy allocate while ``run`` runs."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def remove(place: Path) -> None:
    """Remove a file or a folder, and leave the disk with nothing to do."""
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    os.sync()


def file_system(folder: Path) -> str:
    """Type of the file system that a folder is on, as the system names it."""
    try:
        mounts = [line.split() for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return "unknown"
    above = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[1]))[2] if above else "unknown"


if __name__ == "__main__":
    sizes = {"fast": "smaller arrays: less than a minute", "tiny": "only whether it runs: its numbers mean nothing"}
    launch(__doc__, lambda folder, size: main(folder, {"full": FULL, "fast": FAST, "tiny": TINY}[size]), sizes)
