"""Ways to keep all tokens of every sample: ragged ``[sample][layer, token, hidden]``, sonde's among them.

Every peer is given the same samples, each of them C-contiguous bfloat16 ``[layer, token, hidden]`` as a model leaves
them, in ranges of a given number of samples; durable as in `benchmarks.store_peers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sonde.store import ALL, ArraySpec, Schema, Store, TokenBuffer, as_torch, bfloat16

from .store_peers import SITE, THREADS, Array, Shape, fsync, new_folder, on_threads, read_file, tensor_of, write_file

SAMPLES = 128
"""Of one range."""


class TokenPeer(Protocol):
    """One way to keep all tokens."""

    name: str
    checks: str

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Any:
        """Make an empty array of (layers, samples, hidden) at ``place``, where nothing is yet."""

    def write(self, target: Any, samples: Sequence[Array], *, durable: bool) -> None:
        """Write all samples to what `create` made."""

    def open(self, place: Path, lengths: NDArray[np.int64], hidden: int) -> Any:
        """Return whatever the peer reads from."""

    def layer(self, source: Any, layer: int) -> list[Array]:
        """Read one layer: pieces that hold the tokens of all samples in their order, ``[token, hidden]``."""


class RawTokens:
    """A file per range and layer without a checksum, gathered from the samples' memory: the floor."""

    checks = "nothing"

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._threads = threads

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Path:
        return new_folder(place, durable=durable)

    def write(self, target: Path, samples: Sequence[Array], *, durable: bool) -> None:
        for index, start in enumerate(range(0, len(samples), SAMPLES)):
            here = samples[start : start + SAMPLES]

            def keep(layer: int, here: Sequence[Array] = here, index: int = index) -> None:
                write_file(target / f"c.{layer}.{index}", [x[layer] for x in here], durable=durable)

            on_threads(keep, range(len(here[0])), self._threads)
            if durable:
                fsync([target])

    def open(self, place: Path, lengths: NDArray[np.int64], hidden: int) -> tuple[Path, NDArray[np.int64], int]:
        return place, np.add.reduceat(lengths, np.arange(0, len(lengths), SAMPLES)), hidden

    def layer(self, source: tuple[Path, NDArray[np.int64], int], layer: int) -> list[Array]:
        place, lengths, hidden = source
        pieces = [np.empty((n, hidden), dtype=bfloat16) for n in lengths.tolist()]
        on_threads(lambda i: read_file(place / f"c.{layer}.{i}", pieces[i]), range(len(pieces)), self._threads)
        return pieces


class SondeTokens:
    """The store of this project: crc32c of every chunk, offsets, token ids and modality beside the vectors."""

    name = "sonde"
    checks = "crc32c"

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Store:
        n_layers, n_samples, hidden = shape
        spec = ArraySpec(SITE, ALL, tuple(range(n_layers)), hidden)
        schema = Schema((spec,), n_samples, SAMPLES, {"name": "benchmark"}, {})
        ids = [str(i) for i in range(n_samples)]
        return Store.create(place, schema, {"id": ids, "group": ids}, fsync=durable)

    def write(self, target: Store, samples: Sequence[Array], *, durable: bool) -> None:
        writer = target.writer()
        for range_ in target.ranges:
            buffer: TokenBuffer = writer.buffers()[f"{SITE}/{ALL}"]
            for row in range(range_.start, range_.stop):
                index = np.zeros(samples[row].shape[1], dtype=np.int32)
                buffer.put(row, samples[row], index, index)
            writer.commit(range_, {f"{SITE}/{ALL}": buffer})

    def open(self, place: Path, lengths: NDArray[np.int64], hidden: int) -> Store:
        return Store.open(place)

    def layer(self, source: Store, layer: int) -> list[Array]:
        return [part.values for part in source.tokens(SITE, layer)]


class SafetensorsTokens:
    """A safetensors file ``[layer, token, hidden]`` per sample, mapped into memory to be read."""

    name = "safetensors per sample"
    checks = "nothing"

    def create(self, place: Path, shape: Shape, *, durable: bool) -> Path:
        return new_folder(place, durable=durable)

    def write(self, target: Path, samples: Sequence[Array], *, durable: bool) -> None:
        from safetensors.torch import save_file

        for start in range(0, len(samples), SAMPLES):
            paths = [target / str(row) for row in range(start, min(start + SAMPLES, len(samples)))]
            for path, x in zip(paths, samples[start:], strict=False):
                save_file({SITE: as_torch(x)}, path)
            if durable:
                fsync(paths)
                fsync([target])

    def open(self, place: Path, lengths: NDArray[np.int64], hidden: int) -> list[Any]:
        return [tensor_of(place / str(row)) for row in range(len(lengths))]

    def layer(self, source: list[Any], layer: int) -> list[Array]:
        import torch

        # What a slice returns is the file in memory: nothing has been read yet.
        return [np.array(x[layer].view(torch.uint16).numpy()) for x in source]


FLOORS = (RawTokens("raw files, 1 thread", 1), RawTokens(f"raw files, {THREADS} threads", THREADS))
TOKEN_PEERS: tuple[TokenPeer, ...] = (*FLOORS, SondeTokens(), SafetensorsTokens())
