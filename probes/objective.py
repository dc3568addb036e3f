"""Logistic losses of many probes at once, in one pass over the rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from sonde.errors import InputError

from .backend import Array, Backend, is_torch, to_numpy
from .rows import Rows, used_chunks

Kind: TypeAlias = Literal["multilabel", "multinomial"]

_BLOCK_LOGITS = 2**19
"""Logits computed at a time on a CPU: what its cache holds while they are made into losses and residuals."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the rows for P problems of K columns each (K = 1 for multilabel).

    Attributes
    ----------
    fold_loss : float64 array of shape [P, F], numpy
        Loss of the rows of every fold, trained on or not.
    gradient : float64 array of shape [P, K, D]
        Of the training loss, with respect to weights on x - shift.
    residual : float64 array of shape [P, K]
        Of the training loss, with respect to the bias.
    curvature : float64 array of shape [P, K, K], numpy
        Mean Hessian of a training row's loss with respect to its logits: p(1-p), or diag(p) - ppᵀ for a softmax.
    """

    fold_loss: np.ndarray[Any, Any]
    gradient: Array
    residual: Array
    curvature: np.ndarray[Any, Any]


class LogisticObjective:
    r"""The loss of every problem, each trained on all rows but those of the fold that it holds out.

    ``multilabel``: column t is a sigmoid of its own, :math:`\ell = \log(1 + e^{z}) - y z`. ``multinomial``: a problem
    is a softmax over all columns, :math:`\ell = \log \sum_k e^{z_k} - z_y`.

    Parameters
    ----------
    rows : Rows
    labels : array of shape [N, T], numpy
        0 or 1; for ``multinomial`` one-hot.
    folds : int64 array of shape [N], numpy
        -1 for rows left out.
    n_folds : int
        F.
    sample_weight : float64 array of shape [N], numpy, or None
    kind : {"multilabel", "multinomial"}
    shift : float64 array of shape [D]
        Subtracted from x before products, so that large means cost no precision. Products are computed on its device.
    live : float64 array of shape [D]
        1, or 0 for constant columns: they are set to zero, since products with what is left of them may be denormal
        numbers, which CPUs multiply many times slower.
    dtype : dtype
        Of the products.
    """

    def __init__(
        self,
        rows: Rows,
        labels: np.ndarray[Any, Any],
        folds: np.ndarray[Any, Any],
        n_folds: int,
        sample_weight: np.ndarray[Any, Any] | None,
        kind: Kind,
        shift: Array,
        live: Array,
        dtype: Any,
    ) -> None:
        self._rows, self._labels, self._folds, self._n_folds = rows, labels, folds, n_folds
        self._sample_weight, self._kind = sample_weight, kind
        self._backend, self._dtype = Backend.of(shift), dtype
        self._device = str(self._backend.device) if is_torch(shift) else None
        xp = self._backend.xp
        self._shift = xp.astype(shift, dtype) if bool(xp.any(shift != 0)) else None
        self._live = None if bool(xp.all(live == 1)) else xp.astype(live, dtype)
        used = folds >= 0
        weight = np.where(used, 1.0 if sample_weight is None else sample_weight, 0.0)
        self.fold_weight = np.bincount(folds[used], weights=weight[used], minlength=n_folds)
        self.fold_positive = np.stack([(labels * (weight * (folds == f))[:, None]).sum(axis=0) for f in range(n_folds)])
        self.n_passes = 0

    def evaluate(
        self, weights: Array, bias: Array, target: np.ndarray[Any, Any], split: np.ndarray[Any, Any]
    ) -> LossSums:
        """Compute losses and gradients in one pass.

        Parameters
        ----------
        weights : array of shape [P, K, D], the dtype of the products
            On x - shift.
        bias : array of shape [P, K], the same dtype
        target : int array of shape [P], numpy
            Column of the labels of each problem (ignored for multinomial).
        split : int array of shape [P], numpy, ascending
            The fold that each problem holds out; F for none.
        """
        backend, xp = self._backend, self._backend.xp
        n_problems, n_columns, hidden = weights.shape
        flat, flat_bias = xp.reshape(weights, (-1, hidden)), xp.reshape(bias, (-1,))
        gradient = backend.zeros(n_problems * n_columns, hidden)
        residual_sum = backend.zeros(n_problems * n_columns)
        fold_loss = backend.zeros(self._n_folds, n_problems)
        curvature = backend.zeros(n_problems, n_columns, n_columns)
        columns = backend.indices(target)
        bounds = np.searchsorted(split, np.arange(self._n_folds + 2)).tolist()
        block = max(64, _BLOCK_LOGITS // flat.shape[0]) if str(backend.device) == "cpu" else 2**25 // flat.shape[0]
        self.n_passes += 1
        for _, positions, chunk in used_chunks(self._rows, self._folds, self._device):
            for start in range(0, positions.size, block):
                at = positions[start : start + block]
                x = backend.asarray(chunk[start : start + block, :], self._dtype)
                x = x if self._shift is None else x - self._shift
                x = x if self._live is None else x * self._live
                logits = xp.reshape(xp.matmul(x, flat.T) + flat_bias, (-1, n_problems, n_columns))
                labels = backend.asarray(self._labels[at], self._dtype)
                member = self._membership(at)
                if self._kind == "multilabel":
                    loss, residual, spread = _sigmoid(xp, logits, xp.take(labels, columns, axis=1)[:, :, None])
                    self._count(spread, member, bounds)
                    curvature += xp.sum(spread, axis=0)[:, :, None]
                else:
                    loss, residual, p = _softmax(xp, logits, labels[:, None, :])
                    counted = xp.asarray(p, copy=True)
                    self._count(counted, member, bounds)
                    outer = xp.matmul(xp.permute_dims(p, (1, 2, 0)), xp.permute_dims(counted, (1, 0, 2)))
                    curvature += xp.sum(counted, axis=0)[:, :, None] * backend.asarray(np.eye(n_columns)) - outer
                fold_loss += xp.matmul(member.T, loss)
                self._count(residual, member, bounds)
                residual = xp.reshape(residual, (-1, flat.shape[0]))
                gradient += xp.matmul(residual.T, x)
                residual_sum += xp.sum(residual, axis=0, dtype=xp.float64)
        per_problem = (n_problems, n_columns)
        gradient = xp.reshape(gradient, (*per_problem, hidden))
        residual_sum = xp.reshape(residual_sum, per_problem)
        if self._kind == "multinomial":
            # Residuals of a row sum to zero over the classes: of what rounding leaves, a direction that the loss
            # does not see would have a gradient, and nothing to bring it to zero.
            gradient = gradient - xp.mean(gradient, axis=1, keepdims=True)
            residual_sum = residual_sum - xp.mean(residual_sum, axis=1, keepdims=True)
        return LossSums(
            fold_loss=to_numpy(fold_loss).T,
            gradient=gradient,
            residual=residual_sum,
            curvature=to_numpy(curvature) / self.training_sum(self.fold_weight[None, :], split)[:, None, None],
        )

    def training_sum(self, per_fold: np.ndarray[Any, Any], split: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Add over the folds that each problem trains on: [P, F] to [P]."""
        trains = np.arange(self._n_folds)[None, :] != split[:, None]
        return np.asarray((per_fold * trains).sum(axis=1))

    def _count(self, values: Array, member: Array, bounds: list[int]) -> None:
        """Multiply, in place, [n, P, K] by the weight with which each row trains each problem."""
        weight = self._backend.xp.sum(member, axis=1)
        for split in range(self._n_folds + 1):
            begin, end = bounds[split], bounds[split + 1]
            if begin == end or (split == self._n_folds and self._sample_weight is None):
                continue
            counted = weight - member[:, split] if split < self._n_folds else weight
            values[:, begin:end, :] *= counted[:, None, None]

    def _membership(self, at: np.ndarray[Any, Any]) -> Array:
        """Return [n, F]: the weight of each row in its own fold, else zero."""
        member = np.zeros((at.size, self._n_folds))
        member[np.arange(at.size), self._folds[at]] = 1.0 if self._sample_weight is None else self._sample_weight[at]
        return self._backend.asarray(member, self._dtype)


def label_array(y: Any, used: np.ndarray[Any, Any], kind: Kind) -> np.ndarray[Any, Any]:
    """Return labels as a float32 numpy array of shape [N, T] of zeros and ones; rows not in use are zero.

    Parameters
    ----------
    y : array of shape [N, T] or [N]
        ``multilabel``: 0/1 or bool per target. ``multinomial``: class numbers 0 … K-1 of shape [N], or one-hot [N, K].
    used : bool array of shape [N], numpy
    kind : {"multilabel", "multinomial"}

    Raises
    ------
    InputError
        If labels have another form; the message names the row.
    """
    if kind not in ("multilabel", "multinomial"):
        raise InputError(f"kind {kind!r}: give 'multilabel' or 'multinomial'")
    label = to_numpy(y)
    if label.ndim not in (1, 2) or label.shape[0] != used.shape[0]:
        raise InputError(f"labels of shape {label.shape} for {used.shape[0]} samples: give one row per sample")
    if label.ndim == 1 and kind == "multinomial":
        bad = np.flatnonzero(used & ~((label >= 0) & (label == np.floor(label))))
        if bad.size:
            raise InputError(f"label of row {bad[0]} is {label[bad[0]]}: give class numbers 0, 1, …")
        codes = np.where(used, label, 0).astype(np.int64)
        label = np.zeros((codes.size, int(codes.max()) + 1), dtype=np.float32)
        label[np.arange(codes.size), codes] = 1.0
    label = label[:, None] if label.ndim == 1 else label
    bad = np.argwhere(used[:, None] & ~((label == 0) | (label == 1)))
    if bad.size:
        row, column = bad[0].tolist()
        raise InputError(f"label {column} of row {row} is {label[row, column]}: give 0 or 1, or the row the fold -1")
    label = np.where(used[:, None], label, 0).astype(np.float32)
    if kind == "multinomial":
        bad = np.flatnonzero(used & (label.sum(axis=1) != 1))
        if bad.size:
            raise InputError(
                f"row {bad[0]} has {int(label[bad[0]].sum())} classes: give exactly one, or use 'multilabel'"
            )
    return label


def _sigmoid(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return loss [n, P], p - y and p(1-p), [n, P, 1], of logits and labels of shape [n, P, 1].

    In the probability of the wrong answer, as p - y would round away what is left of a confident probe's.
    """
    sign = 1 - 2 * y
    z = z * sign
    e = xp.exp(-xp.abs(z))
    larger = 1 / (1 + e)  # of p and 1-p
    positive = z > 0
    loss = xp.where(positive, z, xp.zeros_like(z)) + xp.log1p(e)
    return loss[:, :, 0], sign * xp.where(positive, larger, e * larger), e * larger * larger


def _softmax(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return loss [n, P], p - y and p, [n, P, K], of logits [n, P, K] and one-hot labels [n, 1, K].

    In the sum over the wrong classes, as p - y would round away what is left of a confident probe's.
    """
    z = z - xp.max(z, axis=2, keepdims=True)
    right = xp.sum(y * z, axis=2, keepdims=True)
    p = xp.exp(z)
    residual = p * (1 - y)
    wrong, e = xp.sum(residual, axis=2, keepdims=True), xp.exp(right)
    loss = xp.log1p(wrong + (e - 1)) - right
    share = 1 / (wrong + e)
    residual -= y * wrong
    residual *= share
    p *= share
    return loss[:, :, 0], residual, p
