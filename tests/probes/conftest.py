"""A small store whose layers know four kinds of labels more or less well, and what scikit-learn makes of it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sonde.store import ArraySpec, Labels, Schema, Store

Floats = np.ndarray[Any, Any]
N_SAMPLES, RANGE_SIZE, HIDDEN = 240, 64, 12
LAYERS, STRENGTH = (0, 2, 5, 9), (0.2, 0.6, 1.2, 0.8)
UNLABELLED, SKIPPED = range(10, 16), {30: "image is broken", 31: "image is broken", 101: "prompt is too long"}
COLOURS, OBJECTS = ("blue", "green", "red", "violet"), ("cat", "dog", "owl", "unicorn")
ALPHAS = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0)


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A store, and what was put into it.

    ``activations``: by array ``[layer, sample, hidden]`` as float32 of what the store holds; ``truth``: by labels
    ``[sample, target]``, one-hot for classes; ``used``: samples that have labels and activations.
    """

    path: Path
    store: Store
    activations: Mapping[str, Floats]
    truth: Mapping[str, Floats]
    used: Floats

    def x(self, layer: int, array: str = "resid_post/last") -> Floats:
        """Activations of one layer, float32 ``[sample, hidden]``."""
        spec = next(spec for spec in self.store.arrays if spec.name == array)
        return np.asarray(self.activations[array][spec.layers.index(layer)])


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What scikit-learn says: ``alpha`` [target], ``test`` scores and out-of-fold ``cv`` scores ``[row, target]``."""

    alpha: Floats
    test: Floats
    cv: Floats


def write_store(
    path: Path,
    activations: Mapping[str, Floats],
    layers: Mapping[str, Sequence[int]],
    groups: Sequence[str],
    *,
    dtype: str = "float32",
    split: Sequence[str] | None = None,
    skipped: Mapping[int, str] | None = None,
    range_size: int = RANGE_SIZE,
    commit: int | None = None,
) -> Store:
    """Write arrays ``{"site/tokens": [layer, sample, hidden]}`` to a new store, all ranges or the first `commit`."""
    specs = tuple(
        ArraySpec(*name.rsplit("/", 1), tuple(layers[name.rsplit("/", 1)[0]]), values.shape[2])
        for name, values in activations.items()
    )
    columns = {"id": [f"s{i}" for i in range(len(groups))], "group": list(groups)}
    if split is not None:
        columns["split"] = list(split)
    model = {"name": "tiny", "weights": "random", "n_layers": 10}
    store = Store.create(path, Schema(specs, len(groups), range_size, model, {}, dtype=dtype), columns)
    writer = store.writer()
    for range_ in store.ranges[:commit]:
        buffers = writer.buffers()
        for name, buffer in buffers.items():
            buffer[:, : len(range_)] = activations[name][:, range_.rows]
        here = range(range_.start, range_.stop)
        writer.commit(range_, buffers, {row: why for row, why in (skipped or {}).items() if row in here})
    store.refresh()
    return store


def write_example(path: Path, dtype: str = "float32") -> Example:
    """Write the example's store: groups of two, six samples without labels, three without activations."""
    rng = np.random.default_rng(0)
    hidden_truth = rng.normal(size=(N_SAMPLES, 3))
    noisy = hidden_truth + 0.4 * rng.normal(size=hidden_truth.shape)
    mixing = rng.normal(size=(3, HIDDEN))
    noise = rng.normal(size=(len(LAYERS), N_SAMPLES, HIDDEN))
    last = np.stack([s * hidden_truth @ mixing for s in STRENGTH]) + noise
    last[:, :, 3] += 50.0  # residual streams have columns whose mean is far from zero
    last[:, :, 4] = 7.0  # and constant ones
    native: Any = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    values = {"resid_post/last": last, "embed/mean": hidden_truth[None] @ mixing[:, :5] + noise[:1, :, :5]}
    values = {name: x.astype(native).astype(np.float32) for name, x in values.items()}
    layers = {"resid_post": LAYERS, "embed": (0,)}
    groups = [f"g{i // 2}" for i in range(N_SAMPLES)]
    store = write_store(path, values, layers, groups, dtype=dtype, skipped=SKIPPED)
    objects = noisy > [-0.6, 0.0, 0.8]
    objects = np.column_stack([objects, np.arange(N_SAMPLES) == 7])
    classes = noisy.argmax(axis=1)
    truth = {
        "entailment": (noisy[:, :1] > 0).astype(float),
        "colour": np.eye(3)[classes],
        "objects": objects[:, :3].astype(float),
        "size": noisy @ [[1.0], [-2.0], [0.5]],
    }
    columns = {
        "entailment": (truth["entailment"][:, 0].astype(bool).tolist(), None),
        "colour": ([COLOURS[c] for c in classes], COLOURS),
        "objects": ([[OBJECTS[t] for t in np.flatnonzero(row)] for row in objects], OBJECTS),
        "size": (truth["size"][:, 0].tolist(), None),
    }
    for name, (column, names) in columns.items():
        known = [None if i in UNLABELLED else value for i, value in enumerate(column)]
        store.write_labels(Labels.from_column(name, known, classes=names))
    used = np.ones(N_SAMPLES, dtype=bool)
    used[[*UNLABELLED, *SKIPPED]] = False
    return Example(path, store, values, truth, used)


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The example in float32; tests do not write to it."""
    return write_example(tmp_path_factory.mktemp("example") / "run.zarr")


@pytest.fixture(scope="session")
def bfloat16_example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """The example as stores are by default."""
    return write_example(tmp_path_factory.mktemp("bfloat16") / "run.zarr", "bfloat16")


@pytest.fixture(scope="session")
def make_store() -> Callable[..., Store]:
    """Maker of other stores."""
    return write_store


@pytest.fixture(scope="session")
def ask_sklearn() -> Callable[..., Answer]:
    """Fits scikit-learn's pipeline to the same split, with the same rule for the penalty."""

    def ask(x: Floats, y: Floats, split: Any, kind: str, solver: str, alphas: Sequence[float] = ALPHAS) -> Answer:
        with threadpool_limits(1):  # such small products gain nothing by threads
            return _ask_sklearn(x, y, split, kind, solver, alphas)

    return ask


@pytest.fixture(scope="session")
def score_with_sklearn() -> Callable[..., dict[str, Floats]]:
    """Computes every metric of a kind of labels by others, most by scikit-learn: ``{name: [target]}``, NaN for none."""
    return _score_with_sklearn


def _score_with_sklearn(kind: str, y: Floats, scores: Floats, *, probabilities: bool = True) -> dict[str, Floats]:
    if kind == "regression":
        found = {"r2": sk.r2_score(y, scores), "mean_squared_error": sk.mean_squared_error(y, scores)}
        varies = np.ptp(y) > 0 and np.ptp(scores) > 0
        found["pearson_r"] = np.corrcoef(y[:, 0], scores[:, 0])[0, 1] if varies else np.nan
        return {name: np.array([value]) for name, value in found.items()}
    if kind == "multiclass":
        both = np.flatnonzero(np.ptp(y, axis=0) > 0)
        one_against_rest = [sk.roc_auc_score(y[:, c], scores[:, c]) for c in both]
        y = y.argmax(axis=1)
        answer = scores.argmax(axis=1)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            found = {
                "accuracy": sk.accuracy_score(y, answer),
                "balanced_accuracy": sk.balanced_accuracy_score(y, answer),
                "macro_f1": sk.f1_score(y, answer, average="macro"),
                "macro_auroc": np.mean(one_against_rest) if both.size else np.nan,
            }
        if probabilities:
            classes = range(scores.shape[1])
            found["log_loss"] = sk.log_loss(y, scores, labels=classes)
            found["brier"] = sk.brier_score_loss(y, scores, labels=classes, scale_by_half=False)
            found["ece"] = _calibration_error(y == answer, scores.max(axis=1))
        return {name: np.array([value]) for name, value in found.items()}
    columns = [_score_target(y[:, t], scores[:, t], probabilities) for t in range(y.shape[1])]
    return {name: np.array([column[name] for column in columns]) for name in columns[0]}


def _score_target(y: Floats, scores: Floats, probabilities: bool) -> dict[str, float]:
    answer, nan = scores > 0.5, float("nan")
    both = np.ptp(y) > 0
    found = {
        "accuracy": sk.accuracy_score(y, answer),
        "balanced_accuracy": sk.balanced_accuracy_score(y, answer) if both else nan,
        "average_precision": sk.average_precision_score(y, scores) if y.any() else nan,
        "auroc": sk.roc_auc_score(y, scores) if both else nan,
        "f1": sk.f1_score(y, answer, zero_division=0.0) if y.any() else nan,
    }
    if probabilities:
        found["log_loss"] = sk.log_loss(y, scores, labels=[0, 1])
        found["brier"] = sk.brier_score_loss(y, scores, pos_label=1)
        found["ece"] = _calibration_error(y, scores)
    return found


def _calibration_error(y: Floats, chance: Floats) -> float:
    """Sum the gaps of 15 bins, row by row."""
    gaps = [0.0] * 15
    for truth, p in zip(y, chance, strict=True):
        gaps[max(i for i in range(15) if i == 0 or p > np.linspace(0, 1, 16)[i])] += float(truth - p)
    return sum(map(abs, gaps)) / len(y)


def _ask_sklearn(x: Floats, y: Floats, split: Any, kind: str, solver: str, alphas: Sequence[float]) -> Answer:
    train = split.folds >= 0
    x = x.astype(np.float64)
    folds = PredefinedSplit(split.folds[train])
    joint = kind == "multiclass"
    alpha, cv, test = [], [], []
    for columns in [slice(None)] if joint else [slice(t, t + 1) for t in range(y.shape[1])]:
        target = y[train, columns]
        if solver == "logistic":
            target = target.argmax(axis=1) if joint else target[:, 0]
        best = None
        for a in sorted(alphas, reverse=True):
            method = "predict_proba" if solver == "logistic" else "predict"
            scores = cross_val_predict(_pipeline(solver, a), x[train], target, cv=folds, method=method)
            error = _error(solver, target, scores)
            if best is None or error < best[0]:
                best = (error, a, scores)
        assert best is not None
        model = _pipeline(solver, best[1]).fit(x[train], target)
        scores = model.predict_proba(x[split.test]) if solver == "logistic" else model.predict(x[split.test])
        n_columns = y[:, columns].shape[1]
        alpha += [best[1]] * n_columns
        cv.append(_columns(best[2], solver, joint))
        test.append(_columns(scores, solver, joint))
    return Answer(np.array(alpha), np.concatenate(test, axis=1), np.concatenate(cv, axis=1))


def _pipeline(solver: str, alpha: float) -> Any:
    last = Ridge(alpha) if solver == "ridge" else LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000)
    return make_pipeline(StandardScaler(), last)


def _error(solver: str, target: Floats, scores: Floats) -> float:
    return float(sk.log_loss(target, scores) if solver == "logistic" else 1 - sk.r2_score(target, scores))


def _columns(scores: Floats, solver: str, joint: bool) -> Floats:
    if solver == "logistic" and not joint:
        scores = scores[:, 1]
    return scores.reshape(len(scores), -1)
