"""Newton's method for several convex functions of a few numbers each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_STEPS = 100


def minimise(
    derivatives: Callable[[Floats, NDArray[np.intp]], tuple[Floats, Floats, Floats]], theta: Floats, tolerance: float
) -> Floats:
    """Minimise convex functions of theta [p, k] by Newton's method, damped where a step does not fall (Levenberg).

    ``derivatives(theta, which)`` gives losses [w], gradients [w, k] and Hessians [w, k, k] of the functions ``which``
    at the theta [w, k] of these.
    """
    theta, which = theta.copy(), np.arange(len(theta))
    loss, gradient, hessian = derivatives(theta, which)
    # A little is always needed: far from the minimum, or of constant scores, the Hessian may be singular.
    least = damping = 1e-12 * (1 + np.abs(loss))
    for _ in range(_MAX_STEPS):
        values, vectors = np.linalg.eigh(hessian)
        turned = (vectors.mT @ gradient[:, :, None])[:, :, 0] / (np.maximum(values, 0) + damping[:, None])
        step = (vectors @ turned[:, :, None])[:, :, 0]
        decrease = np.vecdot(gradient, step)
        near = decrease <= tolerance * (1 + np.abs(loss))
        # The error squares with every step: this is the last that shows.
        theta[which[near]] -= step[near]
        if near.all():
            break
        which, step, decrease, loss, damping, least, gradient, hessian = (
            a[~near] for a in (which, step, decrease, loss, damping, least, gradient, hessian)
        )
        found = derivatives(theta[which] - step, which)
        better = found[0] <= loss - 1e-4 * decrease
        theta[which[better]] -= step[better]
        loss, gradient, hessian = (
            np.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)
            for new, old in zip(found, (loss, gradient, hessian), strict=True)
        )
        damping = np.where(better, np.maximum(damping / 100, least), damping * 100)
    return theta
