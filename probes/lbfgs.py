"""L-BFGS for many convex problems at once, which share every evaluation of their losses."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backend import Array, Backend, to_numpy

_SUFFICIENT = 1e-4
"""Armijo: the share of the promised decrease that a step must bring."""

_FLAT = 0.8
"""Approximate Wolfe: the slope after a step, against the slope before it, at which a step may end."""

_TINY = float(np.finfo(np.float64).tiny)

_MAX_REJECTIONS = 10
"""Steps refused in a row after which a problem has stalled: shorter ones are below the precision of its loss."""


class BatchedLBFGS:
    r"""Minimise :math:`f_p(v) = \ell_p(v) + \tfrac12 \alpha_p \lVert v \rVert^2` for problems p = 1 … P.

    Every problem has its own direction, step, line search and history; each call of `tell` is one evaluation of all of
    them. Directions are the two-loop recursion (Nocedal & Wright, "Numerical Optimization", 2nd ed., algorithm 7.4)
    with the initial matrix :math:`H_0 = (h + \alpha)^{-1}`, h being the diagonal of the loss's curvature at the point,
    scaled down where the newest pair shows a greater curvature (eq. 7.20 in the metric of :math:`H_0`): where few rows
    are still undecided, steps without it are refused one after the other.
    The history stays valid when α changes, as the penalty's part of gradient differences is known.
    Steps end at Armijo's condition, or, where rounding hides the decrease, at the approximate Wolfe condition on slopes
    (Hager & Zhang 2005, eq. 4.1); a refused step is cut by the secant of the slopes.

    Parameters
    ----------
    backend : Backend
    start : float64 array of shape [P, M]
    alpha : float64 array of shape [P], numpy
    penalised : float64 array of shape [M]
        1 where the penalty applies, 0 where not (intercepts).
    precision : float
        Relative rounding error of the losses.
    memory : int
        Pairs of the history.

    Attributes
    ----------
    point : float64 array of shape [P, M]
        Where each problem stands: its last accepted trial.
    accepted : bool array of shape [P], numpy
        Whether the trial last told of became the point.
    stalled : bool array of shape [P], numpy
        Whether the line search has given up at this α.
    """

    def __init__(
        self,
        backend: Backend,
        start: Array,
        alpha: np.ndarray[Any, Any],
        penalised: Array,
        *,
        precision: float,
        memory: int = 16,
    ) -> None:
        n_problems, size = start.shape
        self._backend, self._memory, self._precision = backend, memory, precision
        self._penalised = penalised
        self.point = start
        self.alpha = alpha.copy()
        self.accepted = np.ones(n_problems, dtype=bool)
        self.stalled = np.zeros(n_problems, dtype=bool)
        self._direction = backend.zeros(n_problems, size)
        self._step = np.zeros(n_problems)
        self._slope = np.zeros(n_problems)
        self._rejections = np.zeros(n_problems, dtype=np.int64)
        self._loss: np.ndarray[Any, Any] | None = None
        self._gradient = backend.zeros(n_problems, size)
        self._curvature = backend.zeros(n_problems, size)
        # Newest pair last. Of a pair: point difference s, gradient difference y at the present α, and of the products
        # s·y the loss's part and s·s of the penalty's, whose sum is s·y.
        self._pairs: list[tuple[Array, Array, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []

    def trial(self) -> Array:
        """Return the points to evaluate next, float64 of shape [P, M]."""
        return self.point + self._column(self._step) * self._direction

    def jump(self, point: Array) -> None:
        """Go to `point` whatever its value; it must be evaluated next."""
        self.point, self._pairs, self._loss = point, [], None
        self._step[:] = 0.0

    def tell(self, loss: np.ndarray[Any, Any], gradient: Array, curvature: Array) -> None:
        """Take the evaluation of `trial` and accept or refuse it.

        Parameters
        ----------
        loss : float64 array of shape [P], numpy
        gradient, curvature : float64 arrays of shape [P, M]
            Of the loss alone, without the penalty.
        """
        trial = self.trial()
        if self._loss is None:
            self._loss, self._gradient, self._curvature = loss, gradient, curvature
            return
        before = self._objective(self._loss, self.point)
        after = self._objective(loss, trial)
        slope = self._dot(gradient + self._column(self.alpha) * self._penalised * trial, self._direction)
        enough = after <= before + _SUFFICIENT * self._step * self._slope
        level = (after <= before + self._precision * np.abs(before)) & (slope <= _FLAT * np.abs(self._slope))
        self.accepted = enough | level
        self._refuse(slope)
        take = self._column(self.accepted.astype(np.float64)) > 0
        self._remember(trial, gradient)
        xp = self._backend.xp
        self.point = xp.where(take, trial, self.point)
        self._gradient = xp.where(take, gradient, self._gradient)
        self._curvature = xp.where(take, curvature, self._curvature)
        self._loss = np.where(self.accepted, loss, self._loss)

    def decrement(self) -> np.ndarray[Any, Any]:
        """Return the gradient norm in the metric of H₀, √(gᵀH₀g), of each problem at its point; shape [P]."""
        return self.norm(self._full_gradient(), self._curvature)

    def norm(self, gradient: Array, curvature: Array) -> np.ndarray[Any, Any]:
        """Return √(gᵀH₀g) of gradients and curvatures of shape [P, M] at the present α; shape [P]."""
        return np.asarray(np.sqrt(self._dot(gradient, gradient / self._hessian(curvature))))

    def settled(self) -> np.ndarray[Any, Any]:
        """Whether each problem has stalled where the decrease still promised, ½gᵀH₀g, is within its rounding error."""
        assert self._loss is not None
        rounding = self._precision * np.abs(self._objective(self._loss, self.point))
        return np.asarray(self.stalled & (0.5 * self.decrement() ** 2 <= rounding))

    def retarget(self, problems: np.ndarray[Any, Any], alpha: np.ndarray[Any, Any]) -> None:
        """Give some problems (indices) another α; they go on from where they stand."""
        if problems.size:
            at, xp = self._backend.indices(problems), self._backend.xp
            change = self._column(alpha - self.alpha[problems]) * self._penalised
            for s, y, _, _ in self._pairs:
                y[at, :] += change * xp.take(s, at, axis=0)
        self.alpha[problems] = alpha
        self.accepted[problems] = True
        self.stalled[problems] = False
        self._rejections[problems] = 0

    def keep(self, problems: np.ndarray[Any, Any]) -> None:
        """Drop all problems but these (ascending indices)."""
        at, xp = self._backend.indices(problems), self._backend.xp
        for name in ("point", "_direction", "_gradient", "_curvature"):
            setattr(self, name, xp.take(getattr(self, name), at, axis=0))
        for name in ("alpha", "accepted", "stalled", "_step", "_slope", "_rejections", "_loss"):
            setattr(self, name, getattr(self, name)[problems])
        self._pairs = [
            (xp.take(s, at, axis=0), xp.take(y, at, axis=0), sy[problems], ss[problems]) for s, y, sy, ss in self._pairs
        ]

    def aim(self) -> None:
        """Choose the next direction and step of every problem whose last trial was accepted."""
        gradient = self._full_gradient()
        hessian = self._hessian(self._curvature)
        q = self._backend.xp.asarray(gradient, copy=True)
        scaled: list[tuple[Array, Array, np.ndarray[Any, Any], np.ndarray[Any, Any]]] = []
        for s, y, sy, ss in reversed(self._pairs):
            rho = self._rho(sy, ss)
            a = rho * self._dot(s, q)
            scaled.append((s, y, rho, a))
            q -= self._column(a) * y
        q /= hessian
        q *= self._column(self._gain(hessian))
        for s, y, rho, a in reversed(scaled):
            q += self._column(a - rho * self._dot(y, q)) * s
        slope = -self._dot(gradient, q)
        uphill = self.accepted & ~(slope < 0)
        if uphill.any():  # only where rounding has spoilt the history
            flat = self._column(uphill.astype(np.float64)) > 0
            q = self._backend.xp.where(flat, gradient / hessian, q)
            slope = np.where(uphill, -self._dot(gradient, q), slope)
        take = self._column(self.accepted.astype(np.float64)) > 0
        self._direction = self._backend.xp.where(take, -q, self._direction)
        self._slope = np.where(self.accepted, slope, self._slope)
        self._step = np.where(self.accepted, 1.0, self._step)

    def _refuse(self, slope: np.ndarray[Any, Any]) -> None:
        """Shorten the steps of trials that were not accepted, by the secant of the slopes at either end."""
        refused = ~self.accepted
        if refused.any():
            rise = np.where(slope > self._slope, slope - self._slope, 1.0)
            share = np.clip(np.where(slope > 0, -self._slope / rise, 0.5), 0.1, 0.5)
            self._step = np.where(refused, self._step * share, self._step)
        self._rejections = np.where(refused, self._rejections + 1, 0)
        self.stalled |= self._rejections >= _MAX_REJECTIONS

    def _remember(self, trial: Array, gradient: Array) -> None:
        s, y = trial - self.point, gradient - self._gradient
        sy, ss = self._dot(s, y), self._dot(self._penalised * s, s)
        # A problem whose trial was refused puts in an empty pair, which has no effect.
        sy, ss = np.where(self.accepted, sy, 0.0), np.where(self.accepted, ss, 0.0)
        y += self._column(self.alpha) * self._penalised * s
        self._pairs = [*self._pairs, (s, y, sy, ss)][-self._memory :]

    def _rho(self, sy: np.ndarray[Any, Any], ss: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        total = sy + self.alpha * ss
        usable = (sy > 0) & (total > _TINY)
        return np.where(usable, 1.0 / np.where(usable, total, 1.0), 0.0)

    def _gain(self, hessian: Array) -> np.ndarray[Any, Any]:
        """Return by what to multiply H₀ for it to have the curvature of the newest pair, at most 1; shape [P]."""
        if not self._pairs:
            return np.ones(self.alpha.size)
        _, y, sy, ss = self._pairs[-1]
        size = self._dot(y, y / hessian)
        usable = (self._rho(sy, ss) > 0) & (size > _TINY)
        return np.where(usable, np.minimum(1.0, (sy + self.alpha * ss) / np.where(usable, size, 1.0)), 1.0)

    def _full_gradient(self) -> Array:
        return self._gradient + self._column(self.alpha) * self._penalised * self.point

    def _hessian(self, curvature: Array) -> Array:
        return curvature + self._column(self.alpha) * self._penalised

    def _objective(self, loss: np.ndarray[Any, Any], point: Array) -> np.ndarray[Any, Any]:
        return np.asarray(loss + 0.5 * self.alpha * self._dot(self._penalised * point, point))

    def _dot(self, a: Array, b: Array) -> np.ndarray[Any, Any]:
        return np.asarray(to_numpy(self._backend.xp.linalg.vecdot(a, b)))

    def _column(self, values: np.ndarray[Any, Any]) -> Array:
        return self._backend.asarray(values, self._backend.xp.float64)[:, None]
