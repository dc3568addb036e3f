"""Fits by other libraries have the numbers of ours; those of cuML where there is a GPU."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from sonde.errors import InputError
from sonde.probes import ArrayRows, LogisticFit, Problem, RidgeFit, accumulate, libraries
from sonde.probes import logistic_cv as our_logistic_cv
from sonde.probes import ridge_cv as our_ridge_cv
from sonde.probes.backend import to_numpy

ALPHAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)
NAMESPACES = [np.asarray, torch.from_numpy]


@pytest.fixture(params=["sklearn", pytest.param("cuml", marks=pytest.mark.cuda)])
def library(request) -> str:
    try:
        libraries.load_library(request.param)
    except InputError as error:
        if request.param == "sklearn":
            raise
        pytest.skip(str(error))
    return request.param


def question(example: Any, labels: str) -> tuple[Any, Any, Any]:
    """Activations in float64, targets and folds; test rows have the fold -1."""
    problem = Problem.of(example.store, labels)
    return example.x(5).astype(np.float64), problem.y, problem.split.folds


def assert_same(theirs: RidgeFit | LogisticFit, ours: RidgeFit | LogisticFit, tol: float) -> None:
    np.testing.assert_array_equal(theirs.alphas, ours.alphas)
    np.testing.assert_array_equal(theirs.alpha, ours.alpha)
    for name in ("weights", "bias", "fold_weights", "fold_bias"):
        found, expected = getattr(theirs, name), getattr(ours, name)
        assert type(found) is type(expected)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(
            to_numpy(found), to_numpy(expected), atol=tol * np.abs(to_numpy(expected)).max(), err_msg=name
        )


@pytest.mark.parametrize("per_target", [True, False])
@pytest.mark.parametrize("labels", ["size", "objects"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_ridge_equals_ours(example, labels, per_target, namespace, library):
    x, y, folds = question(example, labels)
    x = namespace(x)
    theirs = libraries.ridge_cv(x, y, folds, ALPHAS, per_target=per_target, library=library)
    ours = our_ridge_cv(accumulate(ArrayRows(x), y, folds), ALPHAS, per_target=per_target)
    assert_same(theirs, ours, 1e-8)
    np.testing.assert_allclose(theirs.cv_error, ours.cv_error, rtol=1e-8)


@pytest.mark.parametrize(
    ("labels", "kind"), [("entailment", "multilabel"), ("objects", "multilabel"), ("colour", "multinomial")]
)
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_logistic_regression_equals_ours(example, labels, kind, namespace, library):
    x, y, folds = question(example, labels)
    x = namespace(x)
    rows = ArrayRows(x)
    theirs = libraries.logistic_cv(x, y, folds, ALPHAS, kind=kind, library=library)
    ours = our_logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, kind=kind, tol=1e-9)
    assert_same(theirs, ours, 1e-5)
    np.testing.assert_allclose(theirs.cv_loss, ours.cv_loss, rtol=1e-5)
    assert theirs.converged.shape == ours.converged.shape
    assert theirs.fold_converged.shape == ours.fold_converged.shape
    assert theirs.converged.all()
    assert theirs.fold_converged.all()


def test_a_softmax_of_two_classes_equals_ours(example, library):
    x, y, folds = question(example, "entailment")
    y, rows = y[:, 0].astype(int), ArrayRows(x)
    theirs = libraries.logistic_cv(x, y, folds, ALPHAS, kind="multinomial", library=library)
    ours = our_logistic_cv(rows, y, folds, accumulate(rows, None, folds), ALPHAS, kind="multinomial", tol=1e-9)
    assert_same(theirs, ours, 1e-5)


def test_rows_as_stores_hold_them_give_float32_probes_close_to_those_of_float64(example, library):
    x, y, folds = question(example, "objects")
    half = torch.from_numpy(x).to(torch.bfloat16)
    theirs = libraries.ridge_cv(half, y, folds, ALPHAS, library=library)
    assert theirs.weights.dtype == torch.float32
    ours = our_ridge_cv(accumulate(ArrayRows(half.double().numpy()), y, folds), ALPHAS)
    np.testing.assert_allclose(theirs.weights.numpy(), ours.weights, atol=1e-4)


def test_rows_without_a_fold_change_nothing_whatever_they_hold(example, library):
    x, y, folds = question(example, "objects")
    used = folds >= 0
    dirty_x, dirty_y = np.where(used[:, None], x, np.nan), np.where(used[:, None], y, -7)
    for cv in (libraries.ridge_cv, libraries.logistic_cv):
        clean = cv(x[used], y[used], folds[used], ALPHAS[3:], library=library)
        assert_same(cv(dirty_x, dirty_y, folds, ALPHAS[3:], library=library), clean, 1e-12)


def test_fits_that_run_out_of_iterations_are_flagged(example, monkeypatch):
    x, y, folds = question(example, "objects")
    monkeypatch.setattr(libraries, "_MAX_ITER", 4)
    with pytest.warns(ConvergenceWarning):
        fit = libraries.logistic_cv(x, y, folds, ALPHAS)
    assert not fit.converged.any()
    assert not fit.fold_converged[0].any()
    assert fit.n_passes == 4 * (fit.fold_converged.size + fit.converged.size)


def test_a_library_that_cannot_be_used_is_an_error_that_says_what_is_needed(example, monkeypatch):
    x, y, folds = question(example, "objects")
    with pytest.raises(InputError, match="unknown library 'keras': there are sklearn, cuml"):
        libraries.ridge_cv(x, y, folds, ALPHAS, library="keras")
    monkeypatch.setitem(sys.modules, "cupy", None)  # as where it is not installed
    for cv in (libraries.ridge_cv, libraries.logistic_cv):
        with pytest.raises(InputError, match="an NVIDIA GPU and `pip install cupy-cuda13x cuml-cu13`; or use sklearn"):
            cv(x, y, folds, ALPHAS, library="cuml")


def test_data_that_cannot_be_used_are_errors(example):
    x, y, folds = question(example, "objects")
    with pytest.raises(InputError, match=r"shape \(239, 12\) for 240 folds"):
        libraries.ridge_cv(x[1:], y, folds, ALPHAS)
    with pytest.raises(InputError, match="at least two, without gaps"):
        libraries.ridge_cv(x, y, np.where(folds < 0, -1, 2 * folds), ALPHAS)
    y[folds != 3, 1] = 0
    with pytest.raises(InputError, match="target 1 is the same in all of the rows outside fold 3"):
        libraries.logistic_cv(x, y, folds, ALPHAS)
    row = int(np.flatnonzero(folds >= 0)[0])
    x[row, 2] = np.inf
    with pytest.raises(InputError, match=f"row {row} are not finite"):
        libraries.ridge_cv(x, y, folds, ALPHAS)
