"""The control task: labels that only a probe which memorises its inputs can learn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .problem import Problem


@dataclass(frozen=True, slots=True, eq=False)
class ControlTask:
    """A problem of random labels, one for each type of input.

    Attributes
    ----------
    problem
        Of the same rows in the same parts, so that its scores are paired with those of the real problem.
    coverage
        Share of the test rows whose type is among the training rows; on the others no probe beats chance.
    """

    problem: Problem
    coverage: float


def control_task(problem: Problem, types: Sequence[str], seed: int = 0) -> ControlTask:
    """Give every type of input one random label, drawn from the labels of the training rows.

    Selectivity is the score on the labels minus the score on these, by the same probe on the same activations:
    `sonde.probes.bootstrap.paired_difference` of both has its interval. A probe of low selectivity can tell the types
    apart and may have learned its task by heart.

    Parameters
    ----------
    problem
        Targets, test rows and folds. All targets of a row are drawn together.
    types : sequence of str, length N
        Type of each sample, such as its word, caption or category.
    seed
        The label of a type depends on seed and name, and on how often each label is among the training rows.

    Returns
    -------
    ControlTask
        Multi-label targets that came out the same in all of a training part are left out, as are classes that no
        type drew.

    Raises
    ------
    InputError
        If there is not one type per sample, no type is both in training and in test, or the random labels do not
        vary in a training part.

    References
    ----------
    Hewitt & Liang (2019), "Designing and interpreting probes with control tasks", EMNLP, section 2.
    """
    if len(types) != len(problem.y):
        raise InputError(f"{len(types)} types for {len(problem.y)} samples: give one per sample")
    test, training = problem.split.test, problem.split.folds >= 0
    names, code = np.unique(np.asarray(types, dtype=np.str_), return_inverse=True)
    covered = np.isin(code[test], code[training])
    if not covered.any():
        raise InputError(
            "no type of a test row is among the training rows, so nobody could know its random label: "
            "use coarser types, or a split that leaves some of each type on both sides"
        )
    labels, count = np.unique(problem.y[training], axis=0, return_counts=True)
    place = np.array([_uniform(seed, name) for name in names.tolist()]) * training.sum()
    y = labels[np.searchsorted(np.cumsum(count), place, side="right")][code]
    y[~(test | training)] = 0
    return ControlTask(_with_labels(problem, y), float(covered.mean()))


def _uniform(seed: int, name: str) -> float:
    """Return a number in [0, 1) that is drawn by seed and name alone."""
    digest = hashlib.blake2b(f"{seed}\0{name}".encode("utf-8", "surrogatepass"), digest_size=6).digest()
    return int.from_bytes(digest, "big") / 2**48


def _with_labels(problem: Problem, y: NDArray[np.float64]) -> Problem:
    folds = problem.split.folds
    parts = [(folds >= 0) & (folds != fold) for fold in range(problem.split.n_folds)]
    varies: NDArray[Any] = np.all([np.ptp(y[part], axis=0) > 0 for part in parts], axis=0)
    kept = y.any(axis=0) if problem.kind == "multiclass" else varies
    if not kept.any() or not varies[kept].all():
        raise InputError(
            f"the random labels of the control of {problem.labels!r} lack a class in a training part: "
            "use more types, or another seed"
        )
    targets = np.array(problem.targets)
    why = "its random labels are the same in all of a training part"
    left_out = problem.left_out | dict.fromkeys(targets[~kept].tolist(), why)
    return replace(problem, y=y[:, kept], targets=tuple(targets[kept].tolist()), left_out=left_out)
