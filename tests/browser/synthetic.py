"""Results of runs that nobody made: curves that rise and fall, with every control that a report draws."""

from typing import Any

import numpy as np
import pandas as pd

from sonde.probes import Results
from sonde.probes.findings import NO_CUE, Findings
from sonde.probes.tables import COLUMNS, CONTROL_COLUMNS, PENALTY_COLUMNS, RELIABILITY_COLUMNS

METRICS = ("average_precision", "accuracy", "balanced_accuracy", "f1", "auroc", "calibrated_log_loss", "calibrated_ece")
LABELS, PRIMARY = "objects", METRICS[0]
N_BINS = 15
PLACE = {"site": "resid_post", "tokens": "last", "solver": "ridge"}


def make_run(number: int, n_layers: int, n_targets: int) -> Results:
    """One run of multi-label probes; each target peaks in a layer of its own."""
    rng = np.random.default_rng(number)
    origin: dict[str, Any] = {"model": f"model-{number}", "store": f"run-{number}.zarr", "labels": LABELS}
    provenance = origin | {"weights": "pretrained", "n_layers": n_layers, "primary": {LABELS: PRIMARY}}
    provenance |= {"throughput": {"samples_per_s": 120.5, "tokens_per_s": 31_000.0, "bytes_per_s": 2.5e8}}
    layers = np.arange(n_layers)
    return Results(
        scores(rng, n_layers, n_targets).assign(**origin)[list(COLUMNS)],
        provenance=provenance,
        controls=controls(layers).assign(**origin | PLACE)[list(CONTROL_COLUMNS)],
        penalties=penalties(rng, layers).assign(**origin | PLACE)[list(PENALTY_COLUMNS)],
        reliability=reliability(rng, layers).assign(**origin | PLACE)[list(RELIABILITY_COLUMNS)],
    )


def scores(rng: np.random.Generator, n_layers: int, n_targets: int) -> pd.DataFrame:
    layer, target = (a.ravel() for a in np.meshgrid(np.arange(n_layers), np.arange(n_targets + 1), indexing="ij"))
    names = np.array(["all", *(f"category {t}" for t in range(n_targets))])
    peak = np.append(n_layers // 2, rng.permutation(n_targets) * n_layers // n_targets)
    frames = []
    for metric in METRICS:
        value = 0.7 - 0.4 * np.abs(layer - peak[target]) / n_layers + 0.02 * rng.random(layer.size)
        for split in ("cv", "test"):
            known = {"layer": layer, "target": names[target], "metric": metric, "split": split, "value": value}
            if split == "test":
                known |= {"low": value - 0.03 * rng.random(value.size), "high": value + 0.03 * rng.random(value.size)}
            frames.append(pd.DataFrame(known | {"n_positive": 5 + 7 * (target * 31 % (n_targets + 1))} | PLACE))
        # The majority's probabilities are those that training rows have: there is nothing to calibrate.
        for solver, value_alone in () if metric.startswith("calibrated") else (("majority", 0.21), ("text", 0.33)):
            alone = {"site": "", "tokens": "", "layer": -1, "solver": solver, "target": "all", "split": "test"}
            ends = {"low": value_alone - 0.02, "high": value_alone + 0.02, "n_positive": 9}
            frames.append(pd.DataFrame([alone | ends | {"metric": metric, "value": value_alone}]))
    constant = {"alpha": 1.0, "n_train": 8000, "n_test": 2000, "converged": True, "split_hash": "ab", "seed": 0}
    return pd.concat(frames, ignore_index=True).assign(**constant)


def controls(layers: np.ndarray[Any, Any]) -> pd.DataFrame:
    null = {"control": "permutation", "trained_on": "", "tested_on": "", "value": 0.22, "low": 0.2, "high": 0.24}
    matrix = [
        {"control": "transfer", "trained_on": one, "tested_on": other, "value": 0.6 - 0.1 * (one != other)}
        | {"low": 0.4, "high": 0.7}
        for one in ("plain", "polite", "terse")
        for other in ("plain", "polite", "terse")
    ]
    rows = [row | {"layer": layer, "metric": PRIMARY, "p": 0.01} for layer in layers for row in (null, *matrix)]
    return pd.DataFrame(rows)


def penalties(rng: np.random.Generator, layers: np.ndarray[Any, Any]) -> pd.DataFrame:
    best = rng.integers(3, 14, layers.size)
    rows = [
        {"layer": layer, "alpha": 10.0 ** (step / 2 - 1), "error": 0.1 + 0.004 * (step - best[i]) ** 2}
        | {"n_chosen": 5 * int(step == best[i])}
        for i, layer in enumerate(layers)
        for step in range(17)
    ]
    return pd.DataFrame(rows)


def reliability(rng: np.random.Generator, layers: np.ndarray[Any, Any]) -> pd.DataFrame:
    rows = [
        {"layer": layer, "calibrated": True, "bin": b, "n": 400 - 20 * b, "predicted": (b + 0.5) / N_BINS}
        | {"observed": min(1.0, (b + 0.5 + rng.random()) / N_BINS)}
        for layer in layers
        for b in range(N_BINS)
    ]
    return pd.DataFrame(rows)


def make_findings(results: Results) -> Findings:
    """What a study would say of the first run, and of the second as the same with a cue."""
    lines = results.summary()
    named = {"model": "model-0", "task": "recognition"}
    peaks = lines.head(2).assign(cue=[NO_CUE, "cue"], n_layers=12, **named)
    n_layers = int(lines["top_layer"].max()) + 1
    change = {"site": "resid_post", "tokens": "last", "metric": PRIMARY, "cue": "cue"} | named
    cues = [
        change | {"layer": layer, "difference": 0.01 * layer, "low": 0.01 * layer - 0.02, "high": 0.01 * layer + 0.02}
        for layer in range(n_layers)
    ]
    return Findings(peaks, pd.DataFrame(cues), pd.DataFrame(), pd.DataFrame())
