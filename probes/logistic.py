r"""Logistic regression for every λ, target and fold, sharing each pass over the activations.

For each target (``multilabel``) or all classes together (``multinomial``) the objective is

.. math:: \min_{w,b} \sum_i s_i \, \ell(y_i, x_i^\top w + b) + \tfrac12 \alpha \lVert D w \rVert^2

with weights :math:`s_i` (of samples, times those of their classes), unpenalised b, and D the identity
(``standardize=False``: scikit-learn's ``LogisticRegression(C=1/alpha)``) or the diagonal of standard deviations of the
training rows (``standardize=True``: the same after a ``StandardScaler``, folded back to raw units).

All (target, fold) problems are solved at once by L-BFGS (Nocedal & Wright, "Numerical Optimization", 2nd ed.,
chapter 7), in the eigenbasis of their training part's Gram matrix Λ, where :math:`\bar c \Lambda + \alpha` is close to
the Hessian:
:math:`\bar c`, the mean of p(1-p), replaces the ¼ of the bound of Böhning (1992), "Multinomial logistic regression
algorithm", which is far above the curvature of rare labels and of confident probes. Each problem walks down from the
strongest penalty, starting each α at the solution of the last, at its own pace.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import array_api_compat
import numpy as np

from sonde.errors import InputError

from .backend import Array
from .class_weights import ClassWeight
from .eigenbasis import Basis, Eigenbasis, eigenbases, eigenbasis
from .moments import FoldStatistics
from .objective import Kind, LogisticObjective, label_array
from .pathwise import PathSolver
from .ridge import alpha_array, best_alpha, check_folds, check_rows
from .rows import Rows, fold_array, weight_array
from .statistics import accumulate

_ROWS_PER_COLUMN = 4
"""Rows per column from which training parts share the eigenvectors of the whole: with five folds, their eigenvalues are
then within 0.38 and 1.25 of the whole's."""


class UnconvergedWarning(UserWarning):
    """Some probes did not reach the tolerance; their ``converged`` flags say which."""


@dataclass(frozen=True, slots=True)
class LogisticPath:
    """Logistic solutions of one training part, one for each α.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
    weights : array of shape [A, T, D], the statistics' dtype, in raw units of x
    bias : array of shape [A, T], the same dtype
    converged : bool array of shape [A, T], numpy
    n_passes : int
        Passes over the rows, statistics not counted.
    """

    alphas: np.ndarray[Any, Any]
    weights: Array
    bias: Array
    converged: np.ndarray[Any, Any]
    n_passes: int


@dataclass(frozen=True, slots=True)
class LogisticFit:
    """Logistic regression with α chosen by cross-validation over the folds.

    P is the number of choices: T for ``multilabel``, 1 for ``multinomial``.

    Attributes
    ----------
    alphas : float64 array of shape [A], numpy
        The candidates, as given.
    alpha : float64 array of shape [P], numpy
        The choices.
    cv_loss : float64 array of shape [A, P], numpy
        Mean log-loss in nats on held-out folds, rows weighted as in training, by sample and class.
    weights, bias : arrays of shape [T, D] and [T]
        Fit on all folds at the chosen α, in raw units of x.
    fold_weights, fold_bias : arrays of shape [F, T, D] and [F, T]
        Fits without fold f at the chosen α: for scores of fold f that its rows had no part in, but for the choice of α.
    converged : bool array of shape [P], numpy
        Of the fits at the chosen α, on all folds and without each.
    fold_converged : bool array of shape [A, F, P], numpy
        Of the fits that the choice of α rests on.
    n_passes : int
        Passes over the rows, statistics not counted.
    """

    alphas: np.ndarray[Any, Any]
    alpha: np.ndarray[Any, Any]
    cv_loss: np.ndarray[Any, Any]
    weights: Array
    bias: Array
    fold_weights: Array
    fold_bias: Array
    converged: np.ndarray[Any, Any]
    fold_converged: np.ndarray[Any, Any]
    n_passes: int


def logistic_bases(stats: FoldStatistics, *, standardize: bool = True) -> tuple[Eigenbasis, ...]:
    """Make what `logistic_cv` takes for `bases`: like `eigenbases`, but of one decomposition where rows abound.

    Where they do the training parts differ little from the whole: for a share p of N rows and c = D / N the eigenvalues
    of a part's covariance, against the whole's, are (√(p(1-c)) ± √(c(1-p)))² / p (Wachter 1980, "The limiting empirical
    measure of multiple discriminant ratios"). One decomposition then serves all, at a few passes more.
    """
    if stats.n.sum() < _ROWS_PER_COLUMN * stats.shift_x.shape[0]:
        return eigenbases(stats, standardize=standardize)
    whole = eigenbasis(stats.total(), standardize=standardize)
    bases = []
    for part in map(stats.without, range(stats.n_folds)):
        scale = part.scale if standardize else whole.scale
        values = whole.values * (part.weight / whole.weight)
        bases.append(Eigenbasis(whole.vectors, scale, part.live, part.mean_x, part.weight, values))
    return (*bases, whole)


def logistic_path(
    rows: Rows,
    y: Any,
    alphas: Any,
    *,
    kind: Kind = "multilabel",
    folds: Any = None,
    stats: FoldStatistics | None = None,
    sample_weight: Any = None,
    class_weight: ClassWeight = None,
    standardize: bool = True,
    tol: float = 1e-6,
    max_passes: int = 200,
    device: str | None = None,
) -> LogisticPath:
    """Fit logistic regression for every α on all rows in use.

    Parameters
    ----------
    rows : Rows
        Activations of shape [N, D], streamed once per pass.
    y : array of shape [N, T] or [N]
        ``multilabel``: 0/1 or bool per target. ``multinomial``: class numbers 0 … T-1 of shape [N], or one-hot.
    alphas : array of shape [A]
        Positive; 1/C of scikit-learn.
    kind : {"multilabel", "multinomial"}
        A sigmoid per target, or one softmax over all.
    folds : int array of shape [N], optional
        -1 leaves a row out; other values do not matter here. Left out, all rows are used.
    stats : FoldStatistics, optional
        Of the same rows, folds and weights, if they are known; they also say where to compute. Their targets are
        not used.
    sample_weight : array of shape [N], optional
    class_weight : "balanced", mapping of class to weight, or sequence of T of these, optional
        scikit-learn's: a factor on the sample weights of the rows of a class, 1 for classes that a mapping leaves out.
        ``"balanced"`` is Σs / (K Σs of the class), over the rows of the training part. The classes are 0 and 1 for
        ``multilabel``, one entry for all targets or one for each; 0 … T-1 for ``multinomial``. Standard deviations know
        nothing of classes.
    standardize : bool
        Whether the penalty applies to standardised columns.
    tol : float
        Gradient norm at which a fit has converged, relative to that of the intercept alone, both in the metric of the
        preconditioner. Never taken below a hundred rounding errors of the products: 1.2e-5 for float32 and narrower
        rows, whose rounding hides smaller gradients. A fit has also converged where rounding is all that is left: at a
        gradient below ten rounding errors times the root of the rows' number, or where no step lowers the objective
        any more and the gradient promises no decrease above ten of its rounding errors.
    max_passes : int
        Most passes that the fit of one problem at one α may take.
    device : str, optional
        Torch device to compute on, if `stats` is not given; else the chunks' own namespace and device.

    Returns
    -------
    LogisticPath

    Raises
    ------
    InputError
        If data are not usable, or a target has only one class.

    Warns
    -----
    UnconvergedWarning
        If a fit did not reach `tol`.
    """
    fold = fold_array(np.zeros(np.shape(y)[0], dtype=np.int64) if folds is None else folds)
    if stats is None:
        one_fold = np.where(fold >= 0, 0, -1)
        stats = accumulate(rows, None, one_fold, sample_weight=sample_weight, device=device)
        fold = one_fold
    labels = label_array(y, fold >= 0, kind)
    checked = alpha_array(alphas)
    bases = {stats.n_folds: eigenbasis(stats.total(), standardize=standardize)}
    live = bases[stats.n_folds].live
    objective = _objective(rows, labels, fold, stats, live, weight_array(sample_weight, fold >= 0), kind, class_weight)
    solver = PathSolver(objective, bases, stats.shift_x, stats.dtype, kind, tol, max_passes)
    found = solver.walk(checked, [stats.n_folds])
    _warn(found.converged, tol, max_passes)
    return LogisticPath(
        alphas=checked,
        weights=found.weights[:, 0, ...],
        bias=found.bias[:, 0, ...],
        converged=np.broadcast_to(found.converged[:, 0, :], (checked.size, labels.shape[1])).copy(),
        n_passes=objective.n_passes,
    )


def logistic_cv(
    rows: Rows,
    y: Any,
    folds: Any,
    stats: FoldStatistics,
    alphas: Any,
    *,
    kind: Kind = "multilabel",
    per_target: bool = True,
    sample_weight: Any = None,
    class_weight: ClassWeight = None,
    standardize: bool = True,
    bases: Sequence[Basis] | None = None,
    cv_tol: float | None = None,
    tol: float = 1e-6,
    max_passes: int = 200,
) -> LogisticFit:
    """Choose α by the log-loss on held-out folds and fit.

    Rows of a fold have no part in the passes of its fits; one pass at the end sums the loss on them.

    Parameters
    ----------
    rows, y, kind, sample_weight, class_weight, standardize, tol, max_passes
        As in `logistic_path`; `standardize` is ignored if `bases` is given.
    folds : int array of shape [N]
        Fold of every row in [0, F), at least two; -1 leaves a row out.
    stats : FoldStatistics
        Of the same rows, folds and weights; they also say where to compute. Their targets are not used.
    alphas : array of shape [A]
        Positive; 1/C of scikit-learn.
    per_target : bool
        Whether each target has its own α; else the one with the least mean log-loss over targets serves all.
        Ties go to the greater α.
    bases : sequence of F + 1 Eigenbasis, optional
        What `sonde.probes.eigenbases` gives, if it is known. They change the way to the answer alone.
    cv_tol : float, optional
        `tol` of the fits that serve the choice of α alone; those at the chosen α go on to `tol`. At 2e-4 objectives
        are within about 1e-6 of their minimum. Left out, `tol`.

    Returns
    -------
    LogisticFit

    Raises
    ------
    InputError
        If data are not usable, a target has only one class in a training part, or `bases` are no eigenbases.

    Warns
    -----
    UnconvergedWarning
        If a fit did not reach `tol`.
    """
    check_folds(stats)
    checked, n_folds = alpha_array(alphas), stats.n_folds
    fold = fold_array(folds, n_folds)
    labels = label_array(y, fold >= 0, kind)
    by_split: dict[int, Eigenbasis] = {}
    for split, basis in enumerate(bases or logistic_bases(stats, standardize=standardize)):
        if not isinstance(basis, Eigenbasis):
            raise InputError("logistic probes need eigenvectors: give the bases that `eigenbases` makes, or none")
        by_split[split] = basis
    live = by_split[n_folds].live
    objective = _objective(rows, labels, fold, stats, live, weight_array(sample_weight, fold >= 0), kind, class_weight)
    solver = PathSolver(objective, by_split, stats.shift_x, stats.dtype, kind, tol, max_passes)
    found = solver.walk(checked, list(range(n_folds)), cv_tol)
    weight = objective.held_out_weight.reshape(n_folds, found.held_out.shape[2], -1).sum(axis=(0, 2))
    cv_loss = found.held_out.sum(axis=1) / weight
    criterion = cv_loss if per_target else cv_loss.mean(axis=1, keepdims=True)
    alpha = np.broadcast_to(best_alpha(checked, criterion), cv_loss.shape[1:]).copy()
    xp = array_api_compat.array_namespace(found.weights)
    chosen = np.broadcast_to(alpha, labels.shape[1:])
    choice = [int(np.flatnonzero(checked == a)[0]) for a in chosen]
    fold_weights = xp.stack([found.weights[a, :, t, :] for t, a in enumerate(choice)], axis=1)
    fold_bias = xp.stack([found.bias[a, :, t] for t, a in enumerate(choice)], axis=1)
    # The folds' fits share most of their rows with the one of all: their mean is a start close to it.
    starts = [xp.concat([x, xp.mean(x, axis=0, keepdims=True)], axis=0) for x in (fold_weights, fold_bias)]
    final = solver.solve(alpha, list(range(n_folds + 1)), *starts)
    cv_loss = np.where(checked[:, None] == alpha, final.held_out[0, :n_folds, :].sum(axis=0) / weight, cv_loss)
    _warn(np.concatenate([found.converged.ravel(), final.converged.ravel()]), tol, max_passes)
    return LogisticFit(
        alphas=checked,
        alpha=alpha,
        cv_loss=cv_loss,
        weights=final.weights[0, n_folds, ...],
        bias=final.bias[0, n_folds, ...],
        fold_weights=final.weights[0, :n_folds, ...],
        fold_bias=final.bias[0, :n_folds, ...],
        converged=final.converged[0].all(axis=0),
        fold_converged=found.converged,
        n_passes=objective.n_passes,
    )


def _objective(
    rows: Rows,
    labels: np.ndarray[Any, Any],
    fold: np.ndarray[Any, Any],
    stats: FoldStatistics,
    live: Array,
    weight: np.ndarray[Any, Any] | None,
    kind: Kind,
    class_weight: ClassWeight,
) -> LogisticObjective:
    check_rows(stats, fold, weight, rows.hidden_size)
    return LogisticObjective(
        rows, labels, fold, stats.n_folds, weight, kind, stats.shift_x, live, stats.dtype, class_weight
    )


def _warn(converged: np.ndarray[Any, Any], tol: float, max_passes: int) -> None:
    failed = int((~converged).sum())
    if failed:
        warnings.warn(
            f"{failed} of {converged.size} logistic fits did not reach tol={tol:g} within {max_passes} passes: "
            "see their converged flags, and raise max_passes or tol, or leave out the weakest alphas",
            UnconvergedWarning,
            stacklevel=3,
        )
