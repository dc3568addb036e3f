"""Layers are compared on the draws that they share, by every metric, from the one that cross-validation chose."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sonde.probes import Probe, Problem, Results, probe
from sonde.probes.bootstrap import cluster_weights, paired_difference
from sonde.probes.compare import compare_layers, draw_table
from sonde.probes.evaluate import Evaluation
from sonde.probes.layers import ProbedLayer
from sonde.probes.metrics import score
from sonde.store import ArraySpec

N_DRAWS = 50


def make_layer(layer: int, tokens: str = "last", *, seed: int = 0, **values: tuple[float, float]) -> ProbedLayer:
    """One layer with the cross-validated and the test value of each metric, and made-up draws."""
    rng = np.random.default_rng([layer, seed])
    records = [
        {"metric": metric, "target": "all", "split": split, "value": value}
        for metric, pair in values.items()
        for split, value in zip(("cv", "test"), pair, strict=True)
    ]
    draws = {metric: (pair[1] + 0.1 * rng.normal(size=N_DRAWS)).astype(np.float32) for metric, pair in values.items()}
    spec = ArraySpec("resid_post", tokens, (0, 1, 2), 1)
    zeros = np.zeros((1, 1), dtype=np.float32)
    fitted = Probe("resid_post", tokens, layer, "asked", "ridge", "binary", ("asked",), zeros, zeros[0], (1.0,))
    return ProbedLayer(spec, fitted, zeros.astype(float), Evaluation(records, draws, []), np.empty((0, 0)))


def test_the_best_layer_meets_every_other_layer_of_its_curve_by_every_metric() -> None:
    curve = [
        make_layer(0, accuracy=(0.6, 0.9), auroc=(0.9, 0.95)),
        make_layer(1, accuracy=(0.8, 0.7), auroc=(0.7, 0.75)),
        make_layer(2, accuracy=(0.7, 0.8), auroc=(0.8, 0.85)),
    ]
    alone = make_layer(1, "mean", accuracy=(0.9, 0.9), auroc=(0.9, 0.9))
    rows = list(compare_layers([*curve, alone], "accuracy"))
    found = {(row["metric"], row["best_layer"], row["other_layer"]) for row in rows}
    assert found == {(metric, 1, other) for metric in ("accuracy", "auroc") for other in (0, 2)}
    assert {(row["site"], row["tokens"]) for row in rows} == {("resid_post", "last")}
    [row] = [row for row in rows if (row["metric"], row["other_layer"]) == ("auroc", 2)]
    ours, theirs = (curve[i].evaluation.draws["auroc"].astype(float) for i in (1, 2))
    assert (row["best"], row["other"], row["difference"]) == pytest.approx((0.75, 0.85, -0.1))
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.quantile(ours - theirs, [0.025, 0.975])))
    assert row["p"] == paired_difference(0.75, 0.85, ours, theirs).p


def test_the_best_of_a_loss_is_its_lowest_and_no_layer_without_a_value_is_chosen() -> None:
    curve = [make_layer(i, brier=(value, 0.5)) for i, value in enumerate([np.nan, 0.3, 0.2])]
    assert {row["best_layer"] for row in compare_layers(curve, "brier")} == {2}
    curve = [make_layer(i, accuracy=(value, 0.5)) for i, value in enumerate([np.nan, 0.3, 0.3])]
    assert {row["best_layer"] for row in compare_layers(curve, "accuracy")} == {1}


def test_the_table_holds_every_draw_of_every_layer_and_metric() -> None:
    done = [make_layer(0, accuracy=(0.6, 0.9), auroc=(0.9, 0.95)), make_layer(2, accuracy=(0.7, 0.8), auroc=(0.8, 0.9))]
    table = draw_table(done)
    assert len(table) == 2 * 2 * N_DRAWS
    for probed in done:
        for metric, draws in probed.evaluation.draws.items():
            rows = table[(table["layer"] == probed.probe.layer) & (table["metric"] == metric)]
            assert rows["draw"].tolist() == list(range(N_DRAWS))
            np.testing.assert_array_equal(rows["value"], draws)


def test_any_two_layers_can_be_compared_after_a_run(example: Any, tmp_path: Path) -> None:
    probe(example.store, "objects", tokens=["last"], n_draws=N_DRAWS, seed=3, out=tmp_path / "out")
    found = Results.load(tmp_path / "out")
    problem = Problem.of(example.store, "objects", seed=3)
    test = problem.split.test
    weights = cluster_weights(problem.groups[test].tolist(), N_DRAWS, 3)
    saved = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    values = {}
    for layer in (0, 9):
        scores = saved.loc[saved["layer"] == layer, "score"].to_numpy().reshape(-1, len(problem.targets))
        values[layer] = [score("multilabel", problem.y[test], scores, w) for w in (None, weights)]
    for metric in ("average_precision", "auroc", "f1", "accuracy"):
        plain, drawn = (values[0][i][metric].mean(axis=-1) - values[9][i][metric].mean(axis=-1) for i in (0, 1))
        difference = found.difference(0, 9, metric)
        assert difference.value == pytest.approx(plain)
        assert (difference.low, difference.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-6)
    best = found.best()["layer"]
    row = found.comparisons[(found.comparisons["metric"] == "auroc") & (found.comparisons["other_layer"] == 0)].iloc[0]
    again = found.difference(best, 0, "auroc")
    assert (row["low"], row["high"], row["p"]) == (again.low, again.high, again.p)
