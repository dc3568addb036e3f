"""The probes as scikit-learn estimators."""

# mypy: allow-subclassing-any
# scikit-learn has no types.
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from sonde.errors import InputError

from .backend import Backend, to_numpy
from .discriminant import nearest_mean
from .estimator_folds import checked_weight, penalties_and_folds, used_rows
from .fit import ALPHAS, ensure_device
from .logistic import logistic_cv, logistic_path
from .objective import Kind, label_array
from .ridge import ridge_cv, ridge_path
from .rows import ArrayRows
from .statistics import accumulate

_DTYPES = [np.float64, np.float32]


class _LinearProbe(BaseEstimator):
    """What all probes share: rows on the device they are computed on, and a linear map."""

    coef_: NDArray[Any]
    intercept_: NDArray[Any]
    device: str | None

    def _rows(self, x: NDArray[Any]) -> ArrayRows:
        ensure_device(self.device)
        return ArrayRows(x if self.device is None else Backend.of(x, self.device).asarray(x))

    def _linear(self, x: Any) -> NDArray[Any]:
        check_is_fitted(self)
        return np.asarray(validate_data(self, x, reset=False, dtype=_DTYPES) @ self.coef_.T + self.intercept_)


class RidgeProbe(MultiOutputMixin, RegressorMixin, _LinearProbe):
    r"""Ridge regression whose penalty is chosen by cross-validation, from sums of one pass over the rows.

    .. math:: \min_{w,b} \sum_i s_i (y_i - x_i^\top w - b)^2 + \alpha \lVert D w \rVert^2

    with D the standard deviations of the training rows, or the identity: `sonde.probes.ridge_cv`.

    Parameters
    ----------
    alphas : array of shape [A], optional
        Candidates; left out, 17 from 0.1 to 10⁷. A single one is taken as it is.
    cv : int, splitter or iterable of (train, test) indices
        At most so many folds, fewer where there are fewer rows or groups; or folds that test every row once. Where
        two folds cannot be made, the middle candidate is taken, with a warning.
    per_target : bool
        Whether each target has its own α; else one serves all.
    standardize : bool
        Whether the penalty applies to standardised columns.
    device : str, optional
        Torch device to compute on, such as ``cuda``; left out, numpy.

    Attributes
    ----------
    coef_ : array of shape [D] or [T, D]
        In raw units of X, float32 if X is, else float64.
    intercept_ : float or array of shape [T]
    alpha_ : float or array of shape [T]
        An array if targets are a matrix and have penalties of their own.
    n_folds_ : int
        Folds that α was chosen with; 1 if it was not.
    n_features_in_ : int
    feature_names_in_ : array of shape [D]
        If X has column names.
    """

    alpha_: float | NDArray[np.float64]
    n_folds_: int

    def __init__(
        self,
        alphas: Any = None,
        cv: Any = 5,
        per_target: bool = True,
        standardize: bool = True,
        device: str | None = None,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.per_target = per_target
        self.standardize = standardize
        self.device = device

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Choose α and fit.

        Parameters
        ----------
        X : array-like of shape [N, D]
        y : array-like of shape [N] or [N, T]
        groups : array-like of shape [N], optional
            Rows of a group are never in different folds.
        sample_weight : array-like of shape [N], optional

        Raises
        ------
        ValueError
            If data or options cannot be used.
        """
        X, y = validate_data(self, X, y, dtype=_DTYPES, multi_output=True, y_numeric=True, ensure_min_samples=2)
        weight = checked_weight(sample_weight, len(X))
        alphas, folds = penalties_and_folds(
            ALPHAS["ridge"] if self.alphas is None else self.alphas, self.cv, y, groups, weight, stratify=False
        )
        stats = accumulate(self._rows(X), y, folds, sample_weight=weight)
        self.n_folds_ = stats.n_folds
        if stats.n_folds > 1:
            fit = ridge_cv(stats, alphas, per_target=self.per_target, standardize=self.standardize)
            weights, bias, alpha = fit.weights, fit.bias, fit.alpha
        else:
            path = ridge_path(stats.total(), alphas, standardize=self.standardize)
            weights, bias, alpha = path.weights[0, ...], path.bias[0, ...], np.repeat(alphas, path.bias.shape[1])
        single = y.ndim == 1
        self.coef_ = to_numpy(weights)[0] if single else to_numpy(weights)
        self.intercept_ = to_numpy(bias)[0] if single else to_numpy(bias)
        self.alpha_ = alpha if self.per_target and not single else float(alpha[0])
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the values of the rows of X, [N] or [N, T] as y was."""
        return self._linear(X)


class _LinearClassifier(ClassifierMixin, _LinearProbe):
    """A class by the sign or the greatest of linear scores."""

    classes_: NDArray[Any]
    multilabel_: bool

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Return scores [N] of the second of two classes, or [N, T] of the classes or labels."""
        scores = self._linear(X)
        return scores if self.multilabel_ or self.classes_.size > 2 else scores[:, 0]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the class of each row of X, or 0 and 1 of shape [N, T] for labels."""
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(int)
        return np.asarray(self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)])

    def _validated(
        self, x: Any, y: Any, sample_weight: Any
    ) -> tuple[NDArray[Any], NDArray[Any], Kind, NDArray[np.float64] | None]:
        """Return rows, 0/1 labels [N, T] or class numbers [N], what they are, and weights; set the classes."""
        x, y = validate_data(self, x, y, dtype=_DTYPES, multi_output=True)
        weight = checked_weight(sample_weight, len(x))
        check_classification_targets(y)
        self.multilabel_ = y.ndim == 2 and y.shape[1] > 1
        if self.multilabel_:
            self.classes_ = np.arange(y.shape[1])
            return x, y, "multilabel", weight
        y = column_or_1d(y, warn=True)
        self.classes_ = np.unique(y[used_rows(len(y), weight)])
        if self.classes_.size < 2:
            raise InputError(f"y has one class only, {self.classes_.tolist()}: a probe needs two or more")
        kind: Kind = "multilabel" if self.classes_.size == 2 else "multinomial"
        return x, np.searchsorted(self.classes_, y), kind, weight

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


class LogisticProbe(_LinearClassifier):
    r"""Logistic regression whose penalty is chosen by cross-validation.

    .. math:: \min_{w,b} \sum_i s_i \, \ell(y_i, x_i^\top w + b) + \tfrac12 \alpha \lVert D w \rVert^2

    with D the standard deviations of the training rows, or the identity; a sigmoid for two classes or for each of
    several labels, a softmax for more classes: `sonde.probes.logistic_cv`.

    Parameters
    ----------
    alphas : array of shape [A], optional
        Candidates, 1/C of scikit-learn; left out, 11 from 1 to 10⁵. A single one is taken as it is.
    cv : int, splitter or iterable of (train, test) indices
        At most so many folds, stratified by class, fewer where a class has fewer rows or groups; or folds that test
        every row once. Where two folds cannot be made, the middle candidate is taken, with a warning. Labels of
        shape [N, T] are not stratified.
    standardize : bool
        Whether the penalty applies to standardised columns.
    tol, max_passes
        When a fit has converged, and the most passes that it may take: `sonde.probes.logistic_path`.
    device : str, optional
        Torch device to compute on, such as ``cuda``; left out, numpy.

    Attributes
    ----------
    coef_ : array of shape [1, D] for two classes, else [T, D]
        In raw units of X, float32 if X is, else float64.
    intercept_ : array of shape [1] or [T]
    alpha_ : float, or array of shape [T] for labels
    classes_ : array of shape [K]
        Column numbers for labels of shape [N, T].
    multilabel_ : bool
        Whether y was of shape [N, T].
    n_folds_ : int
        Folds that α was chosen with; 1 if it was not.
    n_iter_ : int
        Passes over the rows.
    n_features_in_ : int
    feature_names_in_ : array of shape [D]
        If X has column names.
    """

    alpha_: float | NDArray[np.float64]
    n_folds_: int
    n_iter_: int

    def __init__(
        self,
        alphas: Any = None,
        cv: Any = 5,
        standardize: bool = True,
        tol: float = 1e-6,
        max_passes: int = 200,
        device: str | None = None,
    ) -> None:
        self.alphas = alphas
        self.cv = cv
        self.standardize = standardize
        self.tol = tol
        self.max_passes = max_passes
        self.device = device

    def fit(self, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Self:
        """Choose α and fit.

        Parameters
        ----------
        X : array-like of shape [N, D]
        y : array-like of shape [N], or of zeros and ones of shape [N, T]
            Classes, or labels of which each is a question of its own.
        groups : array-like of shape [N], optional
            Rows of a group are never in different folds.
        sample_weight : array-like of shape [N], optional

        Raises
        ------
        ValueError
            If data or options cannot be used, or a training part lacks a class.

        Warns
        -----
        UnconvergedWarning
            If a fit did not reach ``tol``.
        """
        X, labels, kind, weight = self._validated(X, y, sample_weight)
        alphas, folds = penalties_and_folds(
            ALPHAS["logistic"] if self.alphas is None else self.alphas,
            self.cv,
            labels,
            groups,
            weight,
            stratify=not self.multilabel_,
        )
        rows = self._rows(X)
        stats = accumulate(rows, None, folds, sample_weight=weight)
        options: dict[str, Any] = {
            "kind": kind,
            "sample_weight": weight,
            "standardize": self.standardize,
            "tol": self.tol,
            "max_passes": self.max_passes,
        }
        self.n_folds_ = stats.n_folds
        if stats.n_folds > 1:
            fit = logistic_cv(rows, labels, folds, stats, alphas, **options)
            weights, bias, alpha, self.n_iter_ = fit.weights, fit.bias, fit.alpha, fit.n_passes
        else:
            path = logistic_path(rows, labels, alphas, folds=folds, stats=stats, **options)
            weights, bias, self.n_iter_ = path.weights[0, ...], path.bias[0, ...], path.n_passes
            alpha = np.repeat(alphas, path.bias.shape[1])
        self.coef_, self.intercept_ = to_numpy(weights), to_numpy(bias)
        self.alpha_ = alpha if self.multilabel_ else float(alpha[0])
        return self

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return probabilities [N, K] of the classes, or [N, T] of the labels."""
        from scipy.special import expit, softmax

        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.asarray(expit(np.column_stack([-scores, scores])))
        return np.asarray(expit(scores) if self.multilabel_ else softmax(scores, axis=1))


class MeanDifferenceProbe(_LinearClassifier):
    r"""The nearest class mean; for two classes and for labels, along the difference of the means.

    For two classes the score is :math:`w^\top (x - m)` with m midway between the means and w along
    :math:`\mu_1 - \mu_0`, of such length that the means are at -½ and ½ (the mass-mean probe of Marks & Tegmark 2023,
    arXiv:2310.06824); for more it is :math:`-\tfrac12 \lVert x - \mu_c \rVert^2` but for what all classes share.

    Parameters
    ----------
    device : str, optional
        Torch device to compute on, such as ``cuda``; left out, numpy.

    Attributes
    ----------
    coef_ : array of shape [1, D] for two classes, else [T, D]
        In raw units of X, float32 if X is, else float64.
    intercept_ : array of shape [1] or [T]
    classes_ : array of shape [K]
        Column numbers for labels of shape [N, T].
    multilabel_ : bool
        Whether y was of shape [N, T].
    n_features_in_ : int
    feature_names_in_ : array of shape [D]
        If X has column names.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Compute the class means.

        Parameters
        ----------
        X : array-like of shape [N, D]
        y : array-like of shape [N], or of zeros and ones of shape [N, T]
            Classes, or labels of which each is a question of its own.
        sample_weight : array-like of shape [N], optional

        Raises
        ------
        ValueError
            If data cannot be used.
        """
        X, labels, kind, weight = self._validated(X, y, sample_weight)
        used = used_rows(len(X), weight)
        one_hot = label_array(labels, used, kind)
        moments = accumulate(self._rows(X), one_hot, np.where(used, 0, -1), sample_weight=weight).total()
        share = to_numpy(moments.mean_y)
        constant = np.flatnonzero((share <= 0) | (share >= 1))
        if constant.size:
            raise InputError(f"label {constant[0]} is the same in all rows: drop it")
        separate = kind == "multilabel"
        weights, bias = (to_numpy(a).astype(X.dtype) for a in nearest_mean(moments, separate))
        # Of one label the score is 0 at the negatives' mean and 1 at the positives': midway is where a class begins.
        self.coef_, self.intercept_ = weights, bias - (0.5 if separate else 0)
        return self
