"""Walk many logistic problems along their penalties, sharing each pass over the rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sonde.errors import InputError

from .backend import Array, Backend
from .eigenbasis import Eigenbasis
from .lbfgs import BatchedLBFGS
from .objective import Kind, LogisticObjective
from .ridge import to_dtype

_SHARED_COLUMNS = 256
"""Columns in a pass below which a path is cut into stretches walked side by side, as reading x is the greater cost."""

_LEAST_TOL = 100.0
"""Least tolerance, in units of the relative rounding error of the products: 1e-5 in float32, 2e-14 in float64."""

_FLOOR = 10.0
"""Gradient norm at which only rounding is left, in units of that error times the root of the training rows' weight.

A relative error ε in each row's residual is a gradient of norm ε√W or less in the metric of the Hessian; measured, up
to 8 ε√W. What such a gradient still promises of the objective is below its own rounding error."""

_LEAST_CURVATURE = 1e-3
"""Share of its start, or of the greatest of a problem, below which a curvature does not enter the preconditioner."""


@dataclass(frozen=True, slots=True)
class Solutions:
    """Probes of A penalties, S splits and T columns, in P problems (T = P, or P = 1 with all columns).

    Attributes
    ----------
    weights : array of shape [A, S, T, D], in raw units of x
    bias : array of shape [A, S, T]
    converged : bool array of shape [A, S, P], numpy
    held_out : float64 array of shape [A, S, P], numpy
        Loss summed over the rows of the fold that the split leaves out; 0 if it leaves out none.
    """

    weights: Array
    bias: Array
    converged: np.ndarray[Any, Any]
    held_out: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Evaluation:
    """Of the loss alone, without the penalty, at one point of each problem."""

    loss: np.ndarray[Any, Any]  # [P], over the training rows
    gradient: Array  # [P, K·(r+1)], as is the curvature: a diagonal close to the Hessian
    curvature: Array


@dataclass(slots=True)
class _Walkers:
    """One problem each, at one penalty each; arrays of shape [P] in ascending order of `split`."""

    split: np.ndarray[Any, Any]
    target: np.ndarray[Any, Any]
    queue: list[list[tuple[int, float]]]  # (index, α) still to solve, the present one first
    # What is known of the problems' training parts, a row each.
    offset: Array  # [P, D], the mean of x less the shift
    scale: Array  # [P, D]
    squares: Array  # [P, r + 1], what multiplies p(1-p) in the Hessian's diagonal: Λ, and W for the intercept
    turn: Array  # [P, K, K]

    def keep(self, which: np.ndarray[Any, Any]) -> _Walkers:
        at = Backend.of(self.offset).indices(which)
        xp = Backend.of(self.offset).xp
        of_parts = (xp.take(a, at, axis=0) for a in (self.offset, self.scale, self.squares, self.turn))
        return _Walkers(self.split[which], self.target[which], [self.queue[i] for i in which.tolist()], *of_parts)


class PathSolver:
    """Solve logistic problems in the eigenbases of their training parts.

    A point of a problem is, per column, r coordinates in the eigenbasis of the standardised Gram matrix and an
    intercept at the mean of x; columns of a softmax are turned to the eigenbasis of its mean curvature. There the
    preconditioner is diagonal, and the intercept stands apart from the weights.

    Parameters
    ----------
    objective : LogisticObjective
    bases : mapping from split to Eigenbasis
        All of the same r.
    shift : float64 array of shape [D]
        The objective's.
    dtype : dtype
        Of the products, and of the probes returned.
    kind : {"multilabel", "multinomial"}
    tol : float
    max_passes : int

    Raises
    ------
    InputError
        If a training part lacks a class.
    """

    def __init__(
        self,
        objective: LogisticObjective,
        bases: Mapping[int, Eigenbasis],
        shift: Array,
        dtype: Any,
        kind: Kind,
        tol: float,
        max_passes: int,
    ) -> None:
        self._objective, self._shift, self._dtype = objective, shift, dtype
        self._backend = Backend.of(shift)
        self._eps = float(self._backend.xp.finfo(dtype).eps)
        self._tol, self._max_passes = tol, max_passes
        self._hidden, self._n_targets = int(shift.shape[0]), objective.training_weight.shape[1]
        self._rank = int(next(iter(bases.values())).values.shape[0])
        self._n_columns = self._n_targets if kind == "multinomial" else 1
        self._n_problems = self._n_targets // self._n_columns
        self._bases, self._prior = bases, {s: self._log_prior(s) for s in bases}
        # Classes of a softmax share their probability: turned so, its mean curvature at the start is diagonal.
        self._turn = {s: self._class_basis(prior) for s, prior in self._prior.items()}
        xp = self._backend.xp
        distinct = {id(basis.vectors): basis.vectors for basis in bases.values()}
        cast = {key: xp.astype(vectors, dtype, copy=False) for key, vectors in distinct.items()}
        self._vectors = {split: cast[id(basis.vectors)] for split, basis in bases.items()}

    def walk(self, alphas: np.ndarray[Any, Any], splits: list[int], tol: float | None = None) -> Solutions:
        """Solve every problem of every split at every α, from the strongest to the weakest, to `tol`."""
        descending = [(int(i), float(alphas[i])) for i in np.argsort(-alphas, kind="stable")]
        columns = len(splits) * self._n_targets
        n_stretches = min(len(descending), max(1, _SHARED_COLUMNS // columns))
        cuts = np.linspace(0, len(descending), n_stretches + 1).astype(int).tolist()
        stretches = [descending[a:b] for a, b in itertools.pairwise(cuts)]
        plan = [(s, t, q) for s in splits for t in range(self._n_problems) for q in stretches]
        walkers = self._walkers(
            np.asarray([s for s, _, _ in plan]), np.asarray([t for _, t, _ in plan]), [list(q) for _, _, q in plan]
        )
        return self._run(walkers, len(alphas), splits, None, tol or self._tol)

    def solve(self, alpha: np.ndarray[Any, Any], splits: list[int], weights: Array, bias: Array) -> Solutions:
        """Solve each problem at its own α ([P]) in every split, from raw-unit probes ([S, T, D] and [S, T])."""
        xp, per_problem = self._backend.xp, (self._n_problems, self._n_columns)
        starts = []
        for at, split in enumerate(splits):
            basis, wide = self._bases[split], xp.astype(weights[at, ...], xp.float64)
            intercept = xp.astype(bias[at, :], xp.float64) + xp.matmul(wide, basis.mean_x)
            coordinates = xp.matmul(wide * basis.scale, basis.vectors)
            start = xp.concat(
                [xp.reshape(coordinates, (*per_problem, -1)), xp.reshape(intercept, (*per_problem, 1))], axis=2
            )
            start = xp.matmul(self._backend.asarray(self._turn[split].T), start)
            starts.append(xp.reshape(start, (self._n_problems, -1)))
        walkers = self._walkers(
            np.repeat(splits, self._n_problems),
            np.tile(np.arange(self._n_problems), len(splits)),
            [[(0, float(a))] for _ in splits for a in alpha],
        )
        return self._run(walkers, 1, splits, xp.concat(starts, axis=0), self._tol)

    def _run(self, walkers: _Walkers, n_alphas: int, splits: list[int], start: Array | None, tol: float) -> Solutions:
        backend, xp = self._backend, self._backend.xp
        tol = max(tol, _LEAST_TOL * self._eps)
        found = Solutions(
            backend.zeros(n_alphas, len(splits), self._n_targets, self._hidden, dtype=self._dtype),
            backend.zeros(n_alphas, len(splits), self._n_targets, dtype=self._dtype),
            np.zeros((n_alphas, len(splits), self._n_problems), dtype=bool),
            np.zeros((n_alphas, len(splits), self._n_problems)),
        )
        about_shift = backend.zeros(*found.bias.shape, dtype=self._dtype)
        null = self._null(walkers)
        problems = BatchedLBFGS(
            backend,
            null,
            np.asarray([q[0][1] for q in walkers.queue]),
            self._penalised(),
            precision=10 * self._eps,
        )
        # The intercept alone: what gradients are measured against, and the first point; of all stretches the same.
        problem = walkers.split * self._n_problems + walkers.target
        _, first, stretch_of = np.unique(problem, return_index=True, return_inverse=True)
        alike = self._evaluate(xp.take(null, backend.indices(first), axis=0), walkers.keep(first), None)
        null_gradient, null_curvature = (
            xp.take(a, backend.indices(stretch_of), axis=0) for a in (alike.gradient, alike.curvature)
        )
        problems.tell(alike.loss[stretch_of], null_gradient, null_curvature)
        floor = _LEAST_CURVATURE * null_curvature
        if start is not None:
            problems.jump(start)
            at_start = self._evaluate(start, walkers, floor)
            problems.tell(at_start.loss, at_start.gradient, at_start.curvature)
        passes = np.zeros(walkers.split.size, dtype=np.int64)
        weight = np.stack([self._weight(int(s)) for s in splits])
        weight = weight[np.searchsorted(splits, walkers.split), walkers.target]
        rounding = _FLOOR * self._eps * np.sqrt(weight)
        while True:
            while True:
                small = np.maximum(tol * problems.norm(null_gradient, null_curvature), rounding)
                converged = (problems.decrement() <= small) | problems.settled()
                done = np.flatnonzero(converged | problems.stalled | (passes >= self._max_passes))
                if done.size == 0:
                    break
                self._record(found, about_shift, problems, walkers, splits, done, converged)
                for i in done.tolist():
                    walkers.queue[i].pop(0)
                going_on = np.asarray([i for i in done.tolist() if walkers.queue[i]], dtype=np.int64)
                problems.retarget(going_on, np.asarray([walkers.queue[i][0][1] for i in going_on.tolist()]))
                passes[done] = 0
                left = np.asarray([i for i, queue in enumerate(walkers.queue) if queue], dtype=np.int64)
                if left.size == 0:
                    found.held_out[...] = self._held_out(found.weights, about_shift, splits)
                    return found
                if left.size < passes.size:
                    problems.keep(left)
                    at = backend.indices(left)
                    null_gradient, null_curvature, floor = (
                        xp.take(a, at, axis=0) for a in (null_gradient, null_curvature, floor)
                    )
                    walkers, passes = walkers.keep(left), passes[left]
                    rounding = rounding[left]
            problems.aim()
            at_trial = self._evaluate(problems.trial(), walkers, floor)
            problems.tell(at_trial.loss, at_trial.gradient, at_trial.curvature)
            passes += 1

    def _evaluate(self, point: Array, walkers: _Walkers, floor: Array | None) -> _Evaluation:
        """Evaluate points ([P, K·(D+1)]) in one pass; curvatures are at least `floor`."""
        xp = self._backend.xp
        weights, intercept = self._raw(point, walkers)
        rounded = xp.astype(weights, self._dtype)
        bias = intercept - xp.sum(xp.astype(rounded, xp.float64) * walkers.offset[:, None, :], axis=2)
        sums = self._objective.evaluate(rounded, xp.astype(bias, self._dtype), walkers.target, walkers.split)
        raw = (sums.gradient - sums.residual[:, :, None] * walkers.offset[:, None, :]) / walkers.scale[:, None, :]
        gradient = xp.concat([self._rotate(raw, walkers.split, back=False), sums.residual[:, :, None]], axis=2)
        mean = self._backend.asarray(sums.curvature)
        if self._n_columns > 1:
            back = xp.permute_dims(walkers.turn, (0, 2, 1))
            gradient, mean = xp.matmul(back, gradient), xp.matmul(xp.matmul(back, mean), walkers.turn)
        mean = xp.linalg.diagonal(mean)
        mean = xp.maximum(mean, _LEAST_CURVATURE * xp.max(mean, axis=1, keepdims=True))
        curvature = xp.reshape(mean[:, :, None] * walkers.squares[:, None, :], point.shape)
        return _Evaluation(
            loss=sums.loss,
            gradient=xp.reshape(gradient, point.shape),
            curvature=curvature if floor is None else xp.maximum(curvature, floor),
        )

    def _record(
        self,
        found: Solutions,
        about_shift: Array,
        problems: BatchedLBFGS,
        walkers: _Walkers,
        splits: list[int],
        done: np.ndarray[Any, Any],
        converged: np.ndarray[Any, Any],
    ) -> None:
        """Write down what is done; `about_shift` ([A, S, T]) is the bias of x - shift."""
        xp = self._backend.xp
        point = xp.take(problems.point, self._backend.indices(done), axis=0)
        weights, intercept = self._raw(point, walkers.keep(done))
        for row, i in enumerate(done.tolist()):
            split, target, alpha = int(walkers.split[i]), int(walkers.target[i]), walkers.queue[i][0][0]
            at, mean_x = splits.index(split), self._bases[split].mean_x
            bias = intercept[row, :] - xp.matmul(weights[row, ...], mean_x)
            if self._n_columns > 1:  # the softmax does not see a constant added to every class
                bias = bias - xp.mean(bias)
            columns = slice(target * self._n_columns, (target + 1) * self._n_columns)
            found.weights[alpha, at, columns, :], found.bias[alpha, at, columns] = to_dtype(
                weights[row, ...], bias, mean_x, self._dtype
            )
            rounded = xp.astype(found.weights[alpha, at, columns, :], xp.float64)
            about_shift[alpha, at, columns] = xp.astype(
                intercept[row, :] - xp.matmul(rounded, mean_x - self._shift), self._dtype
            )
            found.converged[alpha, at, target] = converged[i]

    def _held_out(self, weights: Array, bias: Array, splits: list[int]) -> np.ndarray[Any, Any]:
        """Return the loss on the folds left out, [A, S, P], of probes of x - shift, [A, S, T, D] and [A, S, T]."""
        xp, n_alphas = self._backend.xp, int(bias.shape[0])
        weights, bias = xp.permute_dims(weights, (1, 0, 2, 3)), xp.permute_dims(bias, (1, 0, 2))
        loss = self._objective.held_out_loss(
            xp.reshape(weights, (-1, self._n_columns, self._hidden)),
            xp.reshape(bias, (-1, self._n_columns)),
            np.tile(np.arange(self._n_problems), len(splits) * n_alphas),
            np.repeat(splits, n_alphas * self._n_problems),
        )
        return loss.reshape(len(splits), n_alphas, self._n_problems).transpose(1, 0, 2)

    def _raw(self, point: Array, walkers: _Walkers) -> tuple[Array, Array]:
        """Return weights [P, K, D] in raw units of x, and intercepts [P, K] at the mean of x."""
        xp = self._backend.xp
        columns = xp.reshape(point, (walkers.split.size, self._n_columns, self._rank + 1))
        if self._n_columns > 1:
            columns = xp.matmul(walkers.turn, columns)
        rotated = self._rotate(columns[:, :, : self._rank], walkers.split, back=True)
        return rotated / walkers.scale[:, None, :], columns[:, :, self._rank]

    def _rotate(self, x: Array, split: np.ndarray[Any, Any], *, back: bool) -> Array:
        """Multiply rows, [P, K, D], by the eigenvectors of their splits, or those of [P, K, r] by their transposes."""
        xp = self._backend.xp
        rows = xp.reshape(xp.astype(x, self._dtype), (-1, x.shape[2]))
        ends = [*(np.flatnonzero(np.diff(split)) + 1).tolist(), split.size]
        parts, begin = [], 0
        for i, end in enumerate(ends):
            vectors = self._vectors[int(split[begin])]
            if i + 1 < len(ends) and self._vectors[int(split[end])] is vectors:
                continue  # splits that share their eigenvectors are multiplied at once
            some = rows[begin * self._n_columns : end * self._n_columns, :]
            parts.append(xp.matmul(some, vectors.T if back else vectors))
            begin = end
        return xp.astype(xp.reshape(xp.concat(parts, axis=0), (*x.shape[:2], -1)), xp.float64)

    def _null(self, walkers: _Walkers) -> Array:
        """Return the points of probes without weights, whose intercepts give the prevalences; shape [P, K·(r+1)]."""
        point = self._backend.zeros(walkers.split.size, self._n_columns, self._rank + 1)
        prior = [
            self._turn[int(s)].T @ self._prior[int(s)].reshape(self._n_problems, self._n_columns)[int(t)]
            for s, t in zip(walkers.split, walkers.target, strict=True)
        ]
        point[:, :, self._rank] = self._backend.asarray(np.stack(prior), self._backend.xp.float64)
        return self._backend.xp.reshape(point, (walkers.split.size, -1))

    def _class_basis(self, prior: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return the eigenvectors, as columns, of diag(π) - ππᵀ of the classes' shares π; one column needs none."""
        if self._n_columns == 1:
            return np.ones((1, 1))
        share = np.exp(prior)
        return np.asarray(np.linalg.eigh(np.diag(share) - np.outer(share, share))[1])

    def _penalised(self) -> Array:
        mask = np.ones((self._n_columns, self._rank + 1))
        mask[:, -1] = 0.0
        return self._backend.asarray(mask.ravel(), self._backend.xp.float64)

    def _walkers(
        self, split: np.ndarray[Any, Any], target: np.ndarray[Any, Any], queue: list[list[tuple[int, float]]]
    ) -> _Walkers:
        backend = self._backend
        xp, present = backend.xp, np.unique(split)
        bases = [self._bases[int(s)] for s in present]
        of_parts = (
            [basis.mean_x - self._shift for basis in bases],
            [basis.scale for basis in bases],
            [xp.concat([basis.values, backend.asarray([basis.weight], xp.float64)]) for basis in bases],
            [backend.asarray(self._turn[int(s)]) for s in present],
        )
        at = backend.indices(np.searchsorted(present, split))
        return _Walkers(split, target, queue, *(xp.take(xp.stack(rows), at, axis=0) for rows in of_parts))

    def _log_prior(self, split: int) -> np.ndarray[Any, Any]:
        """Return the intercepts ([T]) of the training part's prevalences, classes weighted."""
        positive, weight = self._objective.training_weight[split, :, 1], np.repeat(self._weight(split), self._n_columns)
        lacking = np.flatnonzero((positive <= 0) | (positive >= weight))
        if lacking.size:
            whole = split == self._objective.fold_weight.size
            where = "the training rows" if whole else f"the rows outside fold {split}"
            raise InputError(
                f"target {lacking[0]} is the same in all of {where}: drop it, or use fewer or stratified folds"
            )
        share = positive / weight
        return np.asarray(np.log(share) if self._n_columns > 1 else np.log(share / (1 - share)))

    def _weight(self, split: int) -> np.ndarray[Any, Any]:
        """Return the sum of the training rows' weights, those of their classes in them, for each problem ([P])."""
        return np.asarray(self._objective.training_weight[split].reshape(self._n_problems, -1).sum(axis=1))
