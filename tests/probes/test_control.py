"""The control task has one random label per type, and says how well a probe can memorise types."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, Split, fit_layer
from sonde.probes.bootstrap import cluster_weights, paired_difference
from sonde.probes.control import control_task
from sonde.probes.evaluate import evaluate

N, N_TYPES = 1200, 300
KINDS: dict[str, Any] = {"binary": ("x",), "multilabel": ("often", "seldom"), "multiclass": ("a", "b", "c")}


def make_problem(kind: Any, seed: int = 0) -> tuple[Problem, np.ndarray[Any, Any]]:
    """Make random labels of unequal shares, of types that are found in all parts, and some unused rows."""
    rng = np.random.default_rng(seed)
    code = rng.choice(3, N, p=[0.6, 0.3, 0.1])
    y = {
        "binary": (code > 0)[:, None].astype(float),
        "multilabel": np.column_stack([code > 0, code > 1]).astype(float),
        "multiclass": np.eye(3)[code],
        "regression": rng.normal(size=(N, 1)),
    }[kind]
    part = np.arange(N) % 8
    test, folds = part == 0, np.where((part == 0) | (part == 7), -1, part % 3).astype(np.int16)
    y[part == 7] = 0
    groups = np.array([f"g{i}" for i in range(N)])
    problem = Problem("asked", kind, KINDS.get(kind, ("x",)), y, Split(test, folds, "hash", 3), groups, {})
    return problem, np.array([f"type {i}" for i in rng.integers(N_TYPES, size=N)])


@pytest.mark.parametrize("kind", [*KINDS, "regression"])
def test_every_type_has_one_label_that_occurs_in_training(kind: str) -> None:
    problem, types = make_problem(kind)
    control = control_task(problem, types).problem
    used = problem.split.test | (problem.split.folds >= 0)
    for name in np.unique(types):
        assert len(np.unique(control.y[used & (types == name)], axis=0)) <= 1
    known = set(map(tuple, problem.y[problem.split.folds >= 0].tolist()))
    assert set(map(tuple, control.y[used].tolist())) <= known
    assert not control.y[~used].any()
    assert (control.kind, control.targets, control.split) == (problem.kind, problem.targets, problem.split)
    assert (control.y[used] != problem.y[used]).any()


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_drawn_as_often_as_they_occur_in_training(kind: Any) -> None:
    problem, _ = make_problem(kind)
    types = np.array([str(i // 2) for i in np.random.default_rng(1).permutation(N)])
    share = np.mean([control_task(problem, types, seed).problem.prior() for seed in range(20)], axis=0)
    np.testing.assert_allclose(share, problem.prior(), atol=0.02)


def test_labels_depend_on_seed_and_name_and_not_on_the_order_of_rows() -> None:
    problem, types = make_problem("multilabel")
    order = np.random.default_rng(2).permutation(N)
    split = replace(problem.split, test=problem.split.test[order], folds=problem.split.folds[order])
    shuffled = replace(problem, y=problem.y[order], split=split, groups=problem.groups[order])
    control, other = control_task(problem, types, 4), control_task(shuffled, types[order].tolist(), 4)
    np.testing.assert_array_equal(other.problem.y, control.problem.y[order])
    assert other.coverage == control.coverage
    assert (control_task(problem, types, 5).problem.y != control.problem.y).any()


def test_coverage_is_the_share_of_test_rows_whose_type_was_trained_on() -> None:
    problem, types = make_problem("binary")
    test, training = problem.split.test, problem.split.folds >= 0
    types[np.flatnonzero(test)[:30]] = "new"
    types[~(test | training)] = "new"  # a row that is not used teaches nobody
    known = set(types[training])
    assert control_task(problem, types).coverage == np.mean([name in known for name in types[test]])
    types[test] = "new"
    with pytest.raises(InputError, match="no type of a test row is among the training rows"):
        control_task(problem, types)


def test_a_probe_passes_the_control_only_if_the_activations_tell_the_types_apart() -> None:
    problem, _ = make_problem("binary")
    number = np.random.default_rng(3).integers(20, size=N)
    control = control_task(problem, number.astype(str), 1).problem
    test, noise = problem.split.test, np.random.default_rng(4).normal(size=(N, 20))
    for x, least, most in ((np.eye(20)[number] + 0.01 * noise, 0.99, 1.0), (noise, 0.0, 0.65)):
        scores = fit_layer(ArrayRows(x), control, "logistic").scores[test]
        accuracy = ((scores > 0.5) == control.y[test]).mean()
        assert least <= accuracy <= most


def test_selectivity_is_the_paired_difference_of_both_scores() -> None:
    problem, types = make_problem("binary")
    x = problem.y + 0.4 * np.random.default_rng(5).normal(size=(N, 8))
    test = problem.split.test
    draws = cluster_weights(problem.groups[test].tolist(), 200, 0)
    values, drawn = [], []
    for asked in (problem, control_task(problem, types).problem):
        scores = fit_layer(ArrayRows(x), asked).scores
        values.append(float(((scores > 0.5) == asked.y)[test].mean()))
        drawn.append(evaluate(asked, scores, draws, probabilities=False).draws["accuracy"])
    selectivity = paired_difference(*values, *drawn)
    assert 0.2 < selectivity.low < selectivity.value < selectivity.high < 0.6


def test_what_came_out_the_same_everywhere_is_left_out() -> None:
    problem, types = make_problem("multilabel")
    rare = (np.arange(N) == 1)[:, None]
    problem = replace(problem, y=np.hstack([problem.y, rare]), targets=(*problem.targets, "rare"))
    control = control_task(problem, types).problem
    assert (control.targets, control.y.shape) == (("often", "seldom"), (N, 2))
    assert control.left_out == {"rare": "its random labels are the same in all of a training part"}


def test_a_class_that_no_type_drew_is_left_out() -> None:
    problem, _ = make_problem("multiclass")
    types = np.where(np.arange(N) % 2, "x", "y")
    drawn = [control_task(problem, types, seed).problem for seed in range(40) if draws_two(problem, types, seed)]
    assert drawn
    for control in drawn:
        assert len(control.targets) == 2
        assert {*control.targets, *control.left_out} == set(problem.targets)
        np.testing.assert_array_equal(control.y.sum(axis=1), problem.split.test | (problem.split.folds >= 0))


def draws_two(problem: Problem, types: np.ndarray[Any, Any], seed: int) -> bool:
    try:
        return bool(control_task(problem, types, seed))
    except InputError:
        return False


def test_what_cannot_be_a_control_is_an_error_with_the_way_out() -> None:
    problem, types = make_problem("binary")
    with pytest.raises(InputError, match="1199 types for 1200 samples: give one per sample"):
        control_task(problem, types[1:])
    with pytest.raises(InputError, match="the control of 'asked' lack a class in a training part: use more types"):
        control_task(problem, ["one"] * N)
