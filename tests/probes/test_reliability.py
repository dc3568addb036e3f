"""Reliability: the same bins as scikit-learn's, and the gaps that the expected calibration error sums."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from sonde.probes.metrics import score_probabilities
from sonde.probes.probability_metrics import N_BINS
from sonde.probes.reliability import reliability

N = 500


def test_bins_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    chance = rng.random((N, 2)) ** 2
    y = rng.random((N, 2)) < chance
    found = reliability("multilabel", y, chance)
    observed, predicted = calibration_curve(y.ravel(), chance.ravel(), n_bins=N_BINS)
    np.testing.assert_allclose([line["observed"] for line in found], observed)
    np.testing.assert_allclose([line["predicted"] for line in found], predicted)
    assert [line["n"] for line in found] == np.histogram(chance, N_BINS, (0, 1))[0].tolist()


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_their_gaps_make_the_expected_calibration_error(kind: str) -> None:
    rng = np.random.default_rng(1)
    chance = rng.dirichlet(np.ones(4), N) if kind == "multiclass" else rng.random((N, 1))
    y = rng.integers(0, 4, N) if kind == "multiclass" else rng.random((N, 1)) < 0.3
    found = reliability(kind, y, chance)
    error = sum(line["n"] * abs(line["observed"] - line["predicted"]) for line in found) / N
    assert error == pytest.approx(float(score_probabilities(kind, y, chance)["ece"].item()))
