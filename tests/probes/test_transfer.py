"""Each cell of the transfer matrix is a probe of one variant's training rows on another's test rows."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Split
from sonde.probes.bootstrap import cluster_weights, interval
from sonde.probes.transfer import transfer

ALPHAS = (3.0, 30.0, 1000.0)
Floats = np.ndarray[Any, Any]


def variants_of(problem: Problem) -> Floats:
    """Groups of the example have two rows: two prompts about one image."""
    return np.where(np.arange(len(problem.y)) % 2, "question", "caption")


def draws_of(problem: Problem, n: int = 20) -> Floats:
    return cluster_weights(problem.groups[problem.split.test].tolist(), n, 0)


@pytest.mark.parametrize(
    ("labels", "solver"),
    [
        ("entailment", "ridge"),
        ("entailment", "logistic"),
        ("colour", "logistic"),
        ("objects", "ridge"),
        ("size", "ridge"),
    ],
)
def test_cells_and_their_draws_are_scikit_learns(
    labels: str, solver: Any, example: Any, ask_sklearn: Any, score_with_sklearn: Any
) -> None:
    problem, x, truth = Problem.of(example.store, labels, n_folds=3), example.x(5), example.truth[labels]
    variants, draws = variants_of(problem), draws_of(problem)
    found = transfer(ArrayRows(x, 37), problem, variants, draws, solver=solver, alphas=ALPHAS)
    assert (found.variants, found.left_out) == (("caption", "question"), ())
    test = np.flatnonzero(problem.split.test)
    for i, trained in enumerate(found.variants):
        own = replace(problem.split, folds=np.where(variants == trained, problem.split.folds, -1))
        scores = np.full(truth.shape, np.nan)
        scores[test] = ask_sklearn(x, truth, own, problem.kind, solver, ALPHAS).test

        def metric(rows: Floats, scores: Floats = scores) -> float:
            by_name = score_with_sklearn(problem.kind, truth[rows], scores[rows], probabilities=False)
            return float(np.nanmean(by_name[found.metric]))

        for j, tested in enumerate(found.variants):
            here = variants[test] == tested
            assert found.value[i, j] == pytest.approx(metric(test[here]), abs=1e-5)
            drawn = [metric(np.repeat(test[here], draw[here])) for draw in draws]
            np.testing.assert_allclose(found.draws[:, i, j], drawn, atol=1e-5)
    np.testing.assert_array_equal((found.low, found.high), interval(found.draws))


def test_torch_gives_the_numbers_of_numpy(example: Any) -> None:
    problem = Problem.of(example.store, "size")
    rows, variants, draws = ArrayRows(example.x(5)), variants_of(problem), draws_of(problem)
    numpys, torchs = (transfer(rows, problem, variants, draws, device=device) for device in (None, "cpu"))
    np.testing.assert_allclose(torchs.draws, numpys.draws, atol=1e-5)


def make_problem() -> tuple[Problem, Floats, Floats]:
    """Make an answer that is coded along the first column for prompt a, along the second for prompt b."""
    rng = np.random.default_rng(0)
    image = np.arange(400) // 2
    variants = np.where(np.arange(400) % 2, "a", "b")
    answer = rng.normal(size=(200, 1))[image]
    x = 0.1 * rng.normal(size=(400, 4))
    x[np.arange(400), np.where(variants == "a", 0, 1)] += answer[:, 0]
    test = image >= 150
    split = Split(test, np.where(test, -1, image % 3).astype(np.int16), "hash", 3)
    return Problem("asked", "regression", ("asked",), answer, split, image.astype(str), {}), x, variants


def test_variants_that_code_the_answer_elsewhere_do_not_transfer() -> None:
    problem, x, variants = make_problem()
    found = transfer(ArrayRows(x), problem, variants, draws_of(problem, 100))
    assert (found.low.diagonal() > 0.95).all()
    assert (found.high[[0, 1], [1, 0]] < 0.2).all()


def test_targets_that_do_not_vary_in_some_variant_are_left_out_of_all(example: Any) -> None:
    problem = Problem.of(example.store, "objects")
    variants, draws, rows = variants_of(problem), draws_of(problem), ArrayRows(example.x(5))
    y = problem.y.copy()
    y[variants == "caption", 1] = 0
    found = transfer(rows, replace(problem, y=y), variants, draws)
    assert found.left_out == ("dog",)
    without = replace(problem, y=y[:, [0, 2]], targets=("cat", "owl"))
    np.testing.assert_array_equal(found.value, transfer(rows, without, variants, draws).value)


def test_variants_that_cannot_be_compared_are_errors_with_the_way_out() -> None:
    problem, x, variants = make_problem()
    rows, draws, test = ArrayRows(x), draws_of(problem), problem.split.test
    constant = np.where(variants[:, None] == "b", 1.0, problem.y)
    both = replace(problem, kind="multilabel", y=(constant > 0).astype(float))
    trained_only = np.where(~test & (np.arange(400) % 5 == 0), "c", variants)
    for asked, column, text in (
        (problem, variants[1:], r"variants of shape \(399,\) for 400 samples"),
        (problem, trained_only, "variant 'c' has no test row"),
        (replace(problem, y=constant), variants, "'asked' is the same in all of a training part of variant 'b'"),
        (both, variants, "no target of 'asked' varies in all parts of all variants"),
    ):
        with pytest.raises(InputError, match=text):
            transfer(rows, asked, column, draws)
