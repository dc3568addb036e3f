"""Other ways to fit the probes of one layer, and what they find.

Peers are given the layer in memory as float32 (`LayerData`). Each answers with scores of the test rows
``[row, target]``. Standardisation is part of every fit: a ridge peer's pipeline fits it to all training rows, where
sonde fits it to those of each fold's training part.
"""

from __future__ import annotations

import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from .probe_data import Floats, LayerData

Estimator: TypeAlias = Any
FitOne: TypeAlias = Callable[[Floats, Floats, float], tuple[Floats, float]]
"""Fits one target at one penalty to standardised rows: ``(x, y, alpha) -> (weights, bias)``."""

_ADAM_RATE, _ADAM_BATCH, _PATIENCE, _MOST_EPOCHS = 1e-3, 256, 5, 200


def absent(package: str) -> bool:
    """Whether a peer is not installed."""
    return importlib.util.find_spec(package) is None


@contextmanager
def one_thread() -> Iterator[None]:
    """Give BLAS, OpenMP and torch one thread each."""
    import torch
    from threadpoolctl import threadpool_limits

    threads = torch.get_num_threads()
    with threadpool_limits(1):
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


# Ridge


def sklearn_ridge_cv(data: LayerData) -> Floats:
    """scikit-learn's grid search over the given folds: one pass for all targets, so one alpha for all of them."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    return _pipeline(data, RidgeCV(data.alphas, cv=PredefinedSplit(data.folds)), data.y)


def sklearn_ridge_loop(data: LayerData, targets: Sequence[int]) -> Floats:
    """The same for each of some targets, so that each has its own alpha."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    ridge = RidgeCV(data.alphas, cv=PredefinedSplit(data.folds))
    return np.column_stack([_pipeline(data, ridge, data.y[:, t]) for t in targets])


def sklearn_ridge_loo(data: LayerData) -> Floats:
    """scikit-learn's efficient leave-one-out, an alpha per target; it knows no groups."""
    from sklearn.linear_model import RidgeCV

    return _pipeline(data, RidgeCV(data.alphas, alpha_per_target=True), data.y)


def himalaya_ridge_cv(data: LayerData, backend: str) -> Floats:
    """The grid search of himalaya over the given folds by one SVD for each, an alpha per target."""
    from himalaya.backend import set_backend
    from himalaya.ridge import RidgeCV
    from sklearn.model_selection import PredefinedSplit

    set_backend(backend)
    # For every alpha it makes a matrix [held-out row, training row]: of all alphas at once these would not fit.
    ridge = RidgeCV(
        data.alphas.astype(np.float32),
        fit_intercept=True,
        cv=PredefinedSplit(data.folds),
        solver_params={"n_alphas_batch": 1},
    )
    return _pipeline(data, ridge, data.y.astype(np.float32))


def himalaya_backend(data: LayerData) -> str:
    """Find himalaya's faster backend by fits of one alpha."""
    few = replace(data, alphas=data.alphas[len(data.alphas) // 2 :][:1])
    seconds = {}
    for backend in ("numpy", "torch"):
        start = time.perf_counter()
        himalaya_ridge_cv(few, backend)
        seconds[backend] = time.perf_counter() - start
    return min(seconds, key=seconds.__getitem__)


def _pipeline(data: LayerData, estimator: Estimator, y: Floats) -> Floats:
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings(action="ignore"):
        return np.asarray(make_pipeline(StandardScaler(), estimator).fit(data.x, y).predict(data.test_x))


def cvmatrix_statistics(data: LayerData) -> list[Floats]:
    """Standardised Gram matrices by cvmatrix, ``[hidden, hidden]`` of all training parts, with their XᵀY."""
    from cvmatrix.cvmatrix import CVMatrix
    from cvmatrix.partitioner import Partitioner

    matrices = CVMatrix(scale_Y=False, ddof=0, dtype=np.float32, copy=False)
    parts = Partitioner(data.folds)
    matrices.fit(data.x, data.y.astype(np.float32))
    return [
        matrices.training_XTX_XTY(parts.get_validation_indices(fold))[0][0] for fold in np.unique(data.folds).tolist()
    ]


# Logistic


@dataclass(frozen=True, slots=True, eq=False)
class LogisticLoop:
    """The loop that most scripts are: a fit for every target, alpha and fold, and one more at the best alpha.

    Targets are independent fits: some are timed, and the time is multiplied.
    """

    fit_one: FitOne
    targets: Sequence[int]

    def __call__(self, data: LayerData) -> Floats:
        """Return test probabilities ``[row, target]`` of the loop's targets."""
        from scipy.special import expit

        parts = [(data.folds != fold, data.folds == fold) for fold in np.unique(data.folds)]
        inside = [(*standardised(data.x[train], data.x[held]), train, held) for train, held in parts]
        x, test_x = standardised(data.x, data.test_x)
        scores = np.empty((len(test_x), len(self.targets)))
        for column, target in enumerate(self.targets):
            y = data.y[:, target]
            losses = [
                sum(self._held_out(part_x, y[train], held_x, y[held], alpha) for part_x, held_x, train, held in inside)
                for alpha in data.alphas.tolist()
            ]
            weights, bias = self.fit_one(x, y, float(data.alphas[int(np.argmin(losses))]))
            scores[:, column] = expit(test_x @ weights + bias)
        return scores

    def _held_out(self, x: Floats, y: Floats, held_x: Floats, held_y: Floats, alpha: float) -> float:
        weights, bias = self.fit_one(x, y, alpha)
        return objective(held_x, held_y, weights, bias, 0.0)


def standardised(x: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Return both in units of the first."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    return scaler.transform(x), scaler.transform(other)


def sklearn_logistic(solver: str, tol: float, dtype: Any) -> FitOne:
    """scikit-learn's `LogisticRegression`, in float32 or float64."""
    from sklearn.linear_model import LogisticRegression

    def fit_one(x: Floats, y: Floats, alpha: float) -> tuple[Floats, float]:
        model = LogisticRegression(C=1 / alpha, solver=solver, tol=tol, max_iter=10_000)
        with warnings.catch_warnings(action="ignore"):
            model.fit(x.astype(dtype, copy=False), y)
        return model.coef_[0], float(model.intercept_[0])

    return fit_one


def probelab_logistic(x: Floats, y: Floats, alpha: float) -> tuple[Floats, float]:
    """Fit probelab's `Logistic`: torch's L-BFGS, whose tolerance it does not offer."""
    import probelab
    import torch

    probe = probelab.probes.Logistic(C=1 / alpha, seed=0)
    probe.fit(probelab.Activations(torch.from_numpy(x), dims="bh"), torch.from_numpy(y))
    weights = probe.linear.weight.detach().numpy()[0] / probe.scaler_std.numpy()
    return weights, probe.linear.bias.item() - float(weights @ probe.scaler_mean.numpy())


def objective(x: Floats, y: Floats, weights: Floats, bias: float, alpha: float) -> float:
    """Log-loss summed over the rows, and the penalty ``alpha ‖w‖² / 2``, in float64."""
    weights = weights.astype(np.float64)
    linear = x.astype(np.float64) @ weights + bias
    return float(np.logaddexp(0, linear).sum() - y @ linear + alpha / 2 * weights @ weights)


@dataclass(frozen=True, slots=True, eq=False)
class Optimum:
    """Least objectives of some targets at all penalties on the training rows, by Newton's method to its end.

    Attributes
    ----------
    x, y
        float32 standardised rows, and targets ``[row, target]``.
    problems
        (column, alpha, least objective), the weakest penalty first: the hardest.
    """

    x: Floats
    y: Floats
    problems: Sequence[tuple[int, float, float]]

    @classmethod
    def of(cls, data: LayerData, targets: Sequence[int]) -> Optimum:
        """Solve."""
        x, _ = standardised(data.x, data.test_x)
        y = data.y[:, targets]
        newton = sklearn_logistic("newton-cholesky", 1e-10, np.float64)
        found = [
            (t, alpha, objective(x, y[:, t], *newton(x, y[:, t], alpha), alpha))
            for alpha in sorted(data.alphas.tolist())
            for t in range(len(targets))
        ]
        return cls(x, y, found)

    def excess(self, probe: Callable[[int, float], tuple[Floats, float]]) -> Iterable[float]:
        """Yield the relative excess of the objective of ``probe(column, alpha)``, problem by problem."""
        for t, alpha, least in self.problems:
            yield objective(self.x, self.y[:, t], *probe(t, alpha), alpha) / least - 1

    def excess_of(self, fit_one: FitOne) -> Iterable[float]:
        """As `excess`, of a fit to these rows."""
        return self.excess(lambda t, alpha: fit_one(self.x, self.y[:, t], alpha))


def loosest(solver: str, optimum: Optimum, enough: float) -> tuple[str, FitOne]:
    """Find the greatest power of ten for `tol` with which scikit-learn's solver comes to ``enough`` of every optimum.

    Of float32 and float64 that one whose fits took less time. Returns its name as well.
    """
    found: list[tuple[float, str, FitOne]] = []
    for dtype in (np.float32, np.float64):
        for power in range(1, 11):
            start = time.perf_counter()
            fit_one = sklearn_logistic(solver, 10.0**-power, dtype)
            if all(excess <= enough for excess in optimum.excess_of(fit_one)):
                name = f"scikit-learn {solver}, tol=1e-{power}, {np.dtype(dtype)}"
                found.append((time.perf_counter() - start, name, fit_one))
                break
    assert found, f"{solver} comes to {enough:g} of no optimum"
    _, name, fit_one = min(found, key=lambda trial: trial[0])
    return name, fit_one


def adam(data: LayerData) -> Floats:
    """The torch loop of many papers: Adam without a penalty until the first fold's loss has stopped falling.

    All targets at once, batches of 256 rows, a rate of 0.001; the epoch of the least loss is kept once five more
    brought none.
    """
    import torch

    held = data.folds == 0
    train_x, both = standardised(data.x[~held], np.concatenate([data.x[held], data.test_x]))
    x, y = torch.from_numpy(train_x), torch.from_numpy(data.y[~held]).float()
    held_x, test_x = torch.from_numpy(both).split([int(held.sum()), len(data.test_x)])
    held_y = torch.from_numpy(data.y[held]).float()
    torch.manual_seed(0)
    probe = torch.nn.Linear(x.shape[1], y.shape[1])
    optimizer = torch.optim.Adam(probe.parameters(), lr=_ADAM_RATE)
    least, since = math.inf, 0
    scores = torch.empty(0)
    for _ in range(_MOST_EPOCHS):
        for rows in torch.randperm(len(x)).split(_ADAM_BATCH):
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(probe(x[rows]), y[rows]).backward()
            optimizer.step()
        with torch.no_grad():
            loss = float(torch.nn.functional.binary_cross_entropy_with_logits(probe(held_x), held_y))
            if loss < least:
                least, since, scores = loss, 0, torch.sigmoid(probe(test_x))
            elif (since := since + 1) == _PATIENCE:
                break
    return np.asarray(scores.numpy())
