"""Results choose layers without looking at the test rows, and come back from disk as they were."""

import json
from collections.abc import Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonde.errors import InputError, StoreError
from sonde.probes.results import Results
from sonde.probes.tables import COLUMNS, COMPARISON_COLUMNS

CURVE = {
    "model": "tiny",
    "store": "runs/a.zarr",
    "labels": "entailment",
    "solver": "ridge",
    "site": "resid_post",
    "tokens": "last",
    "metric": "accuracy",
}
CV, TEST = [0.6, 0.8, 0.8, 0.7], [0.5, 0.7, 0.9, 0.65]


def curve_rows(cv: list[float], test: list[float], **changes: Any) -> pd.DataFrame:
    lines = []
    for split, values in (("cv", cv), ("test", test)):
        half = 0.05 if split == "test" else np.nan
        for layer, value in enumerate(values):
            lines.append({"split": split, "layer": layer, "value": value, "low": value - half, "high": value + half})
    constant: dict[str, Any] = {
        "target": "all",
        "alpha": 1.0,
        "n_train": 30,
        "n_test": 10,
        "n_positive": 5,
        "converged": True,
        "split_hash": "ab",
        "seed": 0,
    }
    return pd.DataFrame(lines).assign(**constant | CURVE | changes)[list(COLUMNS)]


def comparison(**changes: Any) -> pd.DataFrame:
    numbers = {"best_layer": 1, "other_layer": 3, "best": 0.7, "other": 0.65, "difference": 0.05}
    numbers |= {"low": 0.01, "high": 0.08, "p": 0.02}
    return pd.DataFrame([CURVE | numbers | changes])


def results(*rows: pd.DataFrame, comparisons: pd.DataFrame | None = None, **provenance: Any) -> Results:
    given: Mapping[str, Any] = {"model": "tiny", "primary": {"entailment": "accuracy"}} | provenance
    table = pd.concat(rows or (curve_rows(CV, TEST),), ignore_index=True)
    return Results(table, comparison() if comparisons is None else comparisons, given)


def majority(value: float, **changes: Any) -> pd.DataFrame:
    rows = curve_rows([], [value], solver="majority", site="", tokens="", **changes)
    return rows.assign(layer=-1)


def test_the_best_layer_is_chosen_by_cross_validation_and_never_by_the_test_rows() -> None:
    best = results().best()
    # Layer 2 ties with layer 1 in cross-validation and is far better on the test rows: the lowest layer still wins.
    assert (best["layer"], best["value"], best["cv_value"], best["split"]) == (1, 0.7, 0.8, "test")
    assert (best["low"], best["high"]) == pytest.approx((0.65, 0.75))


def test_the_best_of_a_loss_is_its_lowest() -> None:
    found = results(curve_rows(CV, TEST), curve_rows(CV, TEST, metric="log_loss"))
    assert found.best(metric="log_loss")["layer"] == 0
    assert found.best()["metric"] == "accuracy"


def test_a_layer_whose_cross_validation_failed_is_not_chosen() -> None:
    assert results(curve_rows([0.6, np.nan, 0.7, 0.5], TEST)).best()["layer"] == 2


def test_top_is_the_last_layer_of_the_curve_that_best_is_on() -> None:
    found = results(
        curve_rows(CV, TEST),
        curve_rows([*CV[:2], 0.95, 0.4, 0.3], [*TEST, 0.31], tokens="image_mean"),
        majority(0.5),
    )
    assert found.best()["tokens"] == "image_mean"
    assert (found.top()["tokens"], found.top()["layer"], found.top()["value"]) == ("image_mean", 4, 0.31)
    assert (found.top(tokens="last")["layer"], found.top(tokens="last")["value"]) == (3, 0.65)


def test_what_is_ambiguous_or_unknown_is_an_error_that_lists_the_choices() -> None:
    two_labels = results(curve_rows(CV, TEST), curve_rows(CV, TEST, labels="recognition"))
    with pytest.raises(InputError, match=r"several labels \(entailment, recognition\): say labels="):
        two_labels.best()
    assert two_labels.best("recognition")["labels"] == "recognition"
    two_stores = results(curve_rows(CV, TEST), curve_rows(CV[::-1], TEST, store="runs/b.zarr"))
    with pytest.raises(InputError, match="several store"):
        two_stores.best()
    assert two_stores.best(store="runs/b.zarr")["store"] == "runs/b.zarr"
    with pytest.raises(InputError, match="no tokens 'first': there is last"):
        results().best(tokens="first")
    with pytest.raises(InputError, match="no metric 'auroc': there is accuracy"):
        results().best(metric="auroc")
    with pytest.raises(InputError, match="test rows must not choose"):
        results(curve_rows([], TEST)).best()
    with pytest.raises(InputError, match="no probe"):
        results(majority(0.5)).best()


def test_the_summary_takes_its_interval_from_the_comparison_of_the_same_layers_only() -> None:
    line = results(curve_rows(CV, TEST), majority(0.55)).summary().iloc[0]
    assert (line["best_layer"], line["best"], line["top_layer"], line["top"]) == (1, 0.7, 3, 0.65)
    assert line["difference"] == pytest.approx(0.05)
    assert (line["low"], line["high"], line["baseline"]) == (0.01, 0.08, 0.55)
    other = results(comparisons=comparison(best_layer=2)).summary().iloc[0]
    assert np.isnan([other["low"], other["high"], other["baseline"]]).all()


def draw_rows(layer: int, values: Any, **changes: Any) -> pd.DataFrame:
    return pd.DataFrame({"draw": np.arange(len(values)), "value": values}).assign(**CURVE | {"layer": layer} | changes)


def test_any_two_layers_are_compared_on_the_draws_that_they_share(tmp_path: Path) -> None:
    shared = np.random.default_rng(0).normal(size=200)
    draws = pd.concat(
        [
            draw_rows(0, shared)[::-1],
            draw_rows(2, shared + 0.25),
            draw_rows(2, shared - 9.0, metric="auroc"),
            draw_rows(2, shared - 9.0, tokens="mean"),
        ]
    )
    rows = [curve_rows(CV, TEST), curve_rows(CV, TEST, metric="auroc"), curve_rows(CV, TEST, tokens="mean")]
    found = Results(pd.concat(rows), provenance={"primary": {"entailment": "accuracy"}}, draw_sources=[draws])
    found.save(tmp_path)
    for given in (found, Results.load(tmp_path), Results.concat([found, results(curve_rows(CV, TEST, model="other"))])):
        difference = given.difference(2, 0, tokens="last", model="tiny")
        assert difference.value == pytest.approx(TEST[2] - TEST[0])
        assert (difference.low, difference.high) == pytest.approx((0.25, 0.25), abs=1e-6)
        assert difference.p == pytest.approx(2 / 201)
    with pytest.raises(InputError, match=r"several tokens \(last, mean\): say tokens="):
        found.difference(2, 0)
    with pytest.raises(InputError, match="no layer 7 with a test score: there is 0, 1, 2, 3"):
        found.difference(2, 7, tokens="last")
    with pytest.raises(InputError, match="no bootstrap draws of layer 1: run `sonde probe` again"):
        found.difference(2, 1, tokens="last")


def test_the_file_of_the_draws_is_read_only_when_it_is_asked_for(tmp_path: Path) -> None:
    results().save(tmp_path)
    (tmp_path / "draws.parquet").unlink()
    loaded = Results.load(tmp_path)
    assert loaded.best()["layer"] == 1
    with pytest.raises(StoreError, match=r"draws\.parquet cannot be read .* run `sonde probe` again"):
        loaded.difference(0, 1)


def test_comparisons_of_an_older_file_are_still_those_of_best_and_top_layer(tmp_path: Path) -> None:
    saved = results()
    saved.save(tmp_path)
    older = saved.comparisons.drop(columns="p").rename(columns={"other_layer": "top_layer", "other": "top"})
    table = pa.Table.from_pandas(older, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"sonde": "{}"}), tmp_path / "comparisons.parquet")
    loaded = Results.load(tmp_path)
    pd.testing.assert_frame_equal(loaded.comparisons, saved.comparisons.assign(p=np.nan))
    assert (loaded.summary().iloc[0]["low"], loaded.summary().iloc[0]["high"]) == (0.01, 0.08)


def test_the_summary_ranks_the_curves_of_each_labels_by_cross_validation() -> None:
    found = results(
        curve_rows(CV, TEST),
        curve_rows(CV, TEST, labels="recognition"),
        curve_rows([0.9] * 4, TEST, tokens="mean"),
        curve_rows([0.1] * 4, TEST, labels="recognition", tokens="mean"),
    ).summary()
    assert found[["labels", "tokens"]].to_numpy().tolist() == [
        ["entailment", "mean"],
        ["entailment", "last"],
        ["recognition", "last"],
        ["recognition", "mean"],
    ]


def test_results_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    saved = results(curve_rows(CV, [*TEST[:3], np.nan]), majority(0.5), versions={"numpy": "2"}, note="entraîné – 訓練")
    path = saved.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "results.parquet"
    for source in (path, path.parent):
        loaded = Results.load(source)
        pd.testing.assert_frame_equal(loaded.rows, saved.rows)
        pd.testing.assert_frame_equal(loaded.comparisons, saved.comparisons)
        assert loaded.provenance == saved.provenance
    assert json.loads(pq.read_schema(path).metadata[b"sonde"])["note"] == "entraîné – 訓練"
    assert {name: str(dtype).replace("object", "str") for name, dtype in loaded.rows.dtypes.items()} == dict(COLUMNS)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "comparisons.parquet",
        "controls.parquet",
        "draws.parquet",
        "penalties.parquet",
        "reliability.parquet",
        "results.parquet",
    ]


def test_results_without_a_comparison_come_back_too(tmp_path: Path) -> None:
    empty = Results(curve_rows(CV, TEST))
    empty.save(tmp_path)
    assert list(Results.load(tmp_path).comparisons.columns) == list(COMPARISON_COLUMNS)
    assert Results.load(tmp_path).best()["layer"] == 1


def test_a_write_that_fails_leaves_what_was_there_and_no_rubbish(tmp_path: Path) -> None:
    (tmp_path / "results.parquet").mkdir()
    (tmp_path / "results.parquet" / "precious").touch()
    with pytest.raises(StoreError, match=r"cannot write .*results\.parquet"):
        results().save(tmp_path)
    assert (tmp_path / "results.parquet" / "precious").exists()
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="pick another folder"):
        results().save(tmp_path / "file")


def test_what_is_no_results_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="run `sonde probe`"):
        Results.load(tmp_path / "absent")
    (tmp_path / "zarr.json").touch()
    with pytest.raises(StoreError, match="probe it first"):
        Results.load(tmp_path)
    text = tmp_path / "text.parquet"
    text.write_text("PAR1 but not Parquet")
    with pytest.raises(StoreError, match="cannot be read as Parquet"):
        Results.load(text)
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"value": [1.0]}), foreign)
    with pytest.raises(StoreError, match="no table of sonde's results"):
        Results.load(foreign)
    pq.write_table(pa.table({"value": [1.0]}, metadata={"sonde": "{}"}), foreign)
    with pytest.raises(StoreError, match="lacks the column"):
        Results.load(foreign)
    results().save(tmp_path / "half")
    (tmp_path / "half" / "comparisons.parquet").unlink()
    with pytest.raises(StoreError, match=r"comparisons\.parquet"):
        Results.load(tmp_path / "half")


def test_concatenated_results_keep_every_provenance_and_refuse_the_same_probe_twice() -> None:
    first = results(weights="random")
    second = results(
        curve_rows(CV, TEST, labels="recognition", metric="auroc"),
        comparisons=comparison(labels="recognition"),
        primary={"recognition": "auroc"},
        weights="pretrained",
    )
    third = results(curve_rows(CV, TEST, store="runs/c.zarr"))
    both = Results.concat([Results.concat([first, second]), third])
    assert [run.get("weights") for run in both.runs] == ["random", "pretrained", None]
    assert len(both.rows) == 24
    assert len(both.comparisons) == 3
    assert (both.primary("entailment"), both.primary("recognition")) == ("accuracy", "auroc")
    with pytest.raises(InputError, match="same probe twice"):
        Results.concat([first, first])
    with pytest.raises(InputError, match="at least one"):
        Results.concat([])


def test_a_table_that_is_not_tidy_is_refused() -> None:
    rows = curve_rows(CV, TEST)
    with pytest.raises(InputError, match=r"lacks the column.*split_hash"):
        Results(rows.drop(columns="split_hash"))
    with pytest.raises(InputError, match="another type"):
        Results(rows.assign(layer="first"))
    with pytest.raises(InputError, match=r"site.*missing values"):
        Results(rows.assign(site=None))
    with pytest.raises(InputError, match="no JSON"):
        results(seed={1, 2}).save("never-made")


def test_results_are_frozen_and_give_copies() -> None:
    found = results()
    table = found.to_pandas()
    table["value"] = 0.0
    assert found.best()["value"] == 0.7
    with pytest.raises(FrozenInstanceError):
        found.rows = pd.DataFrame()


def test_a_reader_sees_a_short_table_and_html_is_escaped() -> None:
    text = repr(results())
    assert "8 scores" in text
    assert "0.700" in text
    assert "no scores" not in repr(Results(majority(0.5)))
    html = results(curve_rows(CV, TEST, store="<script>alert(1)</script>"))._repr_html_()
    assert "0.700" in html
    assert '<img alt="Layer curves of ' in html
    assert "<script" not in html
    assert "<img" not in Results(majority(0.5))._repr_html_()
