"""The online code costs what a loop of scikit-learn probes would spend, one block after the other."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Split
from sonde.probes.codelength import SHARES, online_codelength

Floats = np.ndarray[Any, Any]


def blocks_of(problem: Problem, seed: int) -> list[list[int]]:
    """Deal whole groups in random order until a share of the training rows is reached; the first group always."""
    rows: dict[str, list[int]] = {}
    for row in np.flatnonzero(problem.split.folds >= 0).tolist():
        rows.setdefault(problem.groups[row], []).append(row)
    names = sorted(rows)
    n_rows, n_dealt = sum(map(len, rows.values())), 0
    blocks: list[list[int]] = [[]]
    ends = list(SHARES)
    for i in np.random.default_rng(seed).permutation(len(names)):
        reached = [end for end in ends if n_dealt >= end * n_rows]
        if reached:
            ends = ends[len(reached) :]
            blocks.append([])
        blocks[-1] += rows[names[i]]
        n_dealt += len(rows[names[i]])
    return blocks


def bits_of(y: Floats, x: Floats, y_next: Floats, x_next: Floats, alpha: float) -> float:
    """What the labels of the next block cost by scikit-learn's probe of the rows so far."""
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(C=1 / alpha, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    model.fit(scaler.transform(x), y)
    log_p = model.predict_log_proba(scaler.transform(x_next))
    return -float(log_p[np.arange(len(y_next)), np.searchsorted(model.classes_, y_next)].sum()) / np.log(2)


def reference(problem: Problem, x: Floats, alpha: Floats, seed: int) -> tuple[Floats, Floats]:
    """Bits by probes and by shares with one of each class added, for every question."""
    x = x.astype(np.float64)
    blocks = blocks_of(problem, seed)
    multiclass = problem.kind == "multiclass"
    questions = problem.y.argmax(axis=1)[:, None] if multiclass else problem.y.astype(int)
    n_classes = len(problem.targets) if multiclass else 2
    bits, prior = np.zeros(questions.shape[1]), np.zeros(questions.shape[1])
    for t, y in enumerate(questions.T):
        for k, block in enumerate(blocks):
            before = [row for earlier in blocks[:k] for row in earlier]
            count = np.bincount(y[before], minlength=n_classes) + 1
            prior[t] -= np.log2(count[y[block]] / count.sum()).sum()
            if len(set(y[before])) < n_classes:
                bits[t] += len(block) * np.log2(n_classes)
            else:
                bits[t] += bits_of(y[before], x[before], y[block], x[block], alpha[t])
    return bits, prior


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("labels", ["entailment", "colour", "objects"])
def test_bits_are_those_of_a_loop_over_scikit_learn(labels: str, device: Any, example: Any) -> None:
    problem, x = Problem.of(example.store, labels), example.x(5)
    alpha = np.array([3.0, 30.0, 3.0]) if labels == "objects" else np.array([10.0])
    found = online_codelength(ArrayRows(x, 37), problem, alpha, seed=1, device=device)
    bits, prior = reference(problem, x, alpha, 1)
    np.testing.assert_allclose(found.bits, bits, rtol=1e-4)
    np.testing.assert_allclose(found.prior_bits, prior)
    n_rows = (problem.split.folds >= 0).sum()
    np.testing.assert_allclose(found.uniform_bits, n_rows * np.log2(3 if labels == "colour" else 2))
    np.testing.assert_allclose(found.compression, found.uniform_bits / bits, rtol=1e-4)
    assert found.total_compression == pytest.approx(found.uniform_bits.sum() / bits.sum(), rel=1e-4)
    assert found.blocks.tolist() == [len(block) for block in blocks_of(problem, 1)]


def make_problem(y: Floats, kind: Any, group_size: int = 4) -> Problem:
    n = len(y)
    groups = np.array([f"g{i // group_size}" for i in range(n)])
    folds = (np.arange(n) // group_size % 3).astype(np.int16)
    split = Split(np.zeros(n, dtype=bool), folds, "hash", 3)
    return Problem("asked", kind, tuple(map(str, range(y.shape[1]))), y.astype(float), split, groups, {})


def test_blocks_end_at_the_shares_of_voita_and_titov() -> None:
    rng = np.random.default_rng(0)
    problem = make_problem(rng.random((8000, 1)) > 0.5, "binary", group_size=1)
    found = online_codelength(ArrayRows(rng.normal(size=(8000, 3))), problem, 100.0)
    ends = np.cumsum(found.blocks) / 8000
    np.testing.assert_allclose(ends, [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1])


KINDS = ["binary", "multiclass", "multilabel"]


def random_labels(kind: str) -> Floats:
    rng = np.random.default_rng(1)
    if kind == "multiclass":
        return np.eye(4)[rng.integers(4, size=2000)]
    return (rng.random((2000, 1 if kind == "binary" else 5)) > 0.5).astype(float)


@pytest.mark.parametrize("kind", KINDS)
def test_independent_labels_are_not_compressed(kind: Any) -> None:
    y, x = random_labels(kind), np.random.default_rng(2).normal(size=(2000, 6))
    found = online_codelength(ArrayRows(x), make_problem(y, kind), 100.0)
    np.testing.assert_allclose(found.compression, 1, atol=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_the_activations_spell_out_are_compressed_many_times(kind: Any) -> None:
    y = random_labels(kind)
    x = np.hstack([y, np.random.default_rng(2).normal(size=(2000, 6))])
    found = online_codelength(ArrayRows(x), make_problem(y, kind), 0.1)
    assert found.compression.min() > 10


def test_rare_labels_are_compressed_by_their_rarity_and_that_is_told() -> None:
    rng = np.random.default_rng(3)
    problem = make_problem(rng.random((2000, 1)) > 0.95, "binary")
    found = online_codelength(ArrayRows(rng.normal(size=(2000, 3))), problem, 100.0)
    assert found.total_compression > 2.5
    np.testing.assert_allclose(found.bits, found.prior_bits, rtol=0.1)


def test_rows_may_come_in_any_order_and_test_rows_do_not_matter(example: Any) -> None:
    problem, x = Problem.of(example.store, "entailment"), example.x(5).copy()
    x[problem.split.test] = np.nan
    order = np.random.default_rng(4).permutation(len(x))
    split = replace(problem.split, test=problem.split.test[order], folds=problem.split.folds[order])
    shuffled = replace(problem, y=problem.y[order], split=split, groups=problem.groups[order])
    one, other = online_codelength(ArrayRows(x), problem, 10.0), online_codelength(ArrayRows(x[order]), shuffled, 10.0)
    np.testing.assert_allclose(other.bits, one.bits, rtol=1e-5)
    assert (online_codelength(ArrayRows(x), problem, 10.0, seed=1).bits != one.bits).all()


def test_what_has_no_codelength_is_an_error_with_the_way_out(example: Any) -> None:
    rows = ArrayRows(example.x(5))
    size, colour, objects = (Problem.of(example.store, labels) for labels in ("size", "colour", "objects"))
    one_group = replace(objects, groups=np.full(len(objects.groups), "g"))
    for problem, alpha, text in (
        (size, 1.0, "'size' are numbers: their codelength depends on the precision"),
        (colour, [1.0, 2.0, 3.0], "3 penalties for the codelength of 'colour': give one for all classes"),
        (objects, [1.0, 2.0], "2 penalties for the codelength of 'objects': give one, or one for each of 3 targets"),
        (objects, 0.0, "alpha 0.0 is not positive"),
        (one_group, 1.0, "the training rows of 'objects' are one group"),
    ):
        with pytest.raises(InputError, match=text):
            online_codelength(rows, problem, alpha)
