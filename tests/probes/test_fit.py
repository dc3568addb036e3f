"""One layer: scores of every row by the probe that may score it, from one reading of the activations."""

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import sonde.probes.rows
from sonde.errors import InputError
from sonde.probes import ArrayRows, Problem, accumulate, fit_layer, logistic_cv
from sonde.probes.rows import HeldRows

ALPHAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


class WatchedRows:
    """Rows that count how often they are read, note every chunk and know which chunks are still alive."""

    def __init__(self, x: np.ndarray[Any, Any], chunk_size: int = 32) -> None:
        self._rows = ArrayRows(x, chunk_size)
        self.n_reads = 0
        self.n_chunks = 0
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()
        self.most_alive = 0

    @property
    def hidden_size(self) -> int:
        return self._rows.hidden_size

    def __iter__(self) -> Iterator[tuple[slice, Any]]:
        self.n_reads += 1
        for span, chunk in self._rows:
            mine = chunk.copy().view(Chunk)
            self.alive.add(mine)
            self.n_chunks += 1
            self.most_alive = max(self.most_alive, len(self.alive))
            yield span, mine
            del mine


class Chunk(np.ndarray[Any, Any]):
    """An array that can be told from another of equal values."""

    __hash__ = object.__hash__


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
def test_every_row_is_scored_by_the_probe_that_did_not_see_it(
    labels: str, solver: Any, example: Any, ask_sklearn: Any
) -> None:
    problem, x = Problem.of(example.store, labels, n_folds=3), example.x(2)
    fit = fit_layer(ArrayRows(x, 37), problem, solver, ALPHAS)
    answer = ask_sklearn(x, example.truth[labels], problem.split, problem.kind, solver)
    train, test = problem.split.folds >= 0, problem.split.test
    np.testing.assert_allclose(fit.scores[test], answer.test, atol=1e-4)
    np.testing.assert_allclose(fit.scores[train], answer.cv, atol=1e-4)
    assert np.isnan(fit.scores[~example.used]).all()
    np.testing.assert_allclose(fit.alpha, answer.alpha)
    assert fit.converged.tolist() == [True] * len(problem.targets)


def test_weights_are_in_raw_units_and_give_the_scores(example: Any) -> None:
    problem, x = Problem.of(example.store, "objects"), example.x(5)
    test = problem.split.test
    for solver in ("ridge", "logistic"):
        fit = fit_layer(ArrayRows(x), problem, solver, ALPHAS)
        assert (fit.weights.dtype, fit.bias.dtype) == (np.float32, np.float32)
        linear = x[test].astype(np.float64) @ fit.weights.T.astype(np.float64) + fit.bias
        np.testing.assert_allclose(
            fit.scores[test], linear if solver == "ridge" else 1 / (1 + np.exp(-linear)), atol=1e-4
        )


def test_rows_that_are_not_used_do_not_matter(example: Any) -> None:
    problem, x = Problem.of(example.store, "colour"), example.x(5).copy()
    x[~example.used] = 0
    one = fit_layer(ArrayRows(x), problem, "logistic", ALPHAS)
    x[~example.used] = np.nan
    other = fit_layer(ArrayRows(x), problem, "logistic", ALPHAS)
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_torch_gives_the_numbers_of_numpy(solver: Any, example: Any) -> None:
    problem, x = Problem.of(example.store, "entailment"), example.x(5)
    numpys, torchs = (fit_layer(ArrayRows(x), problem, solver, ALPHAS, device) for device in (None, "cpu"))
    for part in ("weights", "bias", "alpha", "converged", "scores"):
        np.testing.assert_allclose(getattr(torchs, part), getattr(numpys, part), atol=1e-5)


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_a_layer_is_read_once(solver: Any, example: Any) -> None:
    rows = WatchedRows(example.x(5))
    fit_layer(rows, Problem.of(example.store, "entailment"), solver, ALPHAS)
    assert rows.n_reads == 1


def test_a_layer_that_is_too_large_is_streamed_again_for_every_pass(
    example: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, x = Problem.of(example.store, "entailment"), example.x(5)
    folds = problem.split.folds

    def fit(rows: Any) -> np.ndarray[Any, Any]:
        return np.asarray(logistic_cv(rows, problem.y, folds, accumulate(rows, None, folds), [1.0, 10.0]).weights)

    streamed, held = WatchedRows(x), WatchedRows(x)
    chunks = [chunk for _, chunk in ArrayRows(x, 32)]
    weights = fit(HeldRows(held, limit=x.nbytes))
    monkeypatch.setattr(sonde.probes.rows, "HELD_BYTES", x.nbytes // 2)
    np.testing.assert_array_equal(weights, fit(HeldRows(streamed)))
    assert streamed.n_reads > 2
    assert (held.n_reads, held.n_chunks) == (1, len(chunks))


def test_chunks_are_given_as_they_are_read_and_dropped_once_they_are_too_many(example: Any) -> None:
    x = example.x(5)
    rows = WatchedRows(x)
    held = HeldRows(rows, limit=2 * 32 * x.shape[1] * x.itemsize)
    seen = []
    for span, chunk in held:
        assert rows.n_chunks == len(seen) + 1
        seen.append((span, np.array(chunk)))
        del chunk
    assert rows.most_alive <= 4
    assert len(rows.alive) == 0
    np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in seen]), x)
    assert held.hidden_size == x.shape[1]


def test_a_pass_that_was_broken_off_is_not_taken_for_the_whole(example: Any) -> None:
    rows = WatchedRows(example.x(5))
    held = HeldRows(rows)
    next(iter(held))
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate([chunk for _, chunk in held]), example.x(5))
    assert rows.n_reads == 2


def test_what_cannot_be_fitted_is_an_error_with_the_way_out(example: Any) -> None:
    rows = ArrayRows(example.x(5))
    size, colour = Problem.of(example.store, "size"), Problem.of(example.store, "colour")
    unknown: Any = "forest"
    for problem, solver, device, text in (
        (size, "logistic", None, "'size' are numbers: logistic probes need classes; use the solver ridge"),
        (size, unknown, None, "unknown solver 'forest': there are ridge, logistic"),
        (size, "ridge", "warp", r"device 'warp' cannot be used \(.*\): name another, or none for numpy"),
    ):
        with pytest.raises(InputError, match=text):
            fit_layer(rows, problem, solver, device=device)
    for part in (colour.split.test, colour.split.folds >= 0):
        x, row = example.x(5).copy(), int(np.flatnonzero(part)[3])
        x[row, 1] = np.inf
        for solver in ("ridge", "logistic"):
            with pytest.raises(InputError, match=rf"row {row}\b.*finite"):
                fit_layer(ArrayRows(x), colour, solver, ALPHAS)
