"""The probes are scikit-learn estimators, with the numbers of scikit-learn's own over the same folds."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from sonde.errors import InputError
from sonde.probes import LogisticProbe, MeanDifferenceProbe, RidgeProbe

ALPHAS = np.logspace(-1, 3, 5)
PROBES = [RidgeProbe(), LogisticProbe(), MeanDifferenceProbe()]


@parametrize_with_checks(PROBES)
def test_scikit_learns_own_checks_pass(estimator, check):
    check(estimator)


@pytest.fixture
def data():
    """150 rows of 8 columns in 30 groups, three targets, three labels and three classes of 50 rows."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((150, 8)) * np.logspace(0.5, -1, 8) @ rng.standard_normal((8, 8)) + 5
    z = (x - x.mean(axis=0)) / x.std(axis=0) @ rng.standard_normal((8, 3)) + rng.logistic(size=(150, 3)) * [0.1, 1, 5]
    classes = np.empty(150, dtype=int)
    classes[np.argsort(z[:, 1])] = np.arange(150) // 50
    return x, z, (z > z.mean(axis=0)).astype(int), classes, np.arange(150) // 5


def search(model, parameter, values, cv, scoring, x, y):
    """scikit-learn's search: the probe's weights in raw units, its intercepts, and its choice."""
    pipeline = make_pipeline(StandardScaler(), model)
    name = f"{type(model).__name__.lower()}__{parameter}"
    found = GridSearchCV(pipeline, {name: values}, cv=cv, scoring=scoring).fit(x, y)
    scaler, best = found.best_estimator_
    weights = best.coef_ / scaler.scale_
    return weights, best.intercept_ - weights @ scaler.mean_, found.best_params_[name]


@pytest.mark.parametrize("cv", [5, KFold(3, shuffle=True, random_state=0)])
def test_ridge_equals_a_grid_search_over_the_same_folds(data, cv):
    x, targets, *_ = data
    probe = RidgeProbe(ALPHAS, cv=cv).fit(x, targets)
    assert len(set(probe.alpha_)) > 1
    for t in range(3):
        one = RidgeProbe(ALPHAS, cv=cv).fit(x, targets[:, t])
        weights, bias, alpha = search(Ridge(), "alpha", ALPHAS, cv, "neg_mean_squared_error", x, targets[:, t])
        assert one.alpha_ == probe.alpha_[t] == alpha
        for found in (one.coef_, probe.coef_[t]):
            np.testing.assert_allclose(found, weights, rtol=1e-8)
        np.testing.assert_allclose(one.intercept_, bias, rtol=1e-8)
        np.testing.assert_allclose(probe.predict(x)[:, t], one.predict(x), rtol=1e-8)
    assert probe.n_folds_ == (5 if cv == 5 else 3)


def test_one_penalty_may_serve_all_targets(data):
    x, targets, *_ = data
    _, _, alpha = search(Ridge(), "alpha", ALPHAS, 5, "r2", x, targets)
    assert RidgeProbe(ALPHAS, per_target=False).fit(x, targets).alpha_ == alpha


@pytest.mark.parametrize("cv", [5, StratifiedKFold(2, shuffle=True, random_state=0)])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_logistic_regression_equals_a_grid_search_over_the_same_folds(data, n_classes, cv):
    x, classes = data[0], data[3]
    if n_classes == 2:
        x, classes = x[classes > 0], classes[classes > 0]
    names = np.array(["no", "perhaps", "yes"])[classes]
    probe = LogisticProbe(ALPHAS, cv=cv, tol=1e-9).fit(x, names)
    model = LogisticRegression(solver="newton-cholesky", tol=1e-9)
    weights, bias, c = search(model, "C", 1 / ALPHAS, cv, "neg_log_loss", x, names)
    assert probe.alpha_ == pytest.approx(1 / c)
    assert probe.classes_.tolist() == sorted(set(names))
    np.testing.assert_allclose(probe.coef_, weights, atol=1e-6)
    np.testing.assert_allclose(probe.intercept_ - probe.intercept_.mean(), bias - bias.mean(), atol=1e-5)
    z = x @ weights.T + bias
    z = np.hstack([0 * z, z]) if n_classes == 2 else z
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probe.predict_proba(x), p, atol=1e-6)
    np.testing.assert_array_equal(probe.predict(x), probe.classes_[p.argmax(axis=1)])


@pytest.mark.parametrize("probe", [LogisticProbe(ALPHAS, cv=KFold(4)), MeanDifferenceProbe()])
def test_each_label_is_a_question_of_its_own(data, probe):
    x, labels = data[0], data[2]
    together = clone(probe).fit(x, labels)
    assert together.multilabel_
    for t in range(3):
        alone = clone(probe).fit(x, labels[:, t])
        np.testing.assert_allclose(together.coef_[t], alone.coef_[0], rtol=1e-4)
        np.testing.assert_allclose(together.decision_function(x)[:, t], alone.decision_function(x), atol=1e-4)
        np.testing.assert_array_equal(together.predict(x)[:, t], alone.predict(x))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_mean_difference_finds_the_nearest_class_mean(data, n_classes):
    x, _, _, classes, _ = data
    x, classes = x[:100][classes[:100] < n_classes], classes[:100][classes[:100] < n_classes]
    probe, nearest = MeanDifferenceProbe().fit(x, classes), NearestCentroid(priors="uniform").fit(x, classes)
    np.testing.assert_array_equal(probe.predict(x), nearest.predict(x))
    scores = probe.decision_function(nearest.centroids_)
    if n_classes == 2:
        np.testing.assert_allclose(scores, [-0.5, 0.5])
    else:
        half_squares = -0.5 * ((x[:, None] - nearest.centroids_) ** 2).sum(axis=2)
        found = probe.decision_function(x)
        np.testing.assert_allclose(found - found[:, :1], half_squares - half_squares[:, :1], atol=1e-9)


@pytest.mark.parametrize("probe", [RidgeProbe((1e-3, 1e4)), LogisticProbe((1e-3, 1e4))])
def test_groups_are_never_split(probe):
    # Rows of a group are alike, and their answer says nothing of others': to have seen one is to know them all.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    x = (rng.standard_normal((20, 40)))[groups] + 1e-3 * rng.standard_normal((120, 40))
    y = rng.permutation(np.arange(20) % 2)[groups]
    order = rng.permutation(120)
    x, y, groups = x[order], y[order], groups[order]
    assert clone(probe).fit(x, y).alpha_ == 1e-3
    assert clone(probe).fit(x, y, groups=groups).alpha_ == 1e4
    assert clone(probe).set_params(cv=GroupKFold(4)).fit(x, y, groups=groups).alpha_ == 1e4


def test_few_rows_of_a_class_or_few_groups_make_fewer_folds(data):
    x, targets, _, classes, groups = data
    few = np.concatenate([np.flatnonzero(classes == 0)[:3], np.flatnonzero(classes > 0)])
    assert LogisticProbe(ALPHAS).fit(x[few], classes[few]).n_folds_ == 3
    assert RidgeProbe(ALPHAS).fit(x, targets, groups=groups % 4).n_folds_ == 4
    for probe, y in ((RidgeProbe(), targets), (LogisticProbe(), classes)):
        assert clone(probe).fit(x, y).n_folds_ == 5


def test_without_two_folds_the_middle_penalty_is_taken_with_a_warning(data):
    x, targets, _, classes, _ = data
    few = np.concatenate([np.flatnonzero(classes == 0)[:1], np.flatnonzero(classes > 0)])
    for probe, rows, y, options in (
        (RidgeProbe(ALPHAS), slice(None), targets, {"groups": np.zeros(150)}),
        (LogisticProbe(ALPHAS), few, classes, {}),
    ):
        with pytest.warns(UserWarning, match="alpha 10 is the middle of the candidates"):
            probe.fit(x[rows], y[rows], **options)
        assert probe.n_folds_ == 1
        np.testing.assert_array_equal(probe.alpha_, 10)
        single = clone(probe).set_params(alphas=10.0).fit(x[rows], y[rows])
        np.testing.assert_array_equal(single.coef_, probe.coef_)


def test_they_work_in_pipelines_searches_and_pickles(data):
    x, targets, _, classes, groups = data
    for probe, y in ((RidgeProbe(ALPHAS), targets), (LogisticProbe(ALPHAS), classes), (MeanDifferenceProbe(), classes)):
        pipeline = make_pipeline(StandardScaler(), probe)
        assert cross_val_score(pipeline, x, y, cv=3).mean() > 0.3
        searched = GridSearchCV(pipeline, {f"{type(probe).__name__.lower()}__device": [None]}, cv=GroupKFold(3))
        searched.fit(x, y, groups=groups)
        again = pickle.loads(pickle.dumps(searched))
        np.testing.assert_array_equal(again.predict(x), searched.predict(x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_device_gives_the_numbers_of_numpy(data, dtype):
    x, targets, labels, classes, _ = data
    x = x.astype(dtype)
    for probe, y in zip([*PROBES, LogisticProbe()], [targets, labels, classes, classes], strict=True):
        here = clone(probe).fit(x, y)
        there = clone(probe).set_params(device="cpu").fit(x, y)
        assert there.coef_.dtype == here.coef_.dtype == dtype
        np.testing.assert_allclose(there.coef_, here.coef_, rtol=1e-3 if dtype == np.float32 else 1e-8)
        with pytest.raises(InputError, match="the device 'abacus' cannot be used"):
            clone(probe).set_params(device="abacus").fit(x, y)


def test_what_cannot_be_used_is_an_error(data):
    x, targets, labels, classes, _ = data
    with pytest.raises(InputError, match="part 1 of cv leaves rows out, or tests some again"):
        RidgeProbe(cv=[(range(50, 150), range(50)), (range(50, 150), range(50))]).fit(x, targets)
    with pytest.raises(InputError, match="cv never tests row 50"):
        RidgeProbe(cv=[(range(50, 150), range(50))]).fit(x, targets)
    with pytest.raises(InputError, match="one class only, \\[2\\]"):
        LogisticProbe().fit(x, classes, sample_weight=classes == 2)
    with pytest.raises(InputError, match="weight of every row is zero"):
        MeanDifferenceProbe().fit(x, classes, sample_weight=np.zeros(150))
    labels[:, 1] = 1
    with pytest.raises(InputError, match="target 1 is the same in all"):
        LogisticProbe().fit(x, labels)
    with pytest.raises(InputError, match="label 1 is the same in all rows"):
        MeanDifferenceProbe().fit(x, labels)
