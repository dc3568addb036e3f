"""Logistic losses of many probes at once, in one pass over the rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from sonde.errors import InputError

from .backend import Array, Backend, is_torch, to_numpy
from .class_weights import ClassWeight, class_weight_array
from .rows import Held, Rows, runs, used_chunks

Kind: TypeAlias = Literal["multilabel", "multinomial"]

_BLOCK, _PIECE = 2**19, 2**16
"""Logits multiplied at a time on a CPU, and made into losses and residuals at a time: what its caches hold."""

_ROWS, _ROWS_ON_A_GPU = 2**10, 2**14
"""Rows of a fold that are worth a product of their own."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the rows for P problems of K columns each (K = 1 for multilabel).

    Attributes
    ----------
    loss : float64 array of shape [P], numpy
        Of the training rows.
    gradient : float64 array of shape [P, K, D]
        Of the training loss, with respect to weights on x - shift.
    residual : float64 array of shape [P, K]
        Of the training loss, with respect to the bias.
    curvature : float64 array of shape [P, K, K], numpy
        Mean Hessian of a training row's loss with respect to its logits: p(1-p), or diag(p) - ppᵀ for a softmax.
    """

    loss: np.ndarray[Any, Any]
    gradient: Array
    residual: Array
    curvature: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some rows of one fold, on the device."""

    fold: int
    labels: Array  # [n, T]
    weight: Array | None  # [n]

    def rows(self, some: slice) -> _Part:
        return _Part(self.fold, self.labels[some, :], None if self.weight is None else self.weight[some])


class LogisticObjective:
    r"""The loss of every problem, each trained on all rows but those of the fold that it holds out.

    ``multilabel``: column t is a sigmoid of its own, :math:`\ell = \log(1 + e^{z}) - y z`. ``multinomial``: a problem
    is a softmax over all columns, :math:`\ell = \log \sum_k e^{z_k} - z_y`. A row's loss counts by its sample weight
    times the weight that its class has in the problem's training part.

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
    class_weight : ClassWeight
        Of each training part.

    Attributes
    ----------
    fold_weight : float64 array of shape [F], numpy
        Sums of the sample weights.
    training_weight, held_out_weight : float64 arrays of shape [F + 1, T, 2] and [F, T, 2], numpy
        The same by label, times the classes' weights, of the rows that train a problem and of those held out.
    n_passes : int
        Passes over the rows so far.
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
        class_weight: ClassWeight = None,
    ) -> None:
        self._rows, self._labels, self._folds, self._n_folds = rows, labels, folds, n_folds
        self._sample_weight, self._kind = sample_weight, kind
        self._by_fold = Held(self._rows_by_fold)
        self._backend, self._dtype = Backend.of(shift), dtype
        self._device = str(self._backend.device) if is_torch(shift) else None
        xp = self._backend.xp
        self._shift = xp.astype(shift, dtype) if bool(xp.any(shift != 0)) else None
        self._live = None if bool(xp.all(live == 1)) else xp.astype(live, dtype)
        used = folds >= 0
        weight = np.where(used, 1.0 if sample_weight is None else sample_weight, 0.0)
        self.fold_weight = np.bincount(folds[used], weights=weight[used], minlength=n_folds)
        # By label and not by difference: zero must be zero where a class is lacking.
        by_fold = [(weight[folds == f], labels[folds == f]) for f in range(n_folds)]
        held_out = np.stack([np.stack([w @ (1 - label), w @ label], axis=1) for w, label in by_fold])
        training = np.tensordot(~np.eye(n_folds + 1, n_folds, dtype=bool), held_out, axes=1)
        factors = class_weight_array(class_weight, training, multinomial=kind == "multinomial")
        self._class_weight = None if class_weight is None else factors
        self.held_out_weight, self.training_weight = factors[:n_folds] * held_out, factors * training
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
        loss, curvature = backend.zeros(n_problems), backend.zeros(n_problems, n_columns, n_columns)
        gradient, residual_sum = backend.zeros(n_problems, n_columns, hidden), backend.zeros(n_problems, n_columns)
        columns, factors = backend.indices(target), self._class_factors(target, split)
        bounds = self._bounds(split)
        self.n_passes += 1
        for part, x in self._by_fold:
            # Problems that hold the fold out have no part in this.
            begin, end = bounds[part.fold], bounds[part.fold + 1]
            of_weights, of_bias, of_columns = (_without(xp, a, begin, end) for a in (weights, bias, columns))
            of_factors = None if factors is None else _without(xp, factors, begin, end)
            flat = xp.reshape(of_weights, (-1, hidden))
            if flat.shape[0] == 0:
                continue
            block, piece = self._sizes(flat.shape[0])
            for start in range(0, x.shape[0], block):
                rows, here = x[start : start + block, :], part.rows(slice(start, start + block))
                logits = xp.matmul(rows, flat.T)  # and, piece by piece, residuals
                for first in range(0, rows.shape[0], piece):
                    some = slice(first, min(first + piece, rows.shape[0]))
                    z = xp.reshape(logits[some, :], (-1, *of_bias.shape)) + of_bias
                    losses, residual, spread = self._differentiate(z, here.rows(some), of_columns, of_factors)
                    logits[some, :] = xp.reshape(residual, (-1, flat.shape[0]))
                    _add_without(loss, losses, begin, end)
                    _add_without(curvature, spread, begin, end)
                _add_without(gradient, xp.reshape(xp.matmul(logits.T, rows), of_weights.shape), begin, end)
                summed = xp.sum(logits, axis=0, dtype=xp.float64)
                _add_without(residual_sum, xp.reshape(summed, of_bias.shape), begin, end)
        if self._kind == "multinomial":
            # Residuals of a row sum to zero over the classes: of what rounding leaves, a direction that the loss
            # does not see would have a gradient, and nothing to bring it to zero.
            gradient = gradient - xp.mean(gradient, axis=1, keepdims=True)
            residual_sum = residual_sum - xp.mean(residual_sum, axis=1, keepdims=True)
        trains = np.arange(self._n_folds)[None, :] != split[:, None]
        return LossSums(
            loss=to_numpy(loss),
            gradient=gradient,
            residual=residual_sum,
            curvature=to_numpy(curvature) / (trains @ self.fold_weight)[:, None, None],
        )

    def held_out_loss(
        self, weights: Array, bias: Array, target: np.ndarray[Any, Any], split: np.ndarray[Any, Any]
    ) -> np.ndarray[Any, Any]:
        """Compute the loss of each problem on the rows of the fold that it holds out, in one pass.

        Parameters
        ----------
        weights, bias, target, split
            As of `evaluate`.

        Returns
        -------
        float64 array of shape [P], numpy
            0 where no fold is held out.
        """
        xp = self._backend.xp
        loss, bounds = self._backend.zeros(split.size), self._bounds(split)
        columns, factors = self._backend.indices(target), self._class_factors(target, split)
        self.n_passes += 1
        for part, x in self._by_fold:
            mine = slice(bounds[part.fold], bounds[part.fold + 1])
            flat = xp.reshape(weights[mine, ...], (-1, weights.shape[2]))
            if flat.shape[0] == 0:
                continue
            _, piece = self._sizes(flat.shape[0])
            of_factors = None if factors is None else factors[mine, ...]
            for start in range(0, x.shape[0], piece):
                some = slice(start, start + piece)
                z = xp.reshape(xp.matmul(x[some, :], flat.T), (-1, *bias[mine, :].shape)) + bias[mine, :]
                loss[mine] += self._differentiate(z, part.rows(some), columns[mine], of_factors)[0]
        return to_numpy(loss)

    def _bounds(self, split: np.ndarray[Any, Any]) -> list[int]:
        """Return where the problems that hold out each fold begin, and where those that hold out none."""
        return list(map(int, np.searchsorted(split, np.arange(self._n_folds + 1))))

    def _sizes(self, n_columns: int) -> tuple[int, int]:
        """Return how many rows are multiplied, and made into losses and residuals, at a time."""
        sizes = (_BLOCK, _PIECE) if str(self._backend.device) == "cpu" else (2**25, 2**25)
        block, piece = (max(64, size // n_columns) for size in sizes)
        return block, piece

    def _rows_by_fold(self) -> Iterator[tuple[_Part, Array]]:
        """Give out rows of one fold at a time, shifted, with what is known of them."""
        backend, enough = self._backend, _ROWS if str(self._backend.device) == "cpu" else _ROWS_ON_A_GPU
        waiting: dict[int, list[tuple[np.ndarray[Any, Any], Array]]] = {fold: [] for fold in range(self._n_folds)}

        def joined(fold: int) -> tuple[_Part, Array]:
            positions, x = zip(*waiting[fold], strict=True)
            at, waiting[fold] = np.concatenate(positions), []
            weight = None if self._sample_weight is None else backend.asarray(self._sample_weight[at], self._dtype)
            return _Part(fold, backend.asarray(self._labels[at], self._dtype), weight), backend.xp.concat(x, axis=0)

        for _, positions, x in used_chunks(self._rows, self._folds, self._device):
            x = self._backend.asarray(x, self._dtype)
            x = x if self._shift is None else x - self._shift
            x = x if self._live is None else x * self._live
            for fold, mine in runs(self._folds[positions]):
                waiting[fold].append((positions[mine], x[mine, :]))
                if sum(numbers.size for numbers, _ in waiting[fold]) >= enough:
                    yield joined(fold)
        for fold in [fold for fold, some in waiting.items() if some]:
            yield joined(fold)

    def _differentiate(
        self, z: Array, rows: _Part, columns: Array, factors: Array | None
    ) -> tuple[Array, Array, Array]:
        """Return sums of losses [P], residuals [n, P, K] and sums of curvatures [P, K, K] of logits [n, P, K].

        Parameters
        ----------
        rows : _Part
            Labels and weights of the n rows.
        columns : int array of shape [P]
            Of the labels; multilabel problems have one each.
        factors : array of shape [P, K, 2], or None
            By label.
        """
        backend, xp = self._backend, self._backend.xp
        if self._kind == "multilabel":
            labels = xp.take(rows.labels, columns, axis=1)[:, :, None]
            loss, residual, spread = _sigmoid(xp, z, labels)
        else:
            labels = rows.labels[:, None, :]
            loss, residual, p = _softmax(xp, z, labels)
            spread = xp.asarray(p, copy=True)
        counts = []
        if factors is not None:
            counts.append(xp.sum(factors[:, :, 0] + labels * (factors[:, :, 1] - factors[:, :, 0]), axis=2)[:, :, None])
        if rows.weight is not None:
            counts.append(rows.weight[:, None, None])
        for count in counts:
            loss = loss * count[:, :, 0]
            residual *= count
            spread *= count
        curvature = xp.sum(spread, axis=0)[:, :, None]
        if self._kind == "multinomial":
            outer = xp.matmul(xp.permute_dims(p, (1, 2, 0)), xp.permute_dims(spread, (1, 0, 2)))
            curvature = curvature * backend.asarray(np.eye(p.shape[2])) - outer
        return xp.sum(loss, axis=0, dtype=xp.float64), residual, curvature

    def _class_factors(self, target: np.ndarray[Any, Any], split: np.ndarray[Any, Any]) -> Array | None:
        """Return the factors by label, [P, K, 2], of every problem's classes, or None for ones."""
        if self._class_weight is None:
            return None
        factors = self._class_weight[split]
        if self._kind == "multilabel":
            factors = factors[np.arange(split.size), target][:, None, :]
        return self._backend.asarray(factors, self._dtype)


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


def _without(xp: Any, x: Array, begin: int, end: int) -> Array:
    """Return x but for its entries from `begin` to `end`."""
    return x if begin == end else xp.concat([x[:begin, ...], x[end:, ...]], axis=0)


def _add_without(total: Array, part: Array, begin: int, end: int) -> None:
    """Add what was computed from ``_without(total)``."""
    total[:begin, ...] += part[:begin, ...]
    total[end:, ...] += part[begin:, ...]


def _sigmoid(xp: Any, z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return loss [n, P], p - y and p(1-p), [n, P, 1], of logits and labels of shape [n, P, 1].

    In the probability of the wrong answer, as p - y would round away what is left of a confident probe's.
    """
    sign = 1 - 2 * y
    z = z * sign
    size = xp.abs(z)
    e = xp.exp(-size)
    loss = xp.log1p(e)
    loss += (z + size) / 2  # the greater of z and 0
    larger = 1 / (1 + e)  # of p and 1-p
    e *= larger
    sign *= xp.where(z > 0, larger, e)
    e *= larger
    return loss[:, :, 0], sign, e


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
