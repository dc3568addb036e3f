"""From a store to tables of scores: the same as scikit-learn's, and nothing that a test row could have told."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor

from sonde.callbacks import OnProgress
from sonde.errors import InputError, StoreError
from sonde.probes import Problem, Results, load_probes, probe
from sonde.probes.bootstrap import cluster_weights
from sonde.store import Labels, Store

ALPHAS, N_DRAWS, SEED = (0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0), 40, 3
QUESTIONS = [
    ("entailment", "ridge"),
    ("entailment", "logistic"),
    ("colour", "ridge"),
    ("colour", "logistic"),
    ("objects", "ridge"),
    ("objects", "logistic"),
    ("size", "ridge"),
]
TARGETS = {
    "entailment": ["entailment"],
    "colour": ["blue", "green", "red"],
    "objects": ["cat", "dog", "owl"],
    "size": ["size"],
}


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run on the example, where it is saved, and its problem."""

    results: Results
    folder: Path
    problem: Problem

    def saved(self, layer: int, array: str = "resid_post/last") -> pd.DataFrame:
        """Rows of ``scores.parquet`` of one layer."""
        table = pd.read_parquet(self.folder / "scores.parquet")
        return table[(table["site"] + "/" + table["tokens"] == array) & (table["layer"] == layer)]

    def scores(self, layer: int, array: str = "resid_post/last") -> np.ndarray[Any, Any]:
        """Test scores ``[test row, target]``."""
        return self.saved(layer, array)["score"].to_numpy().reshape(-1, len(self.problem.targets))

    def rows(self, layer: int, split: str) -> pd.DataFrame:
        """Rows of the results of one layer, by metric and target, without those of calibrated probabilities."""
        rows = self.results.rows
        site = "resid_post" if layer >= 0 else ""
        rows = rows[(rows["layer"] == layer) & (rows["site"] == site) & (rows["split"] == split)]
        return rows[~rows["metric"].str.startswith("calibrated_")].set_index(["metric", "target"])


@pytest.fixture(scope="module")
def ask(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Run]:
    """Runs every question once for all tests."""
    runs: dict[tuple[str, str], Run] = {}

    def run(labels: str, solver: Any) -> Run:
        if (labels, solver) not in runs:
            folder = tmp_path_factory.mktemp("runs") / f"{labels}-{solver}"
            chosen = {"solver": solver, "alphas": ALPHAS, "n_draws": N_DRAWS, "seed": SEED}
            results = probe(example.path, labels, out=folder, **chosen)
            runs[labels, solver] = Run(results, folder, Problem.of(example.store, labels, seed=SEED))
        return runs[labels, solver]

    return run


def with_mean(values: dict[str, np.ndarray[Any, Any]], targets: list[str]) -> dict[tuple[str, str], float]:
    """Values by (metric, target), with the mean over targets that have one as "all"."""
    known = {name: column[~np.isnan(column)] for name, column in values.items()}
    flat = {(name, "all"): float(column.mean()) if column.size else np.nan for name, column in known.items()}
    if len(targets) > 1 and all(len(column) == len(targets) for column in values.values()):
        flat |= {(name, t): float(v) for name, column in values.items() for t, v in zip(targets, column, strict=True)}
    return flat


@pytest.mark.parametrize(("labels", "solver"), QUESTIONS)
def test_scores_are_those_of_scikit_learn(
    labels: str, solver: str, ask: Any, example: Any, ask_sklearn: Any, score_with_sklearn: Any
) -> None:
    run = ask(labels, solver)
    split, y = run.problem.split, example.truth[labels]
    chosen = {probe.name: probe.alpha for probe in load_probes(run.folder)}
    for array, layer in (("embed/mean", 0), ("resid_post/last", 0), ("resid_post/last", 5)):
        answer = ask_sklearn(example.x(layer, array), y, split, run.problem.kind, solver)
        saved = run.saved(layer, array)
        assert saved["id"].tolist() == np.repeat(example.store.ids[split.test], y.shape[1]).tolist()
        assert saved["target"].tolist() == TARGETS[labels] * int(split.test.sum())
        np.testing.assert_array_equal(saved["truth"].to_numpy().reshape(-1, y.shape[1]), y[split.test])
        assert chosen[f"{array}/{layer}"] == pytest.approx(answer.alpha)
        np.testing.assert_allclose(run.scores(layer, array), answer.test, atol=1e-4)
    expected = score_with_sklearn(run.problem.kind, y[split.folds >= 0], answer.cv, probabilities=solver == "logistic")
    found = run.rows(5, "cv")["value"]
    assert found.to_dict() == pytest.approx(with_mean(expected, TARGETS[labels]), abs=1e-4)


@pytest.mark.parametrize(("labels", "solver"), QUESTIONS)
def test_values_and_intervals_are_those_of_scikit_learn_on_every_draw(
    labels: str, solver: str, ask: Any, example: Any, score_with_sklearn: Any
) -> None:
    run, layer = ask(labels, solver), 2
    test, kind, names = run.problem.split.test, run.problem.kind, TARGETS[labels]
    y, scores = example.truth[labels][test], run.scores(layer)

    def score(rows: Any) -> dict[tuple[str, str], float]:
        values = score_with_sklearn(kind, y[rows], scores[rows], probabilities=solver == "logistic")
        return with_mean(values, names if kind == "multilabel" else [])

    found = run.rows(layer, "test")
    assert found["value"].to_dict() == pytest.approx(score(slice(None)), abs=1e-9)
    weights = cluster_weights(example.store.groups[test].tolist(), N_DRAWS, SEED)
    drawn = pd.DataFrame([score(np.repeat(np.arange(len(y)), draw)) for draw in weights])
    for key, draws in drawn.items():
        # Of many draws precisions and calibration errors are computed in float32.
        assert found.loc[key, ["low", "high"]].tolist() == pytest.approx(
            np.nanquantile(draws, [0.025, 0.975]), abs=1e-6
        )


@pytest.mark.parametrize(("labels", "solver"), QUESTIONS)
def test_the_baseline_is_the_constant_answer_of_the_training_rows(
    labels: str, solver: str, ask: Any, example: Any, score_with_sklearn: Any
) -> None:
    run = ask(labels, solver)
    split, kind, y = run.problem.split, run.problem.kind, example.truth[labels]
    train, x = split.folds >= 0, np.zeros((len(y), 1))
    if kind == "regression":
        constant = DummyRegressor(strategy="mean").fit(x[train], y[train]).predict(x[split.test])[:, None]
    elif kind == "multiclass":
        dummy = DummyClassifier(strategy="prior").fit(x[train], y[train].argmax(axis=1))
        constant = dummy.predict_proba(x[split.test])
    else:
        dummies = [DummyClassifier(strategy="prior").fit(x[train], column) for column in y[train].T]
        constant = np.column_stack([dummy.predict_proba(x[split.test])[:, 1] for dummy in dummies])
    expected = with_mean(score_with_sklearn(kind, y[split.test], constant), TARGETS[labels])
    baseline = run.rows(-1, "test")
    assert baseline["value"].to_dict() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert set(baseline["solver"]) == {"majority"}
    assert len(run.rows(-1, "cv")) == 0


def test_a_bfloat16_store_gives_the_scores_of_its_values_in_float32(
    bfloat16_example: Any, ask_sklearn: Any, tmp_path: Path
) -> None:
    probe(
        bfloat16_example.store, "objects", solver="logistic", alphas=ALPHAS, n_draws=2, layers=[5], out=tmp_path / "o"
    )
    split = Problem.of(bfloat16_example.store, "objects").split
    answer = ask_sklearn(bfloat16_example.x(5), bfloat16_example.truth["objects"], split, "multilabel", "logistic")
    scores = pd.read_parquet(tmp_path / "o" / "scores.parquet")["score"].to_numpy()
    np.testing.assert_allclose(scores.reshape(answer.test.shape), answer.test, atol=1e-4)


def test_the_tables_say_what_was_probed_and_how(ask: Any, example: Any) -> None:
    run = ask("objects", "logistic")
    probed = run.results.rows[run.results.rows["solver"] == "logistic"]
    layers = [("resid_post", "last", layer) for layer in (0, 2, 5, 9)] + [("embed", "mean", 0)]
    assert list(probed[["site", "tokens", "layer"]].drop_duplicates().itertuples(index=False, name=None)) == layers
    split = run.problem.split
    y, train = example.truth["objects"], split.folds >= 0
    assert set(run.results.rows["n_train"]) == {int(train.sum())}
    assert set(run.results.rows["n_test"]) == {int(split.test.sum())}
    assert set(run.results.rows["split_hash"]) == {split.hash}
    for part, rows in (("test", split.test), ("cv", train)):
        found = run.rows(5, part).loc["auroc", "n_positive"]
        assert found.to_dict() == dict(zip(TARGETS["objects"], y[rows].sum(axis=0), strict=True)) | {
            "all": y[rows].sum()
        }
    own = {(p.name, target): a for p in load_probes(run.folder) for target, a in zip(p.targets, p.alpha, strict=True)}
    for row in probed[probed["target"] != "all"].itertuples():
        assert row.alpha == own[f"{row.site}/{row.tokens}/{row.layer}", row.target]
    assert probed["converged"].all()
    provenance = Results.load(run.folder).provenance
    assert provenance["left_out"] == {"unicorn": "positives or negatives are missing from a training part"}
    assert provenance["alphas"] == list(ALPHAS)
    assert (provenance["n_draws"], provenance["seed"], provenance["primary"]) == (
        N_DRAWS,
        SEED,
        {"objects": "average_precision"},
    )
    assert (provenance["weights"], provenance["n_layers"]) == ("random", 10)
    pd.testing.assert_frame_equal(Results.load(run.folder).rows, run.results.rows)


def test_penalties_that_differ_have_no_common_value_in_the_row_of_all(ask: Any) -> None:
    run = ask("objects", "ridge")
    for layer in (0, 2, 5, 9):
        rows = run.rows(layer, "test").loc["accuracy", "alpha"]
        own = set(rows.drop("all"))
        assert np.isnan(rows["all"]) if len(own) > 1 else {rows["all"]} == own
    assert any(np.isnan(run.rows(layer, "test").loc[("accuracy", "all"), "alpha"]) for layer in (0, 2, 5, 9))


@pytest.mark.parametrize(("labels", "solver"), QUESTIONS)
def test_every_penalty_that_was_tried_has_its_held_out_error(labels: str, solver: str, ask: Any) -> None:
    results, n_targets = ask(labels, solver).results, len(TARGETS[labels])
    assert len(results.penalties) == len(ALPHAS) * results.penalties.groupby(["site", "tokens", "layer"]).ngroups
    rows = results.rows[(results.rows["split"] == "test") & (results.rows["target"] == "all")]
    chosen = rows.drop_duplicates(["site", "tokens", "layer"]).set_index(["site", "tokens", "layer"])["alpha"]
    for place, path in results.penalties.groupby(["site", "tokens", "layer"]):
        assert path["n_chosen"].sum() == n_targets
        if labels in ("entailment", "size"):
            assert path.loc[path["error"].idxmin(), "alpha"] == chosen[place]
        if not np.isnan(chosen[place]):
            assert path.loc[path["n_chosen"] > 0, "alpha"].tolist() == [chosen[place]]


def test_reliability_is_told_as_fitted_and_calibrated_and_of_classes_alone(ask: Any) -> None:
    for labels, solver, expected in (
        ("entailment", "logistic", {False, True}),
        ("colour", "ridge", {True}),
        ("objects", "logistic", {False, True}),
        ("size", "ridge", set()),
    ):
        run = ask(labels, solver)
        found = run.results.reliability
        assert set(found["calibrated"]) == expected
        n_judged = run.problem.split.test.sum() * (len(run.problem.targets) if labels == "objects" else 1)
        assert (found.groupby(["site", "tokens", "layer", "calibrated"])["n"].sum() == n_judged).all()
    again = Results.load(run.folder)
    pd.testing.assert_frame_equal(again.penalties, run.results.penalties)
    pd.testing.assert_frame_equal(again.reliability, run.results.reliability)


@pytest.fixture
def misleading(make_store: Any, tmp_path: Path) -> Store:
    """Layer 4 is the best in training and useless on test rows, 6 is good in both, 8 is poor: a `split` column says."""
    rng = np.random.default_rng(1)
    n = 160
    groups = [f"g{i // 2}" for i in range(n)]
    split = np.where(np.arange(n) % 8 < 2, "test", np.where(np.arange(n) % 16 == 4, "", "train"))
    split[np.arange(n) % 16 == 5] = ""
    sign = rng.choice([-1.0, 1.0], n)
    strength = np.stack([np.where(split == "test", 0.0, 3.0), np.full(n, 1.2), np.full(n, 0.3)])
    x = rng.normal(size=(3, n, 6))
    x[:, :, 0] += strength * sign
    values = {"resid_post/last": x.astype(np.float32)}
    store: Store = make_store(tmp_path / "run.zarr", values, {"resid_post": (4, 6, 8)}, groups, split=split.tolist())
    store.write_labels(Labels.from_column("sign", (sign > 0).tolist()))
    return store


def test_the_best_layer_is_chosen_by_cross_validation_and_compared_on_paired_draws(
    misleading: Store, tmp_path: Path
) -> None:
    results = probe(misleading, "sign", alphas=(1.0, 10.0), n_draws=200, seed=7, out=tmp_path / "out")
    accuracy = results.rows[(results.rows["metric"] == "accuracy") & (results.rows["solver"] == "ridge")]
    by_split = {split: rows.set_index("layer")["value"] for split, rows in accuracy.groupby("split")}
    assert (by_split["cv"].idxmax(), by_split["test"].idxmax()) == (4, 6)
    comparisons = results.comparisons
    assert set(comparisons["metric"]) == set(results.rows["metric"]) - {"log_loss", "brier", "ece"}
    assert set(comparisons["best_layer"]) == {4}
    for _, rows in comparisons.groupby("metric"):
        assert rows["other_layer"].tolist() == [6, 8]
    [row] = comparisons[(comparisons["metric"] == "accuracy") & (comparisons["other_layer"] == 8)].to_dict("records")
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    correct = {layer: ((rows["score"] > 0.5) == rows["truth"]).to_numpy() for layer, rows in scores.groupby("layer")}
    test = misleading.columns["split"] == "test"
    assert scores["id"].unique().tolist() == misleading.ids[test].tolist()
    differences = []
    for draw in cluster_weights(misleading.groups[test].tolist(), 200, 7):
        rows = np.repeat(np.arange(int(test.sum())), draw)
        differences.append(correct[4][rows].mean() - correct[8][rows].mean())
    assert row["difference"] == pytest.approx(correct[4].mean() - correct[8].mean())
    assert (row["best"], row["other"]) == pytest.approx((correct[4].mean(), correct[8].mean()))
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(differences, [0.025, 0.975]))
    assert results.best()["layer"] == 4
    summary = results.summary().iloc[0]
    assert (summary["low"], summary["high"]) == (row["low"], row["high"])
    for found in (results, Results.load(tmp_path / "out")):
        difference = found.difference(8, 4)
        assert (difference.low, difference.high, difference.p) == pytest.approx((-row["high"], -row["low"], row["p"]))


def test_a_curve_of_one_layer_has_no_comparison(example: Any, ask: Any) -> None:
    assert set(ask("size", "ridge").results.comparisons["site"]) == {"resid_post"}
    assert len(probe(example.store, "size", layers=[2], n_draws=2).comparisons) == 0


def test_targets_without_a_positive_test_row_are_told_once_and_have_no_precision(
    make_store: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    n = 80
    split = ["test" if i % 4 == 0 else "train" for i in range(n)]
    x = np.random.default_rng(0).normal(size=(3, n, 4)).astype(np.float32)
    groups = [f"g{i}" for i in range(n)]
    store = make_store(tmp_path / "run.zarr", {"resid_post/last": x}, {"resid_post": (0, 1, 2)}, groups, split=split)
    seen = {"cat": range(0, n, 3), "owl": range(1, n, 4), "dog": range(2, n, 4)}
    column = [[name for name, rows in seen.items() if i in rows] for i in range(n)]
    store.write_labels(Labels.from_column("animals", column))
    with caplog.at_level(logging.WARNING, logger="sonde.probes.evaluate"):
        results = probe(store, "animals", n_draws=4)
    [told] = [record.getMessage() for record in caplog.records if record.name == "sonde.probes.evaluate"]
    assert told == (
        "labels 'animals': 2 of 3 targets have no positive test row, and metrics that need one leave them out: dog, owl"
    )
    rows = results.rows[(results.rows["metric"] == "average_precision") & (results.rows["split"] == "test")]
    for target, group in rows.groupby("target"):
        assert group["value"].isna().all() == (target in ("dog", "owl"))


def test_progress_is_told_layer_by_layer(example: Any) -> None:
    told: list[tuple[int, int]] = []
    probe(example.store, "size", n_draws=2, callbacks=[OnProgress(lambda done, total, _: told.append((done, total)))])
    assert told == [(i, 5) for i in range(1, 6)]


def test_a_penalty_at_the_edge_of_the_grid_is_told_once(example: Any, caplog: pytest.LogCaptureFixture) -> None:
    def told(**options: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="sonde"):
            probe(example.store, "size", sites=["resid_post"], n_draws=2, **options)
        return [record.getMessage() for record in caplog.records]

    assert told() == []
    assert told(alphas=[10.0]) == []
    [weakest] = told(alphas=[500.0, 5000.0])
    assert weakest.startswith("4 of 4 layers chose the weakest penalty, alpha 500:")
    [strongest] = told(alphas=[1e-3, 1e-2])
    assert strongest.startswith("4 of 4 layers chose the strongest penalty, alpha 0.01:")


def test_torch_gives_the_numbers_of_numpy(example: Any, ask: Any, tmp_path: Path) -> None:
    for labels, solver in (("colour", "logistic"), ("objects", "logistic"), ("size", "ridge")):
        run = ask(labels, solver)
        chosen: dict[str, Any] = {"alphas": ALPHAS, "n_draws": N_DRAWS, "seed": SEED, "solver": solver}
        found = probe(example.store, labels, device="cpu", layers=[5], out=tmp_path / f"{labels}-{solver}", **chosen)
        scores = pd.read_parquet(tmp_path / f"{labels}-{solver}" / "scores.parquet")["score"].to_numpy()
        np.testing.assert_allclose(scores.reshape(-1, len(run.problem.targets)), run.scores(5), atol=1e-5)
        key = ["metric", "target", "split"]
        mine, numpys = (one.rows[one.rows["layer"] == 5].set_index(key) for one in (found, run.results))
        for column in ("value", "low", "high", "alpha"):
            np.testing.assert_allclose(mine[column], numpys[column][mine.index], atol=1e-5)


def test_what_cannot_be_asked_is_an_error_with_the_way_out(example: Any, tmp_path: Path) -> None:
    for chosen, text in (
        ({"solver": "logistic"}, "'size' are numbers: logistic probes need classes; use the solver ridge"),
        ({"solver": "forest"}, "unknown solver 'forest': there are ridge, logistic"),
        ({"alphas": [1.0, 0.0]}, "alpha 0.0 is not positive"),
        ({"alphas": []}, "at least one positive number"),
        ({"n_draws": 0}, "0 bootstrap draws"),
        ({"n_folds": 1}, "1 folds cannot cross-validate"),
        ({"test_size": 1.5}, "test_size 1.5"),
        ({"device": "warp"}, r"layer \d of .*: the device 'warp' cannot be used"),
    ):
        with pytest.raises(InputError, match=text):
            probe(example.store, "size", out=tmp_path / "out", **chosen)
        assert not (tmp_path / "out").exists()


def test_a_store_that_is_not_finished_is_refused(make_store: Any, tmp_path: Path) -> None:
    values = {"resid_post/last": np.zeros((1, 20, 3), dtype=np.float32)}
    groups = [f"g{i}" for i in range(20)]
    store = make_store(tmp_path / "run.zarr", values, {"resid_post": (0,)}, groups, range_size=8, commit=2)
    store.write_labels(Labels.from_column("sign", [i % 2 for i in range(20)]))
    with pytest.raises(StoreError, match="1 of 3 ranges are missing; finish it with `sonde extract --resume`"):
        probe(store, "sign")


def test_a_folder_that_is_in_the_way_or_cannot_be_made_is_refused_before_any_work(example: Any, tmp_path: Path) -> None:
    def fail(*counts: Any) -> None:
        raise AssertionError("a layer was probed")

    (tmp_path / "out").mkdir()
    (tmp_path / "file").touch()
    for out, text in (("out", "exists already; choose another --out"), ("file/out", "cannot make the folder")):
        with pytest.raises(StoreError, match=text):
            probe(example.store, "size", out=tmp_path / out, callbacks=[OnProgress(fail)])
