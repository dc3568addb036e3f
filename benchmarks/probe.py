"""What probing every layer costs beside its floor, and how far others are from it.

Questions, of a bfloat16 store of layers whose multi-label targets are true of 0.3 % to 50 % of the rows:

* ridge probes of all layers: beside the floor, and with evaluation and bootstrap as `sonde.probe` does it;
* ridge probes of one layer: beside scikit-learn's `RidgeCV` over the same folds, its leave-one-out and himalaya's
  `RidgeCV`, and the statistics alone beside cvmatrix;
* logistic probes of all layers and of one: beside scikit-learn's `LogisticRegression` in a loop, probelab's
  `Logistic` in the same loop, and an Adam loop;
* new labels for a store that has been probed before, beside reading its layers once, and beside the two products that
  no probe of new labels can do without, XᵀY and the scores of every row;
* how ridge and its floor grow in rows, hidden size, targets, alphas, folds and layers (``--plots`` draws it);
* peak memory at N and at 4 N rows.

The floor of ridge is the sum of three parts, each timed alone for all layers in the same run, one layer per core with
one BLAS thread each, as sonde works: reading the layers, the symmetric product XᵀX of every fold (BLAS `ssyrk`), and
one float64 eigendecomposition of every training part, those of the folds and the whole. What sonde does besides is
XᵀY, the solutions of all targets and alphas, their held-out errors, and scores of every row.

Fairness: contestants of a question run in turns on the same data, folds and alphas, and medians are compared; one that
has run for 20 seconds gets no more turns, and its first, which else warms up, counts if it was the only one. What each
found is printed beside its time. Peers (`benchmarks.probe_peers`) have one layer in memory as float32; sonde reads its
layer from the store. Both have one thread, as sonde gives every layer; more layers and cores change both alike. Loops
over targets are timed on some of them, and `of sonde` counts all: targets are fits of their own. scikit-learn's
`RidgeCV` chooses one alpha for all targets, since it allows no more with given folds: its scores are lower. Equal ones
come of a loop over targets; the bound is held against both. himalaya runs on the faster of its backends for CPUs, found
by fits of one alpha; its dual `KernelRidgeCV` decomposes a matrix of all rows and is left out where there are more rows
than columns. scikit-learn's logistic loops have the loosest `tol`, in float32 or float64, whose objective comes within
1e-6 of the optimum (Newton's method to its end) for every timed target and alpha; the search is not timed. `excess` is
the greatest relative excess over those optima. probelab cannot be told a tolerance. Adam minimises without a penalty
until a validation loss stops falling, as most papers do: it answers another question. probekit is no contestant: it
installs SAELens, and its logistic probes are scikit-learn's or, batched over layers, of one target at one penalty.

Memory is measured where rows are streamed, and for a whole layer, which stays in memory between passes up to 1 GiB.

Peers that are not installed are named. They are the dependency group ``peers-probe``:

    uv run --group peers-probe python -m benchmarks.probe [--fast | --tiny] [--folder DIR] [--plots DIR]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from sonde.probes import ArrayRows, Problem, accumulate, logistic_path, probe
from sonde.store import Store

from .probe_data import SITE, TOKENS, Floats, LayerData, Shape, fit_one, write_store
from .probe_floor import on_all_layers, time_ridge
from .probe_growth import Growth, draw, grow
from .probe_layer import OneLayer, Row, take_turns
from .probe_peers import (
    LogisticLoop,
    Optimum,
    absent,
    adam,
    cvmatrix_statistics,
    himalaya_backend,
    himalaya_ridge_cv,
    loosest,
    one_thread,
    probelab_logistic,
    sklearn_ridge_cv,
    sklearn_ridge_loo,
    sklearn_ridge_loop,
)
from .result import Owed, conclude, interleave, launch

Answer: TypeAlias = tuple[list[Row], list[Owed]]

_EXCESS = 1e-6
_FEW = 64
_ABSENT = "not installed"
_SKLEARN_RIDGE = ("scikit-learn RidgeCV(cv), a loop over targets", "scikit-learn RidgeCV(cv), one alpha")
_PACKAGES = ("scikit-learn", "scipy", "himalaya", "cvmatrix", "probelab")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    ridge, logistic
        Stores and grids.
    timed_targets
        Of the logistic loops.
    rounds
        Counted runs of each contestant.
    draws
        Of the bootstrap.
    growth
        The sweeps.
    in_memory
        N and the hidden size of the layer whose memory is measured.
    """

    ridge: Shape
    logistic: Shape
    timed_targets: int
    rounds: int
    draws: int
    growth: Growth
    in_memory: tuple[int, int]


FULL = Size(
    Shape(12, 20_000, 768, 80, 20, 5),
    Shape(12, 5_000, 512, 16, 5, 5),
    4,
    3,
    1000,
    Growth(Shape(4, 6_000, 256, 40, 10, 8), (0.25, 0.5, 1, 2), 1),
    (8_192, 512),
)
FAST = Size(
    Shape(4, 3_000, 256, 40, 10, 5),
    Shape(4, 2_000, 128, 8, 3, 5),
    2,
    2,
    100,
    Growth(Shape(2, 2_000, 128, 16, 8, 4), (0.5, 1, 2), 1),
    (8_192, 512),
)
TINY = Size(
    Shape(2, 400, 16, 4, 3, 3),
    Shape(2, 400, 8, 3, 2, 3),
    1,
    1,
    10,
    Growth(Shape(2, 300, 8, 2, 2, 3), (1,), 1),
    (512, 8),
)


def main(folder: Path, size: Size, plots: Path | None) -> None:
    """Ask all questions and print the answers."""
    growth = grow(folder, size.growth)
    answers = [ridge(folder, size), logistic(folder, size), (growth, []), memory(folder, size)]
    if plots is not None:
        print(f"drawn to {draw(growth, size.growth, plots)}")
    results = [row for rows, _ in answers for row in rows]
    owed = [promise for _, promises in answers for promise in promises]
    conclude("probe", results, owed, peers=[name for name in _PACKAGES if _installed(name)])


def ridge(folder: Path, size: Size) -> Answer:
    """Ridge probes of all layers beside the floor, of one beside peers; statistics alone; new labels."""
    shape = size.ridge
    store = write_store(folder / "ridge.zarr", shape, ("objects", "new objects"))
    problem, alphas = Problem.of(store, "objects", n_folds=shape.folds), shape.penalties("ridge")
    seconds = time_ridge(store, problem, alphas, size.rounds)
    rows: list[Row] = [
        {"what": f"ridge: {shape}", "who": who, "seconds": took, "of floor": took / seconds["floor"]}
        for who, took in seconds.items()
    ]
    owed = [Owed("ridge, of its floor", seconds["sonde"] / seconds["floor"], 1.5, at_most=True)]
    data = LayerData.of(store, problem, 0, alphas)
    # From the rarest to the most even.
    targets = np.linspace(0, len(problem.targets) - 1, min(2, size.timed_targets)).astype(int).tolist()
    peers = {
        _SKLEARN_RIDGE[0]: partial(sklearn_ridge_loop, targets=targets),
        _SKLEARN_RIDGE[1]: sklearn_ridge_cv,
        "scikit-learn RidgeCV, leave-one-out": sklearn_ridge_loo,
    }
    himalaya = "himalaya RidgeCV"
    if not absent("himalaya"):
        with one_thread():
            backend = himalaya_backend(data)
        himalaya += f", {backend}"
        peers[himalaya] = partial(himalaya_ridge_cv, backend=backend)
    layer = OneLayer("ridge", store, problem, data, targets)
    of_one, times = layer.beside(peers, size.rounds)
    rows += of_one
    owed += [Owed(f"ridge, times faster than {name}", times[name], 20) for name in _SKLEARN_RIDGE]
    if himalaya in times:
        owed.append(Owed("ridge, times faster than himalaya RidgeCV", times[himalaya], 10))
    else:
        rows.append({"what": layer.what, "who": himalaya, "note": _ABSENT})
    again, promises = reprobe(store, shape, size)
    return rows + fold_statistics(data, size.rounds) + again, owed + promises


def logistic(folder: Path, size: Size) -> Answer:
    """Logistic probes of all layers, and of one beside peers at the same objective."""
    shape = size.logistic
    store = write_store(folder / "logistic.zarr", shape)
    problem, alphas = Problem.of(store, "objects", n_folds=shape.folds), shape.penalties("logistic")
    ours = partial(on_all_layers, store, fit_one, store, problem, "logistic", alphas)
    seconds = interleave({"sonde": ours}, size.rounds)["sonde"]
    rows: list[Row] = [{"what": f"logistic: {shape}", "who": "sonde", "seconds": seconds}]
    data = LayerData.of(store, problem, 0, alphas)
    # From the rarest to the most even.
    targets = np.linspace(0, len(problem.targets) - 1, size.timed_targets).astype(int).tolist()
    with one_thread():
        optimum = Optimum.of(data, targets)
        fits = dict(loosest(solver, optimum, _EXCESS) for solver in ("lbfgs", "newton-cholesky"))
    lbfgs = next(iter(fits))
    if not absent("probelab"):
        fits["probelab"] = probelab_logistic
    loops = {name: LogisticLoop(fit_one, targets) for name, fit_one in fits.items()}
    # Torch loads much at the first step of an optimizer.
    adam(replace(data, x=data.x[:_FEW], y=data.y[:_FEW], folds=data.folds[:_FEW]))
    layer = OneLayer("logistic", store, problem, data, targets)
    of_one, times = layer.beside({**loops, "Adam": adam}, size.rounds)
    excess = {name: max(optimum.excess_of(fit_one)) for name, fit_one in fits.items()}
    excess["sonde"] = max(optimum.excess(our_probes(data, targets)))
    for row in of_one:
        if row["who"] in excess:
            row["excess"] = excess[row["who"]]
    if absent("probelab"):
        of_one.append({"what": layer.what, "who": "probelab", "note": _ABSENT})
    return rows + of_one, [Owed("logistic, times faster than scikit-learn lbfgs", times[lbfgs], 30)]


def our_probes(data: LayerData, targets: Sequence[int]) -> Callable[[int, float], tuple[Floats, float]]:
    """Fit sonde's logistic path to all training rows; return its probes as of standardised rows."""
    path = logistic_path(ArrayRows(data.x), data.y[:, targets], data.alphas)
    mean, scale = data.x.mean(axis=0, dtype=np.float64), data.x.std(axis=0, dtype=np.float64)

    def probe_of(t: int, alpha: float) -> tuple[Floats, float]:
        at = int(np.flatnonzero(path.alphas == alpha)[0])
        weights = path.weights[at, t].astype(np.float64)
        return weights * scale, float(path.bias[at, t] + weights @ mean)

    return probe_of


def fold_statistics(data: LayerData, rounds: int) -> list[Row]:
    """Standardised Gram matrices of all training parts, with their XᵀY, of rows in memory."""
    found: dict[str, list[Floats]] = {}

    def ours() -> None:
        stats = accumulate(ArrayRows(data.x), data.y, data.folds)
        parts = [stats.without(fold) for fold in range(stats.n_folds)]
        found["sonde"] = [part.sxx / np.outer(part.scale, part.scale) for part in parts]

    def theirs() -> None:
        found["cvmatrix"] = cvmatrix_statistics(data)

    what, missing = "statistics: one layer", absent("cvmatrix")
    with one_thread():
        seconds = interleave({"sonde": ours} if missing else {"sonde": ours, "cvmatrix": theirs}, rounds)
    x = data.x[data.folds != 0].astype(np.float64)
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    exact = x.T @ x
    rows: list[Row] = [
        {"what": what, "who": who, "seconds": took, "error": float(np.abs(found[who][0] - exact).max() / len(x))}
        for who, took in seconds.items()
    ]
    return [*rows, {"what": what, "who": "cvmatrix", "note": _ABSENT}] if missing else rows


def reprobe(store: Store, shape: Shape, size: Size) -> Answer:
    """`sonde.probe` with evaluation and bootstrap, then new labels for the same store, beside reading it once."""
    what = "sonde.probe, all layers"
    options = {"alphas": shape.penalties("ridge"), "n_folds": shape.folds, "callbacks": ()}

    def read() -> None:
        for layer in store.arrays[0].layers:
            for _ in store.layer(SITE, TOKENS, layer):
                pass

    y = np.ones((shape.rows, shape.targets), np.float32)
    weights = np.ones((shape.hidden, shape.targets), np.float32)

    def multiply(layer: int) -> None:
        for rows, x in store.layer(SITE, TOKENS, layer):
            wide = x.astype(np.float32)
            wide.T @ y[rows]
            wide @ weights

    new, no_bootstrap = f"new labels, {size.draws} draws", "new labels, 1 draw"
    start = time.perf_counter()
    probe(store, "objects", n_draws=size.draws, **options)
    rows: list[Row] = [
        {"what": what, "who": f"first labels, {size.draws} draws", "seconds": time.perf_counter() - start}
    ]
    seconds = take_turns(
        {
            "read the layers": read,
            "read, XᵀY and scores": lambda: on_all_layers(store, multiply),
            new: lambda: probe(store, "new objects", n_draws=size.draws, **options),
            no_bootstrap: lambda: probe(store, "new objects", n_draws=1, **options),
        },
        size.rounds,
    )
    rows += [{"what": what, "who": who, "seconds": took} for who, took in seconds.items()]
    for row in rows:
        row["of reading"] = row["seconds"] / seconds["read the layers"]
    return rows, [
        Owed("new labels, of reading the layers", seconds[new] / seconds["read the layers"], 1.2, at_most=True)
    ]


def memory(folder: Path, size: Size) -> Answer:
    """Peak memory at N and 4 N rows, of a process that does nothing else."""
    if not _CLEAR_REFS.exists():
        return [{"what": "memory", "who": "sonde", "note": f"not known without {_CLEAR_REFS}"}], []
    n_rows, hidden = size.in_memory
    shapes = {name: Shape(1, n, hidden, 2, 5, 2) for name, n in (("N", n_rows), ("4 N", 4 * n_rows))}
    stores = [write_store(folder / f"{shape.rows}.zarr", shape) for shape in shapes.values()]
    command = [sys.executable, "-m", "benchmarks.probe_memory", *(str(store.location) for store in stores)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    rows = [
        {
            "what": f"memory: a layer of {shape.rows:,} x {hidden}",
            "who": who,
            "peak MB": peaks[name],
            "MB before": peaks["before"],
        }
        for who, peaks in found.items()
        for name, shape in shapes.items()
    ]
    added = 3 * n_rows * hidden * 2 / 1e6
    peaks = found["statistics and solution"]
    grown = (peaks["4 N"] - peaks["N"]) / added
    return rows, [Owed("growth of peak memory from N to 4 N rows, of their bytes", grown, 0.2, at_most=True)]


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--plots", type=Path, default=None, help="folder for a drawing of how times grow")
    sizes = {
        "fast": "smaller layers and grids: a minute, of runs so short that fixed costs show",
        "tiny": "only whether it runs: its numbers mean nothing",
    }

    def start(folder: Path, size: str) -> None:
        main(folder, {"full": FULL, "fast": FAST, "tiny": TINY}[size], parser.parse_known_args()[0].plots)

    launch(__doc__, start, sizes, parents=[parser])
