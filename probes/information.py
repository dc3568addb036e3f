"""Usable information: how many bits about the labels a linear probe can take from the activations."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .bootstrap import Difference, paired_difference
from .metrics import score_probabilities
from .problem import Problem


def v_information(
    problem: Problem,
    probabilities: NDArray[np.float64],
    draws: NDArray[Any],
    *,
    given: NDArray[np.float64] | None = None,
    level: float = 0.95,
) -> Difference:
    r"""Compute the V-information of the activations about the labels, in bits per test row.

    .. math:: I_V(X \to Y) = H_V(Y) - H_V(Y \mid X)

    Both entropies are mean log-losses on the test rows: of the class shares in training, the best answer of a probe
    that sees nothing, and of the probe's probabilities. It is below zero where the probe does worse than the shares,
    by overfitting or bad calibration.

    Parameters
    ----------
    problem
        Targets and test rows.
    probabilities
        ``[sample, target]``, of a probe fitted (and calibrated) on training rows; only test rows are looked at.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap.
    given
        ``[sample, target]``: probabilities of a probe of baseline activations. Then the result is the conditional
        information :math:`I_V(X \to Y \mid B) = H_V(Y \mid B) - H_V(Y \mid B, X)`, if `probabilities` are those of a
        probe that sees both. Left out, the shares in training.
    level
        Coverage of the interval.

    Returns
    -------
    Difference
        Of shape [P + 1]: the P = T targets, or the one question that all classes are, and then their sum.

    Raises
    ------
    InputError
        If labels are numbers, or a score is no probability.

    References
    ----------
    Xu et al. (2020), "A theory of usable information under computational constraints", ICLR, arXiv 2002.10689,
    definitions 2 and 3; Hewitt et al. (2021), "Conditional probing: measuring usable information beyond a baseline",
    EMNLP, arXiv 2109.09234.
    """
    if problem.kind == "regression":
        raise InputError(f"labels {problem.labels!r} are numbers: information in bits needs classes; use r2")
    test = problem.split.test
    truth = problem.truth(test)

    def entropy(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        at_once, drawn = (score_probabilities(problem.kind, truth, p, weights)["log_loss"] for weights in (None, draws))
        return _with_sum(at_once), _with_sum(drawn)

    answer = np.tile(problem.prior(), (int(test.sum()), 1)) if given is None else given[test]
    (before, before_draws), (after, after_draws) = entropy(answer), entropy(probabilities[test])
    return paired_difference(before, after, before_draws, after_draws, level)


def _with_sum(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return bits, and behind them their sum over the targets, on the last axis."""
    return np.asarray(np.concatenate([nats, nats.sum(axis=-1, keepdims=True)], axis=-1) / np.log(2))
