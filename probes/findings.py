"""What a study found: the same questions asked of several models, with and without cues, in several words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sonde.errors import StoreError

from .bootstrap import paired_difference
from .results import Results
from .tables import CURVE

NO_CUE = "no-cue"
_SITE = ("site", "tokens")
_DEPTHS = 33
# A score above this says yes: ridge's targets are 0 and 1, logistic scores are probabilities.
_YES = 0.5


@dataclass(frozen=True, eq=False)
class Answer:
    """What one model's layers answered to one question.

    Attributes
    ----------
    model, task, cue
        Names; a question without a cue has the cue `NO_CUE`.
    results
        Of one solver.
    folder
        Where they are saved, with the scores of every test sample.
    """

    model: str
    task: str
    cue: str
    results: Results
    folder: Path

    @property
    def names(self) -> dict[str, str]:
        """Model, task and cue."""
        return {"model": self.model, "task": self.task, "cue": self.cue}

    @cached_property
    def peak(self) -> Mapping[str, Any]:
        """The line of `Results.summary` whose best layer has the best cross-validated score."""
        return {str(name): value for name, value in self.results.summary().iloc[0].items()}

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return int(self.results.runs[0]["n_layers"])


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """The tables of a study.

    Attributes
    ----------
    peaks
        A row per answer: its peak (`Answer.peak`) with the number of layers.
    cues
        A row per answer with a cue, site, tokens and layer: its score less that without the cue, on the same test
        groups, with the 95 % interval of paired draws.
    prompts
        A row per answer whose prompts differ in words, at its best layer: the mean score of probes on the prompt that
        they were trained on, on the other prompts, and the difference with its interval.
    models
        A row per question and pair of models: the scores of their best layers and, where both were tested on the same
        groups, the difference with its interval; Spearman's correlation of their layer curves over relative depth, and
        Cohen's kappa of the answers of their best layers on the test samples that both have.
    """

    peaks: pd.DataFrame
    cues: pd.DataFrame
    prompts: pd.DataFrame
    models: pd.DataFrame

    @classmethod
    def of(cls, answers: Sequence[Answer]) -> Findings:
        """Compare answers.

        Raises
        ------
        StoreError
            If the scores or draws of one cannot be read.
        """
        return cls(
            pd.DataFrame([dict(answer.peak) | answer.names | {"n_layers": answer.n_layers} for answer in answers]),
            pd.DataFrame(_cues(answers)),
            pd.DataFrame(_prompts(answers)),
            pd.DataFrame(_models(answers)),
        )


def _cues(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    plain = {(answer.model, answer.task): answer for answer in answers if answer.cue == NO_CUE}
    for answer in answers:
        other = plain.get((answer.model, answer.task))
        if answer.cue == NO_CUE or other is None or not _paired(answer.results, other.results):
            continue
        metric = answer.peak["metric"]
        ours, theirs = (_curves(one.results, metric) for one in (answer, other))
        for key in sorted(ours.keys() & theirs.keys()):
            (value, draws), (its, its_draws) = ours[key], theirs[key]
            found = paired_difference(value, its, draws, its_draws)
            place = dict(zip((*_SITE, "layer"), key, strict=True))
            told = {"difference": float(found.value), "low": float(found.low), "high": float(found.high)}
            yield answer.names | place | {"metric": metric} | told


def _paired(one: Results, other: Results) -> bool:
    """Whether the bootstrap drew the same of the same test groups, and the same is asked."""
    same = ("test_groups", "seed", "n_draws", "kind", "solver")
    return all(one.runs[0].get(name) == other.runs[0].get(name) for name in same)


def _curves(results: Results, metric: str) -> dict[tuple[Any, ...], tuple[float, NDArray[Any]]]:
    """(site, tokens, layer) -> test score and draws."""
    rows = results.rows
    rows = rows[
        (rows["metric"] == metric) & (rows["split"] == "test") & (rows["target"] == "all") & (rows["layer"] >= 0)
    ]
    columns = (rows[name] for name in (*_SITE, "layer", "value"))
    values = {(site, tokens, layer): float(value) for site, tokens, layer, value in zip(*columns, strict=True)}
    draws = results.draws
    draws = draws[draws["metric"] == metric].sort_values("draw")
    drawn = {key: of["value"].to_numpy() for key, of in draws.groupby([*_SITE, "layer"], observed=True)}
    return {key: (value, drawn[key]) for key, value in values.items() if key in drawn}


def _prompts(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    for answer in answers:
        peak, controls = answer.peak, answer.results.controls
        if controls.empty:
            continue
        here = controls[(controls[[*CURVE]] == pd.Series({c: peak[c] for c in CURVE})).all(axis=1)]
        here = here[here["layer"] == peak["best_layer"]]
        loss, matrix = (here[here["control"] == name] for name in ("transfer loss", "transfer"))
        if len(loss) != 1 or matrix["trained_on"].nunique() < 2:
            continue
        own = matrix["trained_on"] == matrix["tested_on"]
        yield answer.names | {
            "metric": peak["metric"],
            "layer": int(peak["best_layer"]),
            "n_prompts": int(matrix["trained_on"].nunique()),
            "same": float(matrix.loc[own, "value"].mean()),
            "other": float(matrix.loc[~own, "value"].mean()),
            **{name: float(loss[name].iloc[0]) for name in ("value", "low", "high")},
        }


def _models(answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    from scipy.stats import spearmanr

    questions: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        questions.setdefault((answer.task, answer.cue), []).append(answer)
    for (task, cue), asked in questions.items():
        curves = {answer.model: _by_depth(answer) for answer in asked}
        said = {answer.model: _said(answer) for answer in asked} if len(asked) > 1 else {}
        of = {answer.model: answer for answer in asked}
        for one, other in combinations(curves, 2):
            both = said[one].to_frame("one").join(said[other].to_frame("other"), how="inner")
            constant = any(np.ptp(curves[name]) == 0 for name in (one, other))
            yield {
                "task": task,
                "cue": cue,
                "model": one,
                "other": other,
                **_gap(of[one], of[other]),
                "correlation": np.nan if constant else float(spearmanr(curves[one], curves[other]).statistic),
                "kappa": _kappa(both["one"].to_numpy(), both["other"].to_numpy()),
                "n_answers": len(both),
            }


def _gap(one: Answer, other: Answer) -> dict[str, Any]:
    """Compare best layers: scores of both, and their difference on the same test groups."""
    told = {"metric": one.peak["metric"], "best": float(one.peak["best"]), "other_best": float(other.peak["best"])}
    if not _paired(one.results, other.results):
        return told | dict.fromkeys(("difference", "low", "high"), np.nan)
    places = [tuple(answer.peak[name] for name in (*_SITE, "best_layer")) for answer in (one, other)]
    curves = [_curves(answer.results, told["metric"]) for answer in (one, other)]
    (value, draws), (its, its_draws) = (curve[place] for curve, place in zip(curves, places, strict=True))
    found = paired_difference(value, its, draws, its_draws)
    return told | {"difference": float(found.value), "low": float(found.low), "high": float(found.high)}


def _by_depth(answer: Answer) -> NDArray[np.float64]:
    """Test scores of the best curve, interpolated between its layers, from the first to the last."""
    peak, rows = answer.peak, answer.results.rows
    wanted = pd.Series({name: peak[name] for name in (*CURVE, "metric")} | {"split": "test", "target": "all"})
    curve = rows[(rows[list(wanted.index)] == wanted).all(axis=1)].sort_values("layer")
    depth = np.linspace(0, 1, len(curve))
    return np.asarray(np.interp(np.linspace(0, 1, _DEPTHS), depth, curve["value"].to_numpy()))


def _said(answer: Answer) -> pd.Series[Any]:
    """What the best layer's probe says of every test sample and target: yes or no, or the class."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    peak = answer.peak
    path = answer.folder / "scores.parquet"
    wanted = [(name, "=", peak[name]) for name in _SITE] + [("layer", "=", int(peak["best_layer"]))]
    try:
        scores = pq.read_table(path, columns=["id", "target", "score"], filters=wanted).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as Parquet ({error}): run `sonde probe` again") from error
    if answer.results.runs[0]["kind"] == "multiclass":
        classes: pd.Series[Any] = scores.loc[scores.groupby("id")["score"].idxmax()].set_index("id")["target"]
        return classes
    yes: pd.Series[Any] = scores.set_index(["id", "target"])["score"] > _YES
    return yes


def _kappa(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Agreement beyond chance, (p − e) / (1 − e); Cohen (1960). NaN if chance explains all."""
    if not one.size:
        return float("nan")
    observed = np.mean(one == other)
    expected = sum(np.mean(one == name) * np.mean(other == name) for name in np.union1d(one, other))
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")
