"""Probes of 32 layers of 100,000 activations of 4,096 values, on one GPU that holds the data.

A layer is bfloat16 with correlated columns of falling variance, its 80 targets are noisy half-spaces, one in ten to one
in two of them true. A layer is timed from its first sum to the last probe; what 32 would take is 32 times the median,
and said to be so. Beside a fit stands how far it is from its own optimality condition, computed anew in float64 from
the rows of one target; beside the layers stand the decompositions that a solver may choose between, timed alone. Where
they are installed, cupy runs the same solver, and cuML fits one target at one penalty, of which a grid takes as many
as it has of both and folds.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.probes import ArrayRows, LogisticFit, RidgeFit, accumulate, logistic_cv, ridge_cv
from sonde.probes.eigenbasis import eigenbases

from .gpu_ceilings import Emit, wait
from .result import Owed

_LAYERS = 32
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Size:
    """Rows, columns, targets and penalties of a layer, rows of a chunk, and after how many seconds no layer follows."""

    rows: int
    hidden: int
    targets: int
    alphas: int
    chunk: int
    seconds: float


SIZES = {
    "full": Size(100_000, 4096, 80, 20, 16384, 15.0),
    "fast": Size(100_000, 4096, 80, 20, 16384, 0.0),
    "tiny": Size(400, 16, 3, 4, 128, 0.0),
}


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Activations on the device, bfloat16 ``[row, hidden]``; targets 0/1 ``[row, target]`` and folds in host memory."""

    x: Any
    y: NDArray[np.float64]
    folds: NDArray[np.int64]

    @classmethod
    def draw(cls, device: str, size: Size, seed: int) -> Layer:
        """Make a layer up."""
        import torch

        random = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Any:
            return torch.randn(shape, generator=random, device=device)

        falling = torch.arange(1, size.hidden + 1, device=device) ** -0.5
        mixing = normal(size.hidden, size.hidden) / size.hidden**0.5
        source = normal(size.rows, size.hidden)
        signal = source[:, : min(64, size.hidden)] @ normal(min(64, size.hidden), size.targets)
        noisy = signal / signal.std(dim=0) + normal(size.rows, size.targets)
        rarity = torch.linspace(0.5, 0.9, size.targets, device=device)
        bounds = torch.stack([torch.quantile(noisy[:, t], rarity[t]) for t in range(size.targets)])
        x = ((source * falling) @ mixing).to(torch.bfloat16)
        folds = np.random.default_rng(seed).integers(0, _FOLDS, size.rows)
        return cls(x, (noisy > bounds).double().cpu().numpy(), folds)


def ridge(emit: Emit, folder: Path, device: str, size: str) -> None:
    """Time ridge probes of as many layers as there is time for."""
    alphas = np.logspace(-1, 7, SIZES[size].alphas)

    def fit(layer: Layer, chunk: int, parts: dict[str, float]) -> RidgeFit:
        with _timed(parts, "statistics", device):
            stats = accumulate(ArrayRows(layer.x, chunk), layer.y, layer.folds, n_folds=_FOLDS)
        with _timed(parts, "solve", device):
            return ridge_cv(stats, alphas)

    # The decompositions come first: where a fit is cut off, they say what a solver can hope for.
    _decompose(emit, device, SIZES[size])
    _fit_layers(emit, "ridge", device, size, fit, 10.0)
    _ask_cupy(emit, device, SIZES[size], fit)
    _ask_cuml(emit, device, SIZES[size], "Ridge", {"alpha": 100.0})


def logistic(emit: Emit, folder: Path, device: str, size: str) -> None:
    """Time logistic probes of as many layers as there is time for."""
    alphas = np.logspace(0, 5, SIZES[size].alphas)

    def fit(layer: Layer, chunk: int, parts: dict[str, float]) -> LogisticFit:
        rows = ArrayRows(layer.x, chunk)
        with _timed(parts, "statistics", device):
            stats = accumulate(rows, None, layer.folds, n_folds=_FOLDS)
        with _timed(parts, "decompositions", device):
            bases = eigenbases(stats)
        with _timed(parts, "solve", device):
            return logistic_cv(rows, layer.y, layer.folds, stats, alphas, bases=bases)

    _fit_layers(emit, "logistic", device, size, fit, 60.0)
    _ask_cuml(emit, device, SIZES[size], "LogisticRegression", {"C": 1e-2, "tol": 1e-6, "max_iter": 1000})


Fit = Callable[[Layer, int, dict[str, float]], RidgeFit | LogisticFit]


def _fit_layers(emit: Emit, name: str, device: str, size: str, fit: Fit, bound: float) -> None:
    chosen = SIZES[size]
    # Libraries are loaded and kernels chosen at first use.
    fit(Layer.draw(device, SIZES["tiny"], 0), SIZES["tiny"].chunk, {})
    if name == "logistic":
        # Its time depends on how many passes there are: a smaller layer says so before the whole one is begun.
        _fit_one(emit, name, device, replace(chosen, rows=chosen.rows // 8), fit, 0)
    times: list[float] = []
    while len(times) < _LAYERS and (not times or sum(times) < chosen.seconds):
        times.append(_fit_one(emit, name, device, chosen, fit, len(times)))
    projected = _LAYERS * statistics.median(times)
    emit({"what": f"{name}: {_LAYERS} times the median of {len(times)} layers", "who": "sonde", "seconds": projected})
    emit(Owed(f"{name}: seconds for {_LAYERS} layers, by {len(times)}", projected, bound, at_most=True))


def _fit_one(emit: Emit, name: str, device: str, size: Size, fit: Fit, number: int) -> float:
    import torch

    layer = Layer.draw(device, size, number)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    parts: dict[str, float] = {}
    found = fit(layer, size.chunk, parts)
    row: dict[str, Any] = {"what": f"{name}: a layer of {size.rows:,} rows", "who": "sonde"}
    row |= {"seconds": sum(parts.values()), **{f"{part} s": seconds for part, seconds in parts.items()}}
    if device != "cpu":
        row["peak GiB"] = torch.cuda.max_memory_allocated(device) / 2**30
    if isinstance(found, LogisticFit):
        row |= {"passes": found.n_passes, "converged": float(found.fold_converged.mean())}
    emit(row | {"residual": residual(layer, found)})
    return sum(parts.values())


@contextmanager
def _timed(parts: dict[str, float], part: str, device: str) -> Iterator[None]:
    wait(device)
    start = time.perf_counter()
    yield
    wait(device)
    parts[part] = time.perf_counter() - start


def residual(layer: Layer, fit: RidgeFit | LogisticFit) -> float:
    """Return the norm of the objective's gradient of the first target, of that of a probe without weights.

    Both over all rows, in float64, in standardised columns; what weights rounded to float32 leave of it is not zero.
    """
    import torch

    w = torch.as_tensor(fit.weights)[0].double().to(layer.x.device)
    bias, alpha, y = float(fit.bias[0]), float(fit.alpha[0]), torch.as_tensor(layer.y[:, 0], device=layer.x.device)
    answer: Callable[[Any], Any] = torch.sigmoid if isinstance(fit, LogisticFit) else lambda z: z
    chunks = [slice(start, start + 8192) for start in range(0, len(y), 8192)]
    mean = torch.stack([layer.x[c].double().sum(dim=0) for c in chunks]).sum(dim=0) / len(y)
    square, gradient, null = (torch.zeros_like(mean) for _ in range(3))
    for c in chunks:
        x = layer.x[c].double()
        square += ((x - mean) ** 2).sum(dim=0)
        gradient += (x - mean).T @ (answer(x @ w + bias) - y[c])
        null += (x - mean).T @ (y.mean() - y[c])
    scale = (square / len(y)).sqrt()
    gradient += alpha * scale**2 * w
    return float((gradient / scale).norm() / (null / scale).norm())


def _decompose(emit: Emit, device: str, size: Size) -> None:
    """Time, once each, what ridge may do to every training part, or to it and every penalty."""
    import torch

    x = Layer.draw(device, size, 0).x.double()
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    target = x[: size.targets].T.contiguous()
    gram = x.T @ x
    del x
    small = torch.eye(8, dtype=torch.float64, device=device)
    for dtype in (torch.float64, torch.float32):

        def penalised(g: Any, y: Any) -> Any:
            return torch.cholesky_solve(
                y, torch.linalg.cholesky_ex(g + torch.eye(len(g), dtype=g.dtype, device=device)).L
            )

        ways: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
            "eigh": (lambda g, y: torch.linalg.eigh(g), _FOLDS + 1),
            "Cholesky and solve": (penalised, (_FOLDS + 1) * size.alphas),
        }
        for name, (way, times) in ways.items():
            way(small.to(dtype), small.to(dtype))
            parts: dict[str, float] = {}
            given = gram.to(dtype), target.to(dtype)
            with _timed(parts, "once", device):
                way(*given)
            what = f"{name} of {size.hidden}², {str(dtype).removeprefix('torch.')}"
            emit(
                {
                    "what": what,
                    "who": "torch",
                    "seconds": parts["once"],
                    f"{_LAYERS} layers s": _LAYERS * times * parts["once"],
                }
            )


def _ask_cupy(emit: Emit, device: str, size: Size, fit: Fit) -> None:
    """Run our own solver on cupy's arrays, float32 as cupy has no bfloat16."""
    row: dict[str, Any] = {"what": f"ridge: a layer of {size.rows:,} rows", "who": "sonde on cupy"}
    if (why := _missing("cupy", device)) is not None:
        emit(row | {"note": why})
        return
    cupy = importlib.import_module("cupy")
    layer = Layer.draw(device, size, 0)
    parts: dict[str, float] = {}
    try:
        found = fit(Layer(cupy.from_dlpack(layer.x.float()), layer.y, layer.folds), size.chunk, parts)
        emit(row | {"seconds": sum(parts.values()), "residual": residual(layer, found)})
    except Exception as error:  # a peer's failure is a result
        emit(row | {"note": f"failed: {type(error).__name__}: {error}"})


def _ask_cuml(emit: Emit, device: str, size: Size, name: str, options: dict[str, Any]) -> None:
    """Time cuML's estimator on one target at one penalty, over all rows."""
    row: dict[str, Any] = {"what": f"{name}, one fit of {size.rows:,} rows", "who": "cuML"}
    if (why := _missing("cuml", device)) is not None:
        emit(row | {"note": why})
        return
    layer = Layer.draw(device, size, 0)
    x = layer.x.float()
    x = (x - x.mean(dim=0)) / x.std(dim=0)
    parts: dict[str, float] = {}
    try:
        estimator = getattr(importlib.import_module("cuml.linear_model"), name)(**options)
        with _timed(parts, "fit", device):
            estimator.fit(x, layer.y[:, 0].astype(np.float32))
        times = _LAYERS * size.targets * size.alphas * _FOLDS
        emit(row | {"seconds": parts["fit"], f"{_LAYERS} layers s": times * parts["fit"]})
    except Exception as error:  # a peer's failure is a result
        emit(row | {"note": f"failed: {type(error).__name__}: {error}"})


def _missing(package: str, device: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    return "runs on a GPU alone" if device == "cpu" else None
