"""Where logistic fits end: at their tolerance, at the rounding of the dtype, or unconverged and told of."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.probes.backend import Backend, to_numpy
from sonde.probes.lbfgs import BatchedLBFGS
from sonde.probes.logistic import UnconvergedWarning, logistic_cv, logistic_path
from sonde.probes.objective import LogisticObjective
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

NAMESPACES = [np.asarray, torch.from_numpy]


def many_classes(n=2000, d=16, k=15):
    """Unequal classes, columns of means up to three standard deviations from zero, float32."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)) + rng.uniform(-3, 3, d)
    z = (x - x.mean(axis=0)) @ rng.standard_normal((d, k)) * 0.5 + rng.gumbel(size=(n, k)) + rng.standard_normal(k)
    return x.astype(np.float32), z.argmax(axis=1), rng.permutation(np.arange(n) % 3)


def sklearn_weights(x, y, alpha):
    scaler = StandardScaler().fit(x.astype(np.float64))
    model = LogisticRegression(C=1 / alpha, tol=1e-10, solver="newton-cholesky", max_iter=1000)
    return model.fit(scaler.transform(x.astype(np.float64)), y).coef_ / scaler.scale_


@pytest.mark.parametrize("kind", ["multinomial", "multilabel"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_however_strong_the_penalty_float32_converges_in_a_few_passes(kind, namespace):
    x, classes, folds = many_classes()
    rows, y = ArrayRows(namespace(x)), classes if kind == "multinomial" else np.eye(15)[classes]
    alphas = np.logspace(4, 12, 9)
    stats = accumulate(rows, None, folds)
    fit = logistic_cv(rows, y, folds, stats, alphas, kind=kind)
    assert fit.fold_converged.all()
    assert fit.converged.all()
    assert fit.n_passes < 60
    for alpha in (1e4, 1e8):
        path = logistic_path(rows, y, [alpha], kind=kind)
        theirs = (
            sklearn_weights(x, classes, alpha) if kind == "multinomial" else sklearn_weights(x, classes == 0, alpha)
        )
        ours = to_numpy(path.weights[0])[: len(theirs)]
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_however_sure_the_probes_float32_converges(namespace):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((60, 90)).astype(np.float32)  # more columns than rows: separable whatever the labels
    classes, alphas = np.arange(60) % 3, np.logspace(0, -3, 4)
    for kind, y in (("multinomial", classes), ("multilabel", np.eye(3)[classes])):
        path = logistic_path(ArrayRows(namespace(x)), y, alphas, kind=kind)
        assert path.converged.all()
        for i, alpha in enumerate(alphas):
            theirs = sklearn_weights(x, classes if kind == "multinomial" else classes == 0, alpha)
            ours = to_numpy(path.weights[i])[: len(theirs)]
            np.testing.assert_allclose(ours, theirs, atol=2e-3 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["multinomial", "multilabel"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_is_left_of_sure_rows_is_not_rounded_away(kind, namespace):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 5)).astype(np.float32)
    weights = (20 * rng.standard_normal((1, 3, 5))).astype(np.float32)
    z = x.astype(np.float64) @ weights[0].T.astype(np.float64)
    multinomial = kind == "multinomial"
    labels = np.eye(3)[z.argmax(axis=1)] if multinomial else (z > 0).astype(float)
    if not multinomial:
        weights = weights.transpose(1, 0, 2)
    shift = namespace(np.zeros(5))
    stats = accumulate(ArrayRows(namespace(x)), None, np.zeros(400, dtype=int))
    objective = LogisticObjective(
        ArrayRows(namespace(x)), labels, np.zeros(400, dtype=int), 1, None, kind, shift, shift + 1, stats.dtype
    )
    bias = namespace(np.zeros(weights.shape[:2], dtype=np.float32))
    sums = objective.evaluate(namespace(weights), bias, np.arange(len(weights)), np.ones(len(weights), dtype=int))
    if multinomial:
        # The probability of the wrong classes from their own sum, in float64.
        wrong = logsumexp(np.where(labels == 1, -np.inf, z), axis=1) - logsumexp(z, axis=1)
        residual = np.where(labels == 1, -np.exp(wrong)[:, None], np.exp(log_softmax(z, axis=1)))
        loss = -np.log1p(-np.exp(wrong)).sum()
    else:
        residual = (1 - 2 * labels) * np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
        loss = np.log1p(np.exp(-np.abs(z))).sum()
    sure = np.abs(residual).max(axis=1) < 1e-8
    assert sure.any()
    gradient = residual.T @ x
    np.testing.assert_allclose(
        to_numpy(sums.gradient).reshape(3, 5), gradient, rtol=1e-4, atol=1e-5 * np.abs(gradient).max()
    )
    np.testing.assert_allclose(sums.fold_loss.sum(), loss, rtol=1e-4)
    if multinomial:
        np.testing.assert_allclose(to_numpy(sums.residual).sum(), 0, atol=1e-15)
        np.testing.assert_allclose(to_numpy(sums.gradient).sum(axis=1), 0, atol=1e-15)


class Cosh:
    """Sums of log cosh(a·v - b), one per problem, with gradients, and a curvature so low that steps overshoot."""

    def __init__(self):
        rng = np.random.default_rng(3)
        self.a, self.b = rng.standard_normal((4, 30, 6)) * [1, 1, 1, 3, 5, 9], rng.standard_normal((4, 30)) * 4
        self.alpha = np.array([1e-2, 1.0, 0.1, 3.0])

    def start(self, which):
        backend = Backend.of(np.zeros(1))
        return BatchedLBFGS(backend, np.zeros((which.size, 6)), self.alpha[which], np.ones(6), precision=1e-15)

    def __call__(self, v, which):
        z = np.einsum("pnm,pm->pn", self.a[which], v) - self.b[which]
        gradient = np.einsum("pnm,pn->pm", self.a[which], np.tanh(z))
        curvature = 0.02 * (self.a[which] ** 2).sum(axis=1)
        return (np.abs(z) + np.log1p(np.exp(-2 * np.abs(z)))).sum(axis=1), gradient, curvature


def trajectory(function, which, of, drop_at=None):
    """Where problem `of` of those that start together stands after each evaluation, and whether it had accepted."""
    problems = function.start(which)
    problems.tell(*function(problems.trial(), which))
    points, accepted = [], []
    for i in range(25):
        if i == drop_at:
            left = np.flatnonzero(which == of)
            problems.keep(left)
            which = which[left]
        problems.aim()
        problems.tell(*function(problems.trial(), which))
        at = which.tolist().index(of)
        points.append(problems.point[at])
        accepted.append(bool(problems.accepted[at]))
    return np.asarray(points), accepted


def test_a_problem_goes_its_way_whenever_others_are_dropped_even_in_the_middle_of_a_line_search():
    function, after_refusal = Cosh(), 0
    for of in range(4):
        alone, accepted = trajectory(function, np.array([of]), of)
        assert not all(accepted)
        for drop_at in range(1, 12):
            after_refusal += not accepted[drop_at - 1]
            found, _ = trajectory(function, np.arange(4), of, drop_at)
            np.testing.assert_allclose(found, alone, rtol=1e-8, atol=1e-10)
    assert after_refusal > 4


def test_a_line_search_that_fails_has_settled_only_where_nothing_is_left_to_gain():
    function, which = Cosh(), np.arange(4)
    for steps, settled in ((3, False), (80, True)):
        problems = function.start(which)
        for i in range(steps + 10):
            loss, gradient, curvature = function(problems.trial(), which)
            problems.tell(loss if i < steps else loss + 1, gradient, curvature)
            problems.aim()
        assert problems.stalled.all()
        assert (problems.settled() == settled).all()


def test_float32_fits_short_of_their_tolerance_are_told_of():
    x, classes, _ = many_classes()
    with pytest.warns(UnconvergedWarning):
        path = logistic_path(ArrayRows(x), classes, [1e3, 1e-2], kind="multinomial", max_passes=6)
    assert not path.converged[1].any()
