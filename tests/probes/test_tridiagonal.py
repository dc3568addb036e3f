"""Gram matrices become tridiagonal, where they are of full rank, by routines that let other threads run."""

import sys
import threading
import time

import numpy as np
import pytest
import torch

from sonde.probes import lapack
from sonde.probes.backend import to_numpy
from sonde.probes.eigenbasis import Eigenbasis, eigenbases
from sonde.probes.held_out import Mixture
from sonde.probes.ridge import ridge_cv
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate
from sonde.probes.tridiagonal import TridiagonalBasis, ridge_bases


def positive_definite(n: int) -> np.ndarray:
    x = np.random.default_rng(n).standard_normal((2 * n, n)) * np.logspace(0, -3, n)
    return x.T @ x


@pytest.mark.parametrize("n", [1, 2, 3, 65, 200])
def test_a_matrix_is_its_tridiagonal_form_turned_back(n: int) -> None:
    matrix = positive_definite(n)
    before = matrix.copy()
    q, diagonal, below = lapack.tridiagonalise(matrix)
    np.testing.assert_array_equal(matrix, before)
    assert below[-1] == 0
    t = np.diag(diagonal) + np.diag(below[:-1], -1) + np.diag(below[:-1], 1)
    np.testing.assert_allclose(q.T @ q, np.eye(n), atol=1e-12)
    np.testing.assert_allclose(q @ t @ q.T, matrix, atol=1e-12 * np.abs(matrix).max())
    factors = lapack.factorise(diagonal, below)
    assert factors is not None
    rows = np.random.default_rng(0).standard_normal((3, n))
    solved = rows.copy()
    lapack.substitute(factors, solved)
    np.testing.assert_allclose(solved, np.linalg.solve(t, rows.T).T, rtol=1e-6)


def test_what_is_not_positive_definite_has_no_factors() -> None:
    assert lapack.factorise(np.array([1.0, 1.0]), np.array([2.0, 0.0])) is None
    assert lapack.factorise(np.array([1.0, 0.0]), np.array([0.0, 0.0])) is None


def test_arrays_that_do_not_belong_together_never_reach_lapack() -> None:
    factors = lapack.factorise(np.ones(4), np.zeros(4))
    assert factors is not None
    for call in (
        lambda: lapack.factorise(np.ones(4), np.zeros(3)),
        lambda: lapack.tridiagonalise(np.ones((3, 4))),
        lambda: lapack.substitute(factors, np.ones((2, 5))),
        lambda: lapack.substitute(factors, np.ones((2, 4), np.float32)),
        lambda: lapack.substitute(factors, np.ones((4, 2)).T),
    ):
        with pytest.raises(ValueError, match="shape"):
            call()


def test_other_threads_run_while_a_matrix_is_decomposed() -> None:
    matrix, running, counted = positive_definite(900), threading.Event(), [0]
    interval = sys.getswitchinterval()

    def count() -> None:
        while running.is_set():
            counted[0] += 1
            time.sleep(0)

    running.set()
    thread = threading.Thread(target=count)
    thread.start()
    try:
        sys.setswitchinterval(60)  # who waits for the lock to be taken away waits for long
        time.sleep(0.01)
        before = counted[0]
        lapack.tridiagonalise(matrix)
        assert counted[0] > before + 100
    finally:
        sys.setswitchinterval(interval)
        running.clear()
        thread.join()


@pytest.mark.parametrize("namespace", [np.asarray, torch.from_numpy])
def test_solutions_are_those_of_the_eigenbasis_for_shared_and_for_own_penalties(namespace) -> None:
    rng = np.random.default_rng(1)
    x, y, folds = rng.standard_normal((90, 7)) + 3, rng.standard_normal((90, 4)), np.arange(90) % 3
    x[:, 2] = 5.0  # constant: it stands aside
    stats = accumulate(ArrayRows(namespace(x)), y, folds)
    for tridiagonal, diagonal in zip(ridge_bases(stats), eigenbases(stats), strict=True):
        assert isinstance(tridiagonal, TridiagonalBasis)
        columns = stats.total().sxy
        for alphas in (np.array([[0.1], [10.0]]), np.array([[1.0, 2.0, 1.0, 5.0]])):
            ours, theirs = (
                to_numpy(basis.expand(basis.shrink(basis.project(columns), alphas)))
                for basis in (tridiagonal, diagonal)
            )
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
            assert ours.shape == (len(alphas), 4, 7)
            assert not ours[..., 2].any()


def test_without_full_rank_or_scipys_routines_there_are_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, folds = rng.standard_normal((60, 6)), np.arange(60) % 3
    twice = np.concatenate([x, x[:, :1]], axis=1)
    assert isinstance(ridge_bases(accumulate(ArrayRows(twice), None, folds))[0], Eigenbasis)
    monkeypatch.setattr(lapack, "available", lambda: False)
    assert isinstance(ridge_bases(accumulate(ArrayRows(x), None, folds))[0], Eigenbasis)


def test_few_sums_of_many_penalties_matter_and_errors_are_right_all_the_same() -> None:
    rng = np.random.default_rng(3)
    alphas = np.logspace(-1, 7, 20)
    x = (rng.standard_normal((400, 40)) @ rng.standard_normal((40, 40))).astype(np.float32)
    y, folds = x[:, :30] + rng.standard_normal((400, 30)) * np.logspace(-1, 3, 30), np.arange(400) % 5
    stats = accumulate(ArrayRows(x), y, folds)
    mixture = Mixture.of(alphas, ridge_bases(stats)[-1].greatest, float(np.finfo(np.float32).eps))
    assert mixture.n_main < 16
    np.testing.assert_allclose(mixture.of_alphas @ mixture.of_alphas.T, np.eye(20), atol=1e-12)
    exact = ridge_cv(accumulate(ArrayRows(x.astype(float)), y, folds), alphas)
    fit = ridge_cv(stats, alphas)
    np.testing.assert_allclose(fit.cv_error, exact.cv_error, rtol=2e-3)
    np.testing.assert_array_equal(fit.alpha, exact.alpha)
