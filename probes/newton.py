"""Newton's method for several convex functions of a few numbers each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_STEPS, _LEAST = 100, 1e-12
"""Steps; and the damping that is always there: of constant scores the Hessian is singular."""


def minimise(
    derivatives: Callable[[Floats, NDArray[np.intp]], tuple[Floats, Floats, Floats]], theta: Floats, tolerance: float
) -> Floats:
    """Minimise convex functions of theta [p, k] by Newton's method, damped where a step does not fall (Levenberg).

    ``derivatives(theta, which)`` gives losses [w], gradients [w, k] and Hessians [w, k, k] of the functions ``which``
    at the theta [w, k] of these.
    """
    theta, which = theta.copy(), np.arange(len(theta))
    loss, gradient, hessian = derivatives(theta, which)
    damping = np.full(len(theta), _LEAST)
    for _ in range(_MAX_STEPS):
        # In units in which its diagonal is 1 the Hessian says how much damping is little.
        unit = np.sqrt(np.maximum(np.linalg.diagonal(hessian), 0))
        unit = np.where(unit > 0, unit, 1.0)
        values, vectors = np.linalg.eigh(hessian / (unit[:, :, None] * unit[:, None, :]))
        turned = (vectors.mT @ (gradient / unit)[:, :, None])[:, :, 0] / (np.maximum(values, 0) + damping[:, None])
        step = (vectors @ turned[:, :, None])[:, :, 0] / unit
        decrease = np.vecdot(gradient, step)
        near = decrease <= tolerance * (1 + np.abs(loss))
        # The error squares with every step: this is the last that shows.
        theta[which[near]] -= step[near]
        if near.all():
            break
        which, step, decrease, loss, damping, gradient, hessian = (
            a[~near] for a in (which, step, decrease, loss, damping, gradient, hessian)
        )
        found = derivatives(theta[which] - step, which)
        better = found[0] <= loss - 1e-4 * decrease
        theta[which[better]] -= step[better]
        loss, gradient, hessian = (
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(found, (loss, gradient, hessian), strict=True)
        )
        damping = np.where(better, np.maximum(damping / 100, _LEAST), damping * 100)
    return theta
