"""Class weights of logistic probes, against scikit-learn's, fitted to each training part alone."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_class_weight

from sonde.errors import InputError
from sonde.probes.backend import to_numpy
from sonde.probes.logistic import logistic_cv, logistic_path
from sonde.probes.rows import ArrayRows
from sonde.probes.statistics import accumulate

ALPHAS = [100.0, 3.0, 0.1]
EACH = ["balanced", {0: 0.5, 1: 20.0}, None]
NAMESPACES = [np.asarray, torch.from_numpy]


@pytest.fixture
def data():
    """Three targets of prevalences 0.5, 0.2 and 0.05, three unequal classes, three folds, uneven sample weights."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((240, 6)) @ rng.standard_normal((6, 6)) + rng.uniform(-5, 5, 6)
    z = x @ rng.standard_normal((6, 3)) * 0.3 + rng.logistic(size=(240, 3))
    y = (z > np.quantile(z, [0.5, 0.8, 0.95], axis=0).diagonal()).astype(int)
    classes = (z - z.mean(axis=0) + [1.5, 0, -1]).argmax(axis=1)
    return x, y, classes, rng.permutation(np.arange(240) % 3), rng.uniform(0.2, 3, 240)


def sklearn_fit(x, y, alpha, class_weight, weight):
    """Raw-unit weights [K, D], bias [K] and a function that gives probabilities, of scikit-learn on these rows."""
    scaler = StandardScaler().fit(x, sample_weight=weight)
    model = LogisticRegression(
        C=1 / alpha, class_weight=class_weight, tol=1e-10, solver="newton-cholesky", max_iter=1000
    )
    model.fit(scaler.transform(x), y, sample_weight=weight)
    w = model.coef_ / scaler.scale_
    return w, model.intercept_ - w @ scaler.mean_, lambda rows: model.predict_proba(scaler.transform(rows))


def assert_same(ours, theirs):
    np.testing.assert_allclose(to_numpy(ours), theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample weights"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_target_has_the_weights_that_it_would_have_alone(data, namespace, weighted):
    x, y, _, _, weight = data
    weight = weight if weighted else None
    path = logistic_path(ArrayRows(namespace(x), 50), y, ALPHAS, class_weight=EACH, sample_weight=weight, tol=1e-8)
    assert path.converged.all()
    for i, alpha in enumerate(ALPHAS):
        for t in range(3):
            w, b, _ = sklearn_fit(x, y[:, t], alpha, EACH[t], weight)
            assert_same(path.weights[i, t], w[0])
            assert_same(path.bias[i, t], b[0])


@pytest.mark.parametrize("class_weight", ["balanced", {0: 3.0, 2: 0.25}], ids=str)
@pytest.mark.parametrize("weighted", [False, True], ids=["", "sample weights"])
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_classes_of_a_softmax_are_weighted(data, namespace, weighted, class_weight):
    x, _, classes, _, weight = data
    weight = weight if weighted else None
    path = logistic_path(
        ArrayRows(namespace(x), 50),
        classes,
        ALPHAS,
        kind="multinomial",
        class_weight=class_weight,
        sample_weight=weight,
        tol=1e-8,
    )
    assert path.converged.all()
    # scikit-learn wants all classes or none of a mapping.
    theirs = class_weight if class_weight == "balanced" else {1: 1.0, **class_weight}
    for i, alpha in enumerate(ALPHAS):
        w, b, _ = sklearn_fit(x, classes, alpha, theirs, weight)
        assert_same(path.weights[i], w)
        assert_same(path.bias[i] - path.bias[i].mean(), b - b.mean())


@pytest.mark.parametrize("kind", ["multilabel", "multinomial"])
def test_cross_validation_balances_every_training_part_by_its_own_rows(data, kind):
    x, y, classes, folds, weight = data
    folds = np.where((classes == 2) & (np.arange(240) % 4 > 0), 2, folds)  # parts that differ in their prevalences
    labels = classes if kind == "multinomial" else y[:, :2]
    rows = ArrayRows(x, 50)
    stats = accumulate(rows, None, folds, sample_weight=weight)
    fit = logistic_cv(
        rows, labels, folds, stats, ALPHAS, kind=kind, class_weight="balanced", sample_weight=weight, tol=1e-8
    )
    for p, target in enumerate([classes] if kind == "multinomial" else labels.T):
        columns = slice(None) if kind == "multinomial" else slice(p, p + 1)
        losses, fold_weights = [], {}
        for alpha in ALPHAS:
            probability, counts = np.zeros((240, target.max() + 1)), np.zeros(240)
            for f in range(3):
                train, held_out = folds != f, folds == f
                w, _, predict = sklearn_fit(x[train], target[train], alpha, "balanced", weight[train])
                fold_weights[alpha, f] = w
                probability[held_out] = predict(x[held_out])
                balanced = compute_class_weight(
                    "balanced", classes=np.unique(target), y=target[train], sample_weight=weight[train]
                )
                counts[held_out] = weight[held_out] * balanced[target[held_out]]
            losses.append(log_loss(target, probability, sample_weight=counts))
        assert_same(fit.cv_loss[:, p], np.asarray(losses))
        assert fit.alpha[p] == ALPHAS[np.argmin(losses)]
        assert_same(fit.weights[columns], sklearn_fit(x, target, fit.alpha[p], "balanced", weight)[0])
        for f in range(3):
            assert_same(fit.fold_weights[f, columns], fold_weights[fit.alpha[p], f])


@pytest.mark.parametrize("label", [0, 1])
def test_a_class_that_a_training_part_lacks_cannot_be_balanced(data, label):
    x, y, _, folds, weight = data
    rows = ArrayRows(x)
    y[folds != 1, 1] = label
    stats = accumulate(rows, None, folds, sample_weight=weight)
    with pytest.raises(InputError, match="target 1 is the same in all of the rows outside fold 1"):
        logistic_cv(rows, y, folds, stats, ALPHAS, class_weight="balanced", sample_weight=weight)


@pytest.mark.parametrize(
    ("class_weight", "message"),
    [
        ("even", "'even': give 'balanced'"),
        ({0: 1.0, 2: 3.0}, "names the class 2: the classes are 0 to 1"),
        ({1: 0.0}, "of class 1 is 0"),
        ({1: float("inf")}, "of class 1 is inf"),
        (["balanced"] * 2, "2 entries for 3 targets"),
    ],
)
def test_class_weights_that_cannot_be_used_are_errors(data, class_weight, message):
    x, y, classes, _, _ = data
    with pytest.raises(InputError, match=message):
        logistic_path(ArrayRows(x), y, ALPHAS, class_weight=class_weight)
    with pytest.raises(InputError, match="one mapping"):
        logistic_path(ArrayRows(x), classes, ALPHAS, kind="multinomial", class_weight=["balanced"] * 3)
