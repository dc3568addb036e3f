"""What is measured beside the probes of a layer, to tell what they know from what they would score anyway."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .bootstrap import Difference, interval, paired_difference
from .cache import LabelFree
from .class_weights import ClassWeight
from .codelength import online_codelength
from .control import ControlTask
from .erasure import ErasedRows, Eraser, leace
from .evaluate import Evaluation, evaluate
from .fit import PROBABILISTIC, Fit, Library, Solver, fit_layer
from .information import v_information
from .metrics import PRIMARY
from .permutation import p_value, permutation_null
from .problem import ALL, Problem
from .rows import Rows
from .statistics import accumulate
from .transfer import transfer


@dataclass(frozen=True, slots=True, eq=False)
class Controls:
    """What is asked for.

    Attributes
    ----------
    permutations
        Number of permutations of the labels; 0 for no permutation null.
    task
        The control task.
    codelength
        Whether the online codelength is computed.
    erased
        float64 ``[sample, column]``: what is erased from the activations before they are probed once more; NaN in rows
        that are not told of it.
    variants
        ``[sample]``: the variant of the question that each sample is, for the transfer matrix.
    seed
        Of permutations and of the order of the online code.
    """

    permutations: int = 0
    task: ControlTask | None = None
    codelength: bool = False
    erased: NDArray[np.float64] | None = None
    variants: NDArray[np.str_] | None = None
    seed: int = 0

    def check(
        self, problem: Problem, solver: Solver, backend: Library, class_weight: ClassWeight | None = None
    ) -> None:
        """Raise InputError if a control is not for such probes."""
        if self.erased is not None and (self._folds_to_erase_by(problem) < 0).all():
            raise InputError("no training row has the labels that are to be erased: choose others, or leave them out")
        if self.permutations < 0:
            raise InputError(f"{self.permutations} permutations: ask for 0 or more, 100 are usual")
        if self.permutations and (solver != "ridge" or backend != "sonde"):
            raise InputError("the permutation null is that of sonde's ridge probes: use the solver ridge")
        if self.codelength and solver != "logistic":
            raise InputError("the online codelength is that of logistic probes: use the solver logistic")
        if self.codelength and class_weight is not None:
            raise InputError("weighted probes give no code of the labels as they are: leave out class weights")
        if self.codelength and problem.kind == "regression":
            raise InputError(f"labels {problem.labels!r} are numbers: only classes have a codelength")

    def eraser(self, rows: Rows, problem: Problem, device: str | None = None) -> Eraser:
        """Fit the eraser of a layer to the training rows that are told of what is erased."""
        folds = self._folds_to_erase_by(problem)
        return leace(accumulate(rows, self.erased, folds, device=device).total())

    def _folds_to_erase_by(self, problem: Problem) -> NDArray[np.int64]:
        """0 for training rows that are told of what is erased, -1 for all others; int64 ``[sample]``."""
        assert self.erased is not None
        return np.where((problem.split.folds >= 0) & ~np.isnan(self.erased).any(axis=1), 0, -1)


def measure(
    controls: Controls,
    rows: Rows,
    problem: Problem,
    fit: Fit,
    evaluation: Evaluation,
    draws: NDArray[Any],
    *,
    solver: Solver,
    alphas: Any = None,
    device: str | None = None,
    backend: Library = "sonde",
    class_weight: ClassWeight | None = None,
    known: LabelFree | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure the controls of one layer.

    Parameters
    ----------
    controls
        What is asked for.
    rows, problem, solver, alphas, device, backend, class_weight, known
        As of `fit_layer`.
    fit, evaluation
        The layer's probes and their scores.
    draws
        Row weights ``[draw, test row]`` of the cluster bootstrap.

    Yields
    ------
    dict
        The columns of `CONTROL_COLUMNS` that tell controls apart; those that mean nothing are left out.
    """
    primary = PRIMARY[problem.kind]
    value = _of_all(evaluation, primary)["value"]

    def probe_again(
        name: str, loss: str, rows: Rows, problem: Problem, known: LabelFree | None
    ) -> Iterator[dict[str, Any]]:
        again = fit_layer(
            rows, problem, solver, alphas, device, backend=backend, class_weight=class_weight, known=known
        )
        judged = evaluate(problem, again.scores, draws, probabilities=solver in PROBABILISTIC)
        row = _of_all(judged, primary)
        yield {"control": name, "metric": primary} | {column: row[column] for column in ("value", "low", "high")}
        difference = paired_difference(value, row["value"], evaluation.draws[primary], judged.draws[primary])
        yield {"control": loss, "metric": primary} | _told(difference)

    if solver in PROBABILISTIC:
        information = v_information(problem, fit.scores, draws)
        yield {
            "control": "v-information",
            "metric": "bits",
            "value": float(information.value[-1]),
            "low": float(information.low[-1]),
            "high": float(information.high[-1]),
        }
    if controls.permutations:
        assert known is not None, "ridge probes have been fitted from them"
        null = permutation_null(rows, problem, known.bases[-1], fit.alpha, n=controls.permutations, seed=controls.seed)
        low, high = interval(null)
        yield {
            "control": "permutation",
            "metric": primary,
            "value": float(np.nanmean(null)),
            "low": float(low),
            "high": float(high),
            "p": p_value(value, null, primary),
        }
    if controls.task is not None:
        yield from probe_again("control task", "selectivity", rows, controls.task.problem, known)
    if controls.erased is not None:
        without = ErasedRows(rows, controls.eraser(rows, problem, device))
        yield from probe_again("erased", "erasure loss", without, problem, None)
    if controls.codelength:
        code = online_codelength(rows, problem, fit.alpha, seed=controls.seed, device=device)
        yield {"control": "online code", "metric": "bits", "value": float(code.bits.sum())}
        yield {"control": "online code", "metric": "uniform bits", "value": float(code.uniform_bits.sum())}
        yield {"control": "online code", "metric": "prior bits", "value": float(code.prior_bits.sum())}
        yield {"control": "online code", "metric": "compression", "value": code.total_compression}
    if controls.variants is not None:
        matrix = transfer(
            rows,
            problem,
            controls.variants,
            draws,
            solver=solver,
            alphas=alphas,
            device=device,
            backend=backend,
            class_weight=class_weight,
        )
        for i, trained in enumerate(matrix.variants):
            for j, tested in enumerate(matrix.variants):
                yield {
                    "control": "transfer",
                    "metric": matrix.metric,
                    "trained_on": trained,
                    "tested_on": tested,
                    "value": float(matrix.value[i, j]),
                    "low": float(matrix.low[i, j]),
                    "high": float(matrix.high[i, j]),
                }
        yield {"control": "transfer loss", "metric": matrix.metric} | _told(matrix.loss())


def _told(difference: Difference) -> dict[str, float]:
    return {name: float(getattr(difference, name)) for name in ("value", "low", "high")}


def _of_all(evaluation: Evaluation, metric: str) -> dict[str, Any]:
    """The row of all targets together, on the test rows."""
    wanted = (metric, ALL, "test")
    return next(row for row in evaluation.records if (row["metric"], row["target"], row["split"]) == wanted)
