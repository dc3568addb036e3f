"""`sonde probe` with all that is measured beside, and `sonde cache`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sonde

FAST = ("--draws", 20, "--layer", 0, "--layer", 2, "--tokens", "last")


def test_what_is_measured_beside_is_told_for_the_best_layer_and_saved_for_all(
    store: Path, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ridge = call("probe", store, "--labels", "topic", *FAST, "--permutations", 9)
    assert ridge.code == 0
    assert "permutation" in ridge.out
    assert "p 0.1" in ridge.out
    controls = pd.read_parquet(store.with_name("run.probes") / "topic-ridge" / "controls.parquet")
    assert sorted(controls["layer"]) == [0, 2]
    asked = ("--solver", "logistic", "--codelength", "--transfer", "share", "--json")
    refused = call("probe", store, "--labels", "topic", *FAST, *asked)
    assert (refused.code, refused.out) == (1, "")
    assert "are regression: types and variants are classes" in refused.err
    logistic = call("probe", store, "--labels", "topic", *FAST, "--solver", "logistic", "--codelength", "--json")
    told = json.loads(logistic.out)
    assert {row["control"] for row in told["controls"]} == {"online code", "v-information"}


def test_words_of_the_manifest_are_a_baseline(store: Path, study: Any, call: Any) -> None:
    answer = call("probe", store, "--labels", "topic", *FAST, "--texts", study.manifest, "--json")
    [row] = json.loads(answer.out)["summary"]
    # The topic is in every word but one.
    assert row["text_baseline"] > 0.9
    nothing = call("probe", store, "--labels", "topic", *FAST, "--texts", store / "zarr.json")
    assert nothing.code == 1
    assert "unknown kind" in nothing.err


@pytest.mark.parametrize("solver", ["mass-mean", "lda"])
def test_solvers_without_a_pass_know_the_topic(solver: str, store: Path, call: Any) -> None:
    answer = call("probe", store, "--labels", "topic", *FAST, "--solver", solver, "--json")
    [row] = json.loads(answer.out)["summary"]
    assert row["best"] > 0.9


def test_another_librarys_solvers_and_balanced_classes(store: Path, call: Any) -> None:
    alphas = ("--alpha", 1, "--alpha", 10)
    ours, theirs = (
        json.loads(call("probe", store, "--labels", "topic", *FAST, *alphas, "--json", *more).out)["summary"][0]
        for more in (("--out", "ours"), ("--out", "theirs", "--backend", "sklearn"))
    )
    assert {**ours, "best": pytest.approx(ours["best"]), "top": pytest.approx(ours["top"])}["best"] == theirs["best"]
    balanced = call("probe", store, "--labels", "topic", *FAST, "--solver", "logistic", "--balanced", "--json")
    assert balanced.code == 0
    refused = call("probe", store, "--labels", "topic", *FAST, "--balanced", "--out", "x")
    assert (refused.code, "class weights are for logistic probes" in refused.err) == (1, True)


def test_the_cache_is_shown_and_cleared(store: Path, call: Any) -> None:
    assert call("cache", store).out == "0 layers' statistics, 0 bytes\n"
    call("probe", store, "--labels", "topic", *FAST)
    shown = call("cache", store).out.splitlines()
    assert [line.partition(":")[0] for line in sorted(shown[:2])] == ["resid_post/last/0", "resid_post/last/2"]
    entries = json.loads(call("cache", store, "--json").out)["entries"]
    assert shown[2] == f"2 layers' statistics, {sum(entry['nbytes'] for entry in entries):,} bytes"
    assert call("cache", store, "--clear").out.endswith("cleared\n")
    assert call("cache", store).out == "0 layers' statistics, 0 bytes\n"
    call("probe", store, "--labels", "topic", *FAST, "--no-cache", "--out", "again")
    assert json.loads(call("cache", store, "--json").out)["entries"] == []


def test_a_run_goes_on_where_it_was_and_says_how_to(store: Path, call: Any, tree: Any) -> None:
    folder = store.with_name("run.probes") / "topic-ridge"
    call("probe", store, "--labels", "topic", *FAST)
    again = call("probe", store, "--labels", "topic", *FAST)
    assert (again.code, "go on with a run that was cut off with --resume" in again.err) == (1, True)
    before = tree(folder)
    assert call("probe", store, "--labels", "topic", *FAST, "--resume").code == 0
    assert tree(folder) == before
    shutil.rmtree(folder)
    assert call("probe", store, "--labels", "topic", *FAST, "--resume").code == 0


def test_only_some_samples_are_probed(store: Path, call: Any, tmp_path: Path) -> None:
    ids = sonde.open(store).ids.tolist()
    pd.DataFrame({"id": ids, "half": ["ab"[i % 2] for i in range(len(ids))]}).to_csv(tmp_path / "half.csv", index=False)
    assert call("labels", "add", store, tmp_path / "half.csv").code == 0
    answer = call("probe", store, "--labels", "topic", *FAST, "--where", "half=a", "--json")
    told = json.loads(answer.out)
    assert {row["labels"] for row in told["summary"]} == {"topic, half=a"}
    scores = pd.read_parquet(Path(told["results"]) / "scores.parquet")
    assert {ids.index(i) % 2 for i in scores["id"]} == {0}
    refused = call("probe", store, "--labels", "topic", *FAST, "--where", "half")
    assert (refused.code, refused.out) == (1, "")
    assert "--where 'half': write it as labels=value" in refused.err
