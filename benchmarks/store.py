"""Whether the store writes ranges and reads a layer at the speed of raw files on the same disk.

The floor is one raw file per chunk of the same bytes: written and fsynced, or read into the same array. The peer is
zarr-python with its own pipeline on the same layout. Everything writes to one folder in turns and reads from the page
cache; the store's checksums are on.

    python -m benchmarks.store [--fast] [--folder DIR]
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from sonde.store import ArraySpec, Schema, Store, bfloat16

from .result import Owed, conclude, interleave


def main(folder: Path, *, fast: bool) -> None:
    """Measure writing of committed ranges and reading of one layer."""
    n_layers, n_samples, hidden = (8, 4096, 1024) if fast else (32, 16384, 1024)
    rounds = 5 if fast else 7
    x = np.random.default_rng(0).normal(size=(n_layers, n_samples, hidden)).astype(np.float32).astype(bfloat16)
    size = 1024
    turn = iter(range(10**6))

    def new_store() -> Store:
        spec = ArraySpec("resid_post", "last", tuple(range(n_layers)), hidden)
        schema = Schema((spec,), n_samples, size, {"name": "benchmark"}, {})
        ids = [str(i) for i in range(n_samples)]
        return Store.create(folder / f"{next(turn)}.zarr", schema, {"id": ids, "group": ids})

    def write_store() -> None:
        store = new_store()
        for range_ in store.ranges:
            store.writer().commit(range_, {"resid_post/last": x[:, range_.rows]})
        shutil.rmtree(str(store.location))

    def write_raw() -> None:
        place = folder / f"{next(turn)}.raw"
        place.mkdir()
        for start in range(0, n_samples, size):
            for layer in range(n_layers):
                with (place / f"{layer}.{start}").open("wb", buffering=0) as file:
                    file.write(x[layer, start : start + size].view(np.uint8).data)
                    os.fsync(file.fileno())
        shutil.rmtree(place)

    kept = new_store()
    for range_ in kept.ranges:
        kept.writer().commit(range_, {"resid_post/last": x[:, range_.rows]})
    kept.refresh()
    array: Any = zarr.open_array(str(kept.location), path="activations/resid_post/last", mode="r")

    def read_raw() -> NDArray[Any]:
        out = np.empty((n_samples, hidden), dtype=bfloat16)
        for index in range(n_samples // size):
            path = Path(str(kept.location)) / "activations/resid_post/last" / f"c.1.{index}.0"
            with path.open("rb", buffering=0) as file:
                file.readinto(out[index * size : (index + 1) * size].view(np.uint8).data)
        return out

    for read in (read_raw(), kept.layer("resid_post", "last", 1).numpy(), array[1]):
        np.testing.assert_array_equal(read.view(np.uint16), x[1].view(np.uint16))
    writes = interleave({"raw": write_raw, "sonde": write_store}, rounds)
    reads = interleave(
        {
            "raw": read_raw,
            "sonde": lambda: kept.layer("resid_post", "last", 1).numpy(),
            "zarr-python": lambda: array[1],
        },
        rounds * 3,
    )
    results = [
        {"what": what, "who": who, "seconds": seconds, "GB/s": nbytes / seconds / 1e9, "of raw": times["raw"] / seconds}
        for what, times, nbytes in (("write", writes, x.nbytes), ("read a layer", reads, x[1].nbytes))
        for who, seconds in times.items()
    ]
    owed = [
        Owed("write, of raw files", writes["raw"] / writes["sonde"], 0.8),
        Owed("read of one layer, of raw files", reads["raw"] / reads["sonde"], 0.8),
    ]
    conclude("store", results, owed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="smaller arrays: under a minute")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder if left out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        main(Path(place), fast=arguments.fast)
