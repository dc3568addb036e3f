"""Differences between layers on the bootstrap draws that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .bootstrap import paired_difference
from .evaluate import Evaluation
from .layers import ProbedLayer
from .metrics import higher_is_better
from .problem import ALL


def compare_layers(done: Sequence[ProbedLayer], primary: str) -> Iterator[dict[str, Any]]:
    """Compare the best layer of every curve with each other layer of it, by every metric.

    Parameters
    ----------
    done
        The layers of all curves, those of a curve in ascending order.
    primary
        The metric whose cross-validated value chooses the best layer; of equal ones, the lowest.

    Yields
    ------
    dict
        The columns of `COMPARISON_COLUMNS` that tell layers and metrics apart.
    """
    sign = 1 if higher_is_better(primary) else -1
    curves: dict[str, list[ProbedLayer]] = {}
    for probed in done:
        curves.setdefault(probed.spec.name, []).append(probed)
    for curve in curves.values():
        values = [_values(probed.evaluation) for probed in curve]
        chosen = np.array([sign * value[primary, "cv"] for value in values])
        best = int(np.argmax(np.where(np.isnan(chosen), -np.inf, chosen)))
        for metric, draws in curve[best].evaluation.draws.items():
            for i, other in enumerate(curve):
                if i == best:
                    continue
                pair = values[best][metric, "test"], values[i][metric, "test"]
                difference = paired_difference(*pair, draws, other.evaluation.draws[metric])
                yield {
                    "site": other.spec.site,
                    "tokens": other.spec.tokens,
                    "metric": metric,
                    "best_layer": curve[best].probe.layer,
                    "other_layer": other.probe.layer,
                    "best": pair[0],
                    "other": pair[1],
                    "difference": float(difference.value),
                    "low": float(difference.low),
                    "high": float(difference.high),
                    "p": float(difference.p),
                }


def draw_table(done: Sequence[ProbedLayer]) -> pd.DataFrame:
    """Tabulate the draws of every layer and metric: the columns of `DRAW_COLUMNS` that tell these apart."""
    blocks = [
        ({"site": p.spec.site, "tokens": p.spec.tokens, "layer": p.probe.layer, "metric": metric}, draws)
        for p in done
        for metric, draws in p.evaluation.draws.items()
    ]
    sizes = [len(draws) for _, draws in blocks]
    keys = pd.DataFrame([key for key, _ in blocks]).astype({"site": "category", "tokens": "category"})
    table = keys.astype({"metric": "category"}).loc[np.repeat(np.arange(len(blocks)), sizes)].reset_index(drop=True)
    draw = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
    return table.assign(draw=draw, value=np.concatenate([draws for _, draws in blocks]))


def _values(evaluation: Evaluation) -> dict[tuple[str, str], float]:
    """Values over all targets by metric and split."""
    return {(r["metric"], r["split"]): r["value"] for r in evaluation.records if r["target"] == ALL}
