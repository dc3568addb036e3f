"""Probes on a GPU have the numbers of numpy."""

from typing import Any

import numpy as np
import pytest

from sonde.probes import ArrayRows, Problem, accumulate, fit_layer, probe, ridge_cv

pytestmark = pytest.mark.cuda

ALPHAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


@pytest.mark.parametrize(
    ("labels", "solver"),
    [
        ("entailment", "ridge"),
        ("objects", "ridge"),
        ("size", "ridge"),
        ("entailment", "logistic"),
        ("objects", "logistic"),
        ("colour", "logistic"),
    ],
)
def test_a_fit_has_the_numbers_of_numpy(labels: str, solver: Any, device: str, example: Any) -> None:
    problem, x = Problem.of(example.store, labels), example.x(5)
    expected, found = (fit_layer(ArrayRows(x), problem, solver, ALPHAS, where) for where in (None, device))
    for part in ("weights", "bias", "alpha", "converged", "scores"):
        np.testing.assert_allclose(getattr(found, part), getattr(expected, part), atol=1e-4, err_msg=part)


def test_activations_on_the_device_are_probed_there(device: str, example: Any) -> None:
    import torch

    problem, x = Problem.of(example.store, "objects"), torch.as_tensor(example.x(5)).to(torch.bfloat16)
    folds = problem.split.folds
    there = ridge_cv(accumulate(ArrayRows(x.to(device), 32), problem.y, folds), ALPHAS)
    assert there.weights.device.type == device
    here = ridge_cv(accumulate(ArrayRows(x.double().numpy(), 32), problem.y, folds), ALPHAS)
    np.testing.assert_allclose(there.weights.cpu().numpy(), here.weights, atol=1e-4)
    np.testing.assert_allclose(there.cv_error, here.cv_error, rtol=1e-4)


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_probing_a_store_gives_the_table_of_numpy(solver: Any, device: str, example: Any) -> None:
    options: dict[str, Any] = {"solver": solver, "alphas": ALPHAS, "n_draws": 50}
    keys = ["site", "tokens", "layer", "target", "metric", "split"]
    here, there = (
        probe(example.store, "objects", device=where, **options).to_pandas().set_index(keys).sort_index()
        for where in (None, device)
    )
    assert there.index.equals(here.index)
    np.testing.assert_allclose(there["value"], here["value"], atol=2e-3)
