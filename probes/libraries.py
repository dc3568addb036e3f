"""Ridge and logistic regression of other libraries, to compare ours with.

Every training part is scaled by the library's own ``StandardScaler`` and fitted by its own ``Ridge`` or
``LogisticRegression``, once for each α; the choice of α by the held-out folds is that of `sonde.probes.ridge_cv` and
`sonde.probes.logistic_cv`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .backend import Array, Backend, to_numpy
from .logistic import LogisticFit
from .objective import Kind, label_array
from .ridge import RidgeFit, alpha_array, best_alpha, to_dtype
from .rows import fold_array, target_array

_TOL, _MAX_ITER = 1e-10, 10_000
"""Of logistic fits: at the libraries' own 1e-4, they are far from their optimum."""

_DLPACK_CUDA = 2
"""``kDLCUDA`` of the DLPack C API."""


@dataclass(frozen=True, slots=True)
class Library:
    """The estimators of one library.

    Attributes
    ----------
    asarray : function of an array
        The same array, of numpy, torch or cupy, as the library takes it.
    scaler : function of nothing
        Its ``StandardScaler``.
    ridge : function of α
        Its ``Ridge``; α of shape [T].
    logistic : function of 1/α
        Its ``LogisticRegression``.
    """

    asarray: Callable[[Array], Array]
    scaler: Callable[[], Any]
    ridge: Callable[[NDArray[np.float64]], Any]
    logistic: Callable[[float], Any]


def _sklearn() -> Library:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    return Library(to_numpy, StandardScaler, Ridge, lambda c: LogisticRegression(C=c, tol=_TOL, max_iter=_MAX_ITER))


def _cuml() -> Library:
    try:
        cupy = import_module("cupy")
        cupy.empty(1)  # where there is no GPU, imports succeed and this fails
        models, preprocessing = import_module("cuml.linear_model"), import_module("cuml.preprocessing")
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the library cuml cannot be used ({reason}): it needs an NVIDIA GPU and cuML (the extra cuda); "
            "or use sklearn"
        ) from error

    def asarray(x: Array) -> Array:
        on_gpu = x.__dlpack_device__()[0] == _DLPACK_CUDA
        return cupy.from_dlpack(x) if on_gpu else cupy.asarray(to_numpy(x))

    return Library(
        asarray,
        preprocessing.StandardScaler,
        models.Ridge,
        lambda c: models.LogisticRegression(C=c, tol=_TOL, max_iter=_MAX_ITER),
    )


LIBRARIES: Mapping[str, Callable[[], Library]] = {"sklearn": _sklearn, "cuml": _cuml}
"""By name; imported when called."""


def load_library(name: str) -> Library:
    """Import a library; raise InputError if there is none of that name, or it cannot be used here."""
    if name not in LIBRARIES:
        raise InputError(f"unknown library {name!r}: there are {', '.join(LIBRARIES)}")
    return LIBRARIES[name]()


def ridge_cv(
    x: Array, y: Any, folds: Any, alphas: Any, *, per_target: bool = True, library: str = "sklearn"
) -> RidgeFit:
    """Choose α by the squared error on held-out folds and fit, as `sonde.probes.ridge_cv` on standardised columns.

    Parameters
    ----------
    x : array of shape [N, D]
        Of numpy, torch or cupy; computed with in float64 if it is that, else in float32, in which scikit-learn's
        logistic weights were measured wrong by 7e-3. What is on a GPU already is not copied for cuML.
    y : array of shape [N, T] or [N]
    folds : int array of shape [N]
        Fold of every row in [0, F), at least two; -1 leaves a row out.
    alphas : array of shape [A]
        Positive.
    per_target : bool
        Whether each target has its own α; else the one with the greatest R², averaged over targets, serves all.
        Ties go to the greater α.
    library : {"sklearn", "cuml"}

    Returns
    -------
    RidgeFit
        In the namespace of `x` and on its device.

    Raises
    ------
    InputError
        If data, folds or an α cannot be used, or the library cannot.
    """
    source, fold = load_library(library), fold_array(folds)
    target, checked = target_array(y, fold >= 0), alpha_array(alphas)

    def solve(z: Array, y: NDArray[Any], alpha: NDArray[np.float64]) -> _Solution:
        model = source.ridge(alpha).fit(z, source.asarray(y))
        return _Solution(*_linear(model, y.shape[1]), np.zeros(y.shape[1], dtype=np.int64))

    def squared_error(y: NDArray[Any], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(((y - scores) ** 2).sum(axis=0))

    def choose(cv_error: NDArray[np.float64]) -> NDArray[np.float64]:
        if per_target:
            return best_alpha(checked, cv_error)
        variance = target[fold >= 0].var(axis=0)
        unexplained = (cv_error / np.where(variance > 0, variance, 1)).mean(axis=1, keepdims=True)
        return np.repeat(best_alpha(checked, unexplained), target.shape[1])

    found = _cross_validate(source, x, target, fold, checked, target.shape[1], solve, squared_error, choose)
    return RidgeFit(
        alphas=found.alphas,
        alpha=found.alpha,
        cv_error=found.cv_loss,
        weights=found.weights,
        bias=found.bias,
        fold_weights=found.fold_weights,
        fold_bias=found.fold_bias,
    )


def logistic_cv(
    x: Array, y: Any, folds: Any, alphas: Any, *, kind: Kind = "multilabel", library: str = "sklearn"
) -> LogisticFit:
    """Choose α by the log-loss on held-out folds and fit, as `sonde.probes.logistic_cv` on standardised columns.

    Parameters
    ----------
    x, folds, alphas, library
        As in `ridge_cv`.
    y : array of shape [N, T] or [N]
        ``multilabel``: 0/1 or bool per target. ``multinomial``: class numbers 0 … T-1 of shape [N], or one-hot.
    kind : {"multilabel", "multinomial"}
        A sigmoid per target, each with its own α, or one softmax over all.

    Returns
    -------
    LogisticFit
        In the namespace of `x` and on its device. A fit has converged if it took fewer iterations than the 10,000 that
        it may; ``n_passes`` are the iterations of all fits.

    Raises
    ------
    InputError
        If data, folds or an α cannot be used, a training part lacks a class, or the library cannot be used.
    """
    source, fold = load_library(library), fold_array(folds)
    labels, checked = label_array(y, fold >= 0, kind), alpha_array(alphas)
    _ensure_classes(labels, fold)
    n_targets = labels.shape[1]

    def solve_each(z: Array, y: NDArray[Any], alpha: NDArray[np.float64]) -> _Solution:
        models = [source.logistic(1 / a).fit(z, source.asarray(y[:, t])) for t, a in enumerate(alpha.tolist())]
        weights, bias = (np.concatenate(part) for part in zip(*[_linear(m, 1) for m in models], strict=True))
        return _Solution(weights, bias, np.asarray([_n_iter(m) for m in models]))

    def solve_together(z: Array, y: NDArray[Any], alpha: NDArray[np.float64]) -> _Solution:
        # Of two classes the libraries fit the difference w; a softmax has w/2 and -w/2, of half the penalty.
        two = n_targets == 2
        model = source.logistic((2 if two else 1) / float(alpha[0])).fit(z, source.asarray(y.argmax(axis=1)))
        weights, bias = _linear(model, 1 if two else n_targets)
        if two:
            weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
        return _Solution(weights, bias, np.asarray([_n_iter(model)]))

    def log_loss(y: NDArray[Any], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        if kind == "multilabel":
            return np.asarray((np.logaddexp(0, scores) - y * scores).sum(axis=0))
        return np.asarray([(np.logaddexp.reduce(scores, axis=1) - (y * scores).sum(axis=1)).sum()])

    n_choices, solve = (n_targets, solve_each) if kind == "multilabel" else (1, solve_together)
    return _cross_validate(
        source, x, labels, fold, checked, n_choices, solve, log_loss, lambda loss: best_alpha(checked, loss)
    )


@dataclass(frozen=True, slots=True)
class _Solution:
    """Probes of standardised columns, ``weights`` [T, D] and ``bias`` [T], and ``n_iter`` [P]; numpy."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    n_iter: NDArray[np.int64]


def _cross_validate(
    library: Library,
    x: Array,
    y: NDArray[Any],
    folds: NDArray[np.int64],
    alphas: NDArray[np.float64],
    n_choices: int,
    solve: Callable[[Array, NDArray[Any], NDArray[np.float64]], _Solution],
    loss: Callable[[NDArray[Any], NDArray[np.float64]], NDArray[np.float64]],
    choose: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> LogisticFit:
    """Fit without each fold at every α, choose by the losses of the folds, and fit on all.

    ``solve`` takes standardised rows, their targets [n, T] and α [P]; ``loss`` takes targets and scores [n, T] and
    gives sums [P]; ``choose`` takes mean losses [A, P] and gives α [P]. Ridge regression's loss is the squared error.
    """
    backend = Backend.of(x)
    wide = backend.widen(x)
    _ensure_rows(wide, folds)
    data = library.asarray(wide)
    home, dtype = Backend.of(data), to_numpy(data[:0]).dtype

    def take(rows: NDArray[np.bool_]) -> Array:
        return home.xp.take(data, home.indices(np.flatnonzero(rows)), axis=0)

    def fit(rows: NDArray[np.bool_], penalties: NDArray[np.float64]) -> tuple[Any, list[_Solution]]:
        scaler = library.scaler()
        z = scaler.fit_transform(take(rows))
        return scaler, [solve(z, y[rows], alpha) for alpha in penalties]

    def raw(scaler: Any, path: list[_Solution], at: list[int]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Probes of x itself, each target's from its own place in the path."""
        mean, scale = (to_numpy(a).astype(np.float64) for a in (scaler.mean_, scaler.scale_))
        weights = np.stack([path[i].weights[t] for t, i in enumerate(at)]) / scale
        bias = np.stack([path[i].bias[t] for t, i in enumerate(at)])
        return to_dtype(weights, bias - weights @ mean, mean, dtype)

    used, n_folds, n_targets = folds >= 0, int(folds.max()) + 1, y.shape[1]
    cv_loss = np.zeros((alphas.size, n_choices))
    parts = []
    for fold in range(n_folds):
        held_out = folds == fold
        scaler, path = fit(used & ~held_out, np.repeat(alphas[:, None], n_choices, axis=1))
        z = scaler.transform(take(held_out))
        for i, solution in enumerate(path):
            linear = home.xp.matmul(z, home.asarray(solution.weights.T, z.dtype))
            cv_loss[i] += loss(y[held_out], to_numpy(linear) + solution.bias)
        parts.append((scaler, path))
    cv_loss /= used.sum()
    alpha = choose(cv_loss)
    at = [int(np.flatnonzero(alphas == a)[0]) for a in np.broadcast_to(alpha, n_targets)]
    fold_weights, fold_bias = zip(*[raw(scaler, path, at) for scaler, path in parts], strict=True)
    scaler, final = fit(used, alpha[None])
    weights, bias = raw(scaler, final, [0] * n_targets)
    fold_n_iter = np.stack([[solution.n_iter for solution in path] for _, path in parts], axis=1)
    return LogisticFit(
        alphas=alphas,
        alpha=alpha,
        cv_loss=cv_loss,
        weights=backend.asarray(weights),
        bias=backend.asarray(bias),
        fold_weights=backend.asarray(np.stack(fold_weights)),
        fold_bias=backend.asarray(np.stack(fold_bias)),
        converged=final[0].n_iter < _MAX_ITER,
        fold_converged=fold_n_iter < _MAX_ITER,
        n_passes=int(final[0].n_iter.sum() + fold_n_iter.sum()),
    )


def _linear(model: Any, n_columns: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights [T, D] and bias [T] of a fitted estimator."""
    weights, bias = (to_numpy(a).astype(np.float64) for a in (model.coef_, model.intercept_))
    return weights.reshape(n_columns, -1), bias.reshape(n_columns)


def _n_iter(model: Any) -> int:
    return int(np.max(to_numpy(model.n_iter_)))


def _ensure_rows(x: Array, folds: NDArray[np.int64]) -> None:
    """Raise InputError unless rows are as many as folds, two or more folds have some, and what they have is finite."""
    if x.ndim != 2 or x.shape[0] != folds.size:
        raise InputError(f"activations of shape {tuple(x.shape)} for {folds.size} folds: give [samples, hidden]")
    sizes = np.bincount(folds[folds >= 0])
    if sizes.size < 2 or not sizes.all():
        raise InputError(f"cross-validation over folds of {sizes.tolist()} rows: give at least two, without gaps")
    xp = Backend.of(x).xp
    bad = np.flatnonzero((folds >= 0) & ~to_numpy(xp.all(xp.isfinite(x), axis=1)))
    if bad.size:
        raise InputError(
            f"the activations of row {bad[0]} are not finite: extract it again in a wider dtype, or give it the fold -1"
        )


def _ensure_classes(labels: NDArray[Any], folds: NDArray[np.int64]) -> None:
    """Raise InputError if a training part lacks a class."""
    for fold in range(int(folds.max()) + 1):
        share = labels[(folds >= 0) & (folds != fold)].mean(axis=0)
        lacking = np.flatnonzero((share <= 0) | (share >= 1))
        if lacking.size:
            raise InputError(
                f"target {lacking[0]} is the same in all of the rows outside fold {fold}: "
                "drop it, or use fewer or stratified folds"
            )
