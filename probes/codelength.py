r"""Online codelength: how many bits the labels of the training rows take, for someone who sees the activations.

Blocks of rows are sent one after another. The first costs :math:`\log_2 C` bits a row, C being the number of classes;
each further one is coded by the probe of all blocks before it:

.. math:: L = n_1 \log_2 C - \sum_{k \ge 1} \sum_{i \in \text{block } k+1} \log_2 p_{\theta_k}(y_i \mid x_i)

Voita & Titov (2020), "Information-theoretic probing with minimum description length", EMNLP, arXiv 2003.12298,
on the online (prequential) code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .backend import to_numpy
from .logistic import logistic_path
from .objective import Kind
from .problem import Problem
from .ridge import alpha_array
from .rows import HeldRows, Rows
from .score import score_rows
from .statistics import accumulate

SHARES = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Shares of the training rows at which blocks end (Voita & Titov 2020)."""


@dataclass(frozen=True, slots=True, eq=False)
class Codelength:
    """Bits for the labels of all training rows; P is the number of targets, or 1 for the classes of one question.

    Attributes
    ----------
    bits
        float64 ``[P]``: L, the online code by probes.
    uniform_bits
        float64 ``[P]``: a code that knows the number of classes only.
    prior_bits
        float64 ``[P]``: the online code by the shares of the classes alone. Rare labels compress by these, whatever
        the activations know; what the probe saves is the difference from here.
    blocks
        int64 ``[K]``: rows per block.
    """

    bits: NDArray[np.float64]
    uniform_bits: NDArray[np.float64]
    prior_bits: NDArray[np.float64]
    blocks: NDArray[np.int64]

    @property
    def compression(self) -> NDArray[np.float64]:
        """Uniform bits over bits, float64 ``[P]``: 1 if nothing is known."""
        return self.uniform_bits / self.bits

    @property
    def total_compression(self) -> float:
        """Uniform bits over bits of all targets together."""
        return float(self.uniform_bits.sum() / self.bits.sum())


def online_codelength(
    rows: Rows, problem: Problem, alpha: Any, *, seed: int = 0, device: str | None = None
) -> Codelength:
    """Compute the online codelength of the labels by logistic probes.

    The Gram products of a row are computed once: the statistics of a prefix are the sums of its blocks'.
    A target that is the same in all of a prefix is coded uniformly in the next block too, and so are all classes of
    one question while one of them is missing.

    Parameters
    ----------
    rows
        The layer's activations.
    problem
        Targets, training rows and groups; blocks hold whole groups. Test rows are not used.
    alpha : float, or array of shape [T]
        Penalties on standardised activations, the same for all prefixes. If they were chosen on these labels, the
        choice belongs to the code, at log₂ of the number of candidates for each; it is not counted.
    seed
        Of the order of the groups, which does not depend on the order of the rows.
    device
        Torch device to compute on; left out, the chunks' own namespace and device.

    Raises
    ------
    InputError
        If labels are numbers, penalties do not fit the targets, or there is one group only.

    Warns
    -----
    UnconvergedWarning
        If a probe did not converge.
    """
    if problem.kind == "regression":
        raise InputError(
            f"labels {problem.labels!r} are numbers: their codelength depends on the precision they are sent with; "
            "compare layers by r2"
        )
    alpha = _penalties(problem, alpha)
    block = _blocks(problem, seed)
    n_blocks, n_targets = int(block.max()) + 1, len(problem.targets)
    kind: Kind = "multilabel" if problem.per_target else "multinomial"
    rows = HeldRows(rows)
    # Nothing is fitted to the last block, which is about half of the rows.
    folds = np.where(block < n_blocks - 1, block, -1)
    stats = accumulate(rows, None, folds, n_folds=n_blocks - 1, device=device)
    # Left at zero, a probe gives all classes the same probability: the uniform code.
    weights, bias = np.zeros((n_blocks, n_targets, rows.hidden_size)), np.zeros((n_blocks, n_targets))
    shares = np.empty((n_blocks, n_targets))
    for k in range(n_blocks):
        before = (block >= 0) & (block < k)
        y = problem.y[before]
        # Laplace's rule of succession.
        shares[k] = (y.sum(axis=0) + 1) / (len(y) + _n_classes(problem))
        varies = (y != y[:1]).any(axis=0)
        learned = varies if problem.per_target else varies & varies.all()
        if not learned.any():
            continue
        candidates, choice = np.unique(alpha[learned], return_inverse=True)
        path = logistic_path(
            rows,
            problem.y[:, learned],
            candidates,
            kind=kind,
            folds=np.where(before, block, -1),
            stats=stats.first(k),
        )
        at = choice, np.arange(choice.size)
        weights[k, learned], bias[k, learned] = to_numpy(path.weights)[at], to_numpy(path.bias)[at]
    training = block >= 0
    logits = score_rows(rows, block, weights, bias, device)[training]
    y, n_questions = problem.y[training], n_targets if problem.per_target else 1
    prior = np.log(shares / (1 - shares)) if problem.per_target else np.log(shares)
    return Codelength(
        bits=_bits(problem, y, logits),
        uniform_bits=np.full(n_questions, len(y) * np.log2(_n_classes(problem))),
        prior_bits=_bits(problem, y, prior[block[training]]),
        blocks=np.bincount(block[training]),
    )


def _n_classes(problem: Problem) -> int:
    return 2 if problem.per_target else len(problem.targets)


def _penalties(problem: Problem, alpha: Any) -> NDArray[np.float64]:
    given = alpha_array(alpha)
    n_targets = len(problem.targets)
    if given.size not in (1, n_targets) or (not problem.per_target and np.unique(given).size > 1):
        wanted = f"one, or one for each of {n_targets} targets" if problem.per_target else "one for all classes"
        raise InputError(f"{given.size} penalties for the codelength of {problem.labels!r}: give {wanted}")
    return np.broadcast_to(given, (n_targets,))


def _blocks(problem: Problem, seed: int) -> NDArray[np.int64]:
    """Return the block of every training row, and -1 for others: whole groups in random order, cut at the shares."""
    training = problem.split.folds >= 0
    _, code, size = np.unique(problem.groups[training], return_inverse=True, return_counts=True)
    if size.size < 2:
        raise InputError(f"the training rows of {problem.labels!r} are one group: an online code needs two or more")
    order = np.random.default_rng(seed).permutation(size.size)
    start = np.empty_like(size)
    start[order] = np.cumsum(size[order]) - size[order]
    _, block_of = np.unique(np.searchsorted(np.multiply(SHARES, size.sum()), start, side="right"), return_inverse=True)
    blocks = np.full(len(training), -1, dtype=np.int64)
    blocks[training] = block_of[code]
    return blocks


def _bits(problem: Problem, y: NDArray[np.float64], logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -log₂ p of the labels under a sigmoid per target or one softmax, summed over rows; float64 ``[P]``."""
    from scipy.special import log_expit, log_softmax

    if problem.per_target:
        nats = -log_expit(np.where(y > 0, logits, -logits)).sum(axis=0)
    else:
        nats = -(y * log_softmax(logits, axis=1)).sum(keepdims=True)[0]
    return np.asarray(nats / np.log(2))
