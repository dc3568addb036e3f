"""Where logistic fits end: at their tolerance, at the rounding of the dtype, or unconverged and told of."""

import warnings

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


def test_probes_that_few_rows_still_hold_up_take_no_two_passes_for_each_step():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((600, 200)).astype(np.float32)
    classes = (x @ rng.standard_normal((200, 10)) + rng.gumbel(size=(600, 10))).argmax(axis=1)
    path = logistic_path(ArrayRows(x), classes, [1.0, 0.1], kind="multinomial")
    assert path.converged.all()
    assert path.n_passes < 65  # 47 when written; 86 when every second is a unit step that is refused


@pytest.mark.parametrize("kind", ["multinomial", "multilabel"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_what_is_left_of_sure_rows_is_not_rounded_away_and_dead_columns_have_no_part_in_it(kind, namespace):
    rng = np.random.default_rng(2)
    x = np.c_[rng.standard_normal((4000, 5)), 10 * rng.standard_normal(4000)].astype(np.float32)
    weights = (20 * rng.standard_normal((1, 3, 6))).astype(np.float32)
    z = x[:, :5].astype(np.float64) @ weights[0, :, :5].T.astype(np.float64)
    margin = np.diff(np.sort(z, axis=1))[:, -1] if kind == "multinomial" else np.abs(z).min(axis=1)
    x, z = x[margin > 18], z[margin > 18]
    folds = np.zeros(len(x), dtype=int)
    assert len(x) > 100
    if kind == "multinomial":
        labels = np.eye(3)[z.argmax(axis=1)]
        # The probability of the wrong classes is a sum of theirs, in float64 and logarithms.
        wrong = logsumexp(np.where(labels == 1, -np.inf, z), axis=1) - logsumexp(z, axis=1)
        residual = np.where(labels == 1, -np.exp(wrong)[:, None], np.exp(log_softmax(z, axis=1)))
        loss = -np.log1p(-np.exp(wrong)).sum()
    else:
        labels, weights = (z > 0).astype(float), weights.transpose(1, 0, 2)
        residual = (1 - 2 * labels) * np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))
        loss = np.log1p(np.exp(-np.abs(z))).sum()
    rows = ArrayRows(namespace(x))
    zero, live = namespace(np.zeros(6)), namespace(np.array([1.0, 1, 1, 1, 1, 0]))
    dtype = accumulate(rows, None, folds).dtype
    objective = LogisticObjective(rows, labels, folds, 1, None, kind, zero, live, dtype)
    bias, splits = namespace(np.zeros(weights.shape[:2], dtype=np.float32)), np.ones(len(weights), dtype=int)
    sums = objective.evaluate(namespace(weights), bias, np.arange(len(weights)), splits)
    gradient = to_numpy(sums.gradient).reshape(3, 6)
    assert not gradient[:, 5].any()
    theirs = residual.T @ x[:, :5]
    np.testing.assert_allclose(gradient[:, :5], theirs, atol=1e-3 * np.abs(theirs).max())
    np.testing.assert_allclose(to_numpy(sums.residual).ravel(), residual.sum(axis=0), rtol=1e-3)
    np.testing.assert_allclose(sums.loss.sum(), loss, rtol=1e-3)
    if kind == "multinomial":
        for parts in (gradient, to_numpy(sums.residual).ravel()):
            np.testing.assert_allclose(parts.sum(axis=0), 0, atol=1e-14 * np.abs(parts).max())


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
            problems.tell(loss if i < steps else loss + 1e3, gradient, curvature)
            problems.aim()
        assert problems.stalled.all()
        assert (problems.settled() == settled).all()


def staggered(n_targets):
    """Targets of very different difficulty, and folds."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((120, 8)) * np.logspace(0, -1, 8)
    noise = np.linspace(0, 1, n_targets) * rng.logistic(size=(120, n_targets))
    return x, x @ rng.standard_normal((8, n_targets)) * 3 + noise > 0.3, rng.permutation(np.arange(120) % 3)


def test_held_out_losses_are_those_of_the_fits_wherever_these_end():
    x, y, folds = staggered(9)
    rows = ArrayRows(x)
    stats = accumulate(rows, None, folds)
    for max_passes in range(14, 27):  # where some fits' last step is refused
        with warnings.catch_warnings(action="ignore", category=UnconvergedWarning):
            fit = logistic_cv(rows, y, folds, stats, [1e-4], max_passes=max_passes)
        z = np.einsum("nd,ntd->nt", x, fit.fold_weights[folds]) + fit.fold_bias[folds]
        np.testing.assert_allclose(fit.cv_loss[0], np.logaddexp(0, np.where(y, -z, z)).mean(axis=0), rtol=1e-9)


def test_a_penalty_given_five_times_has_the_same_answer_five_times_whatever_ends_meanwhile():
    # So many targets that the five are walked in two stretches, of which the one ends before the other.
    x, y, folds = staggered(60)
    rows = ArrayRows(x)
    stats = accumulate(rows, None, folds)
    fit = logistic_cv(rows, y, folds, stats, [30.0] * 5, tol=1e-9)
    assert fit.fold_converged.all()
    alone = [logistic_cv(rows, y[:, t], folds, stats, [30.0], tol=1e-9).cv_loss[0, 0] for t in range(60)]
    np.testing.assert_allclose(fit.cv_loss, np.broadcast_to(alone, (5, 60)), rtol=1e-7)


def test_float32_fits_short_of_their_tolerance_are_told_of():
    x, classes, _ = many_classes()
    with pytest.warns(UnconvergedWarning):
        path = logistic_path(ArrayRows(x), classes, [1e3, 1e-2], kind="multinomial", max_passes=6)
    assert not path.converged[1].any()
