"""What the dtype and the codec of a store cost and save on real activations, and what the dtype costs a probe.

Activations, extracted once in float32 and then kept in every dtype by every codec:

* ``minilm``: all-MiniLM-L6-v2, trained, over the docstrings of the standard library (``examples/docstrings.py``), mean
  over tokens, probed for their module;
* ``demo``: the tiny LLaVA of ``sonde demo``, random weights, over its scenes, mean over tokens, probed for the objects.

``size`` is what a store's chunks take, relative to bfloat16 without a codec. Throughput is that of whole ranges through
the range writer and of one layer into one array, in GB of values in memory a second (int8 goes in and out as float32):
medians in turns, from and into the page cache without fsync, for the disk is the same for all (``benchmarks.store``
measures it). Samples are repeated to fill enough chunks, never within a chunk. That codecs give back the same bits is
checked, so every dtype is probed once: test accuracy of the layer that cross-validation chooses, and the mean over
layers of the absolute difference from float32, on the same rows. ``error`` is the root mean square of what a dtype
loses, relative to that of the values, of the worst layer; ``peak/rms`` the largest absolute value relative to the same,
by layer: dimensions that stand out make int8's one scale per vector coarse for all others.

    python -m benchmarks.codecs [--fast] [--folder DIR]
"""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from examples.docstrings import MODEL, docstrings
from numpy.typing import NDArray

import sonde
from sonde.engine.demo_model import DEMO_MODEL
from sonde.engine.scenes import write_scenes
from sonde.probes import UnconvergedWarning
from sonde.store import DTYPES, ArraySpec, Labels, Schema, Store, as_float32
from sonde.store.codecs import CODECS

from .result import Owed, conclude, interleave, launch

SITE, TOKENS = "resid_post", "mean"
SOLVERS = ("ridge", "logistic")
ALLOWED_LOSS = 0.02


@dataclass(frozen=True, slots=True)
class Activations:
    """Activations ``x``, float32 ``[layer, sample, hidden]``, with their samples and what they are probed for."""

    name: str
    x: NDArray[np.float32]
    spec: ArraySpec
    columns: Mapping[str, Sequence[str]]
    labels: Labels

    @classmethod
    def of(cls, name: str, store: Store, labels: str) -> Activations:
        """Read them from a complete store."""
        spec = store.array(SITE, TOKENS)
        x = np.stack([store.layer(SITE, TOKENS, layer).numpy() for layer in spec.layers])
        columns = {column: values.tolist() for column, values in store.columns.items()}
        return cls(name, x, spec, columns, store.labels(labels))


@dataclass(frozen=True, slots=True)
class Probed:
    """What probes find in the activations as a store of one dtype keeps them.

    Attributes
    ----------
    accuracy
        By solver: test accuracy by layer.
    best
        By solver: the layer that cross-validation chooses.
    error
        Root mean square of what the dtype loses, relative to that of the values, of the worst layer.
    split
        Digest of which rows are trained on and tested.
    """

    accuracy: Mapping[str, pd.Series]
    best: Mapping[str, int]
    error: float
    split: str

    def of_best(self, solver: str) -> float:
        """Accuracy of the chosen layer."""
        return float(self.accuracy[solver][self.best[solver]])


def configuration(out: Path, model: Mapping[str, Any], data: Mapping[str, Any], *, fast: bool) -> dict[str, Any]:
    capture = {"sites": [SITE], "tokens": [TOKENS], "layers": [0, 2, 5] if fast else "all"}
    return {"model": {**model, "dtype": "float32"}, "data": data, "capture": capture, "run": {"out": out}}


def minilm(folder: Path, *, fast: bool) -> Activations:
    samples = list(docstrings(Path(sysconfig.get_path("stdlib"))))[:: 4 if fast else 1]
    data = {"truncate": 64 if fast else 256}
    config = configuration(folder / "minilm.zarr", {"name": str(MODEL)}, data, fast=fast)
    return Activations.of("minilm", sonde.extract(config, samples=samples), "module")


def demo(folder: Path, *, fast: bool) -> Activations:
    data = write_scenes(folder / "data", n_images=120 if fast else 1000, seed=0)
    annotations, images = data / "annotations", data / "images"
    source = {"task": "recognition", "annotations": annotations, "images": images}
    config = configuration(folder / "demo.zarr", {"name": str(DEMO_MODEL), "weights": "random"}, source, fast=fast)
    return Activations.of("demo", sonde.extract(config), "objects")


def convert(x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Make of the values what a store of this dtype takes."""
    return x if dtype == "int8" else x.astype(DTYPES[dtype])


def new_store(place: Path, real: Activations, dtype: str, codec: str, size: int, n_samples: int) -> Store:
    """Make an empty store of the samples, repeated to ``n_samples`` if these are more."""
    schema = Schema((real.spec,), n_samples, size, {"name": real.name}, {}, dtype=dtype, codec=codec)
    columns = real.columns
    if n_samples > len(real.labels):
        ids = [str(i) for i in range(n_samples)]
        columns = {"id": ids, "group": ids}
    return Store.create(place, schema, columns, fsync=False)


def write(store: Store, values: NDArray[Any]) -> None:
    """Commit every range; all are whole."""
    writer = store.writer()
    for range_ in store.ranges:
        writer.commit(range_, {f"{SITE}/{TOKENS}": values[:, range_.rows]})
    store.refresh()


def read(store: Store) -> NDArray[Any]:
    return store.layer(SITE, TOKENS, store.arrays[0].layers[0]).numpy()


def probe(folder: Path, real: Activations, dtype: str) -> Probed:
    n = len(real.labels)
    store = new_store(folder / f"{real.name}-{dtype}.zarr", real, dtype, "none", n, n)
    write(store, convert(real.x, dtype))
    store.write_labels(real.labels)
    kept = (as_float32(store.layer(SITE, TOKENS, layer).numpy()) for layer in real.spec.layers)
    error = max(rms(found - x) / rms(x) for found, x in zip(kept, real.x, strict=True))
    results = {solver: sonde.probe(store, real.labels.name, solver=solver, n_draws=10) for solver in SOLVERS}
    curves = {solver: r.curves(metric="accuracy").query("split == 'test'") for solver, r in results.items()}
    [split] = {found for curve in curves.values() for found in curve["split_hash"]}
    return Probed(
        {solver: curve.set_index("layer")["value"].sort_index() for solver, curve in curves.items()},
        {solver: int(r.best(metric="accuracy")["layer"]) for solver, r in results.items()},
        error,
        split,
    )


def rms(x: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(x, dtype=np.float64).mean()))


def throughput(folder: Path, real: Activations, *, fast: bool) -> dict[tuple[str, str], tuple[float, float, int]]:
    """Write and read every kind of store in turns.

    Returns
    -------
    dict
        By dtype and codec: GB/s written, GB/s read, bytes of the chunks.
    """
    size = min(1024, len(real.labels))
    n = size * (4 if fast else 16)
    repeated = np.take(real.x, np.arange(n) % len(real.labels), axis=1)
    values = {dtype: convert(repeated, dtype) for dtype in DTYPES}
    kinds = [(dtype, codec) for dtype in DTYPES for codec in CODECS]
    rounds = 3 if fast else 5
    stores = {
        (dtype, codec): new_store(folder / f"{real.name}-{dtype}-{codec}.zarr", real, dtype, codec, size, n)
        for dtype, codec in kinds
    }
    writes = interleave({f"{d} {c}": partial(write, stores[d, c], values[d]) for d, c in kinds}, rounds)
    reads = interleave({f"{d} {c}": partial(read, stores[d, c]) for d, c in kinds}, 3 * rounds)
    measured = {}
    for dtype, codec in kinds:
        expected = read(stores[dtype, "none"]) if dtype == "int8" else values[dtype][0]
        found = read(stores[dtype, codec])
        assert found.tobytes() == expected.tobytes(), f"{dtype} {codec} gave back other values"
        written = values[dtype].nbytes / writes[f"{dtype} {codec}"] / 1e9
        was_read = found.nbytes / reads[f"{dtype} {codec}"] / 1e9
        measured[dtype, codec] = written, was_read, stores[dtype, codec].info()["bytes"]
    return measured


def compare(folder: Path, real: Activations, *, fast: bool) -> tuple[list[dict[str, Any]], float]:
    """Measure everything for one set of activations; also the most accuracy that the best layer loses by int8."""
    measured = throughput(folder, real, fast=fast)
    probed = {dtype: probe(folder, real, dtype) for dtype in DTYPES}
    exact = probed["float32"]
    assert {one.split for one in probed.values()} == {exact.split}
    unit = measured["bfloat16", "none"][2]
    rows = []
    for (dtype, codec), (written, was_read, nbytes) in measured.items():
        one = probed[dtype]
        row: dict[str, Any] = {"data": real.name, "dtype": dtype, "codec": codec, "size": nbytes / unit}
        row |= {"write GB/s": written, "read GB/s": was_read, "error": one.error}
        for solver in SOLVERS:
            difference = (one.accuracy[solver] - exact.accuracy[solver]).abs().mean()
            row |= {solver: one.of_best(solver), f"{solver} |Δ|": float(difference)}
        if (dtype, codec) == ("float32", "none"):
            row["peak/rms"] = " ".join(f"{np.abs(x).max() / rms(x):.1f}" for x in real.x)
        rows.append(row)
    return rows, max(exact.of_best(solver) - probed["int8"].of_best(solver) for solver in SOLVERS)


def main(folder: Path, *, fast: bool) -> None:
    """Measure both sets of activations."""
    # Accuracies are compared as they are: a fit that stopped at its limit is as good for every dtype.
    warnings.simplefilter("ignore", UnconvergedWarning)
    rows: list[dict[str, Any]] = []
    losses = []
    for make in (minilm, demo):
        real = make(folder, fast=fast)
        print(f"{real.name}: {len(real.labels)} samples, {len(real.spec.layers)} layers of {real.spec.hidden}")
        found, loss = compare(folder, real, fast=fast)
        rows += found
        losses.append(loss)
    owed = [Owed("accuracy of int8 less float32's, best layer, worst case", -max(losses), -ALLOWED_LOSS)]
    conclude("codecs", rows, owed)


if __name__ == "__main__":
    launch(__doc__, lambda folder, size: main(folder, fast=size == "fast"), {"fast": "fewer samples: under a minute"})
