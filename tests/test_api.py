"""The same from Python: what `import sonde` offers, and the ten lines that a reader tries first."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import sonde
from sonde.callbacks import OnProgress


def test_ten_lines_from_samples_to_a_report(study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mpl.use("agg")
    monkeypatch.chdir(tmp_path)
    animals, tools = ("cat", "dog", "horse", "owl", "bee"), ("saw", "hammer", "drill", "axe", "plane")
    samples = [
        sonde.Sample(id=f"{word}-{n}", prompt="the " * n + word, group=word, labels={"animal": word in animals})
        for word in (*animals, *tools)
        for n in range(1, 9)
    ]
    store = sonde.extract(
        {
            "model": {"name": str(study.model), "dtype": "float32"},
            "capture": {"sites": ["embed", "resid_post"], "tokens": ["last", "mean"]},
            "run": {"out": "run.zarr"},
        },
        samples=samples,
    )
    results = sonde.probe(store, "animal", n_folds=3, out="results")
    table = results.to_pandas()
    best = results.best()
    axes = results.plot()
    page = sonde.report(results, "report.html")

    assert (len(samples), store.n_samples, store.complete) == (80, 80, True)
    assert store.ids.tolist() == [sample.id for sample in samples]
    assert set(table["layer"]) == {-1, 0, 1, 2}
    assert best["split"] == "test"
    cv = table[(table["split"] == "cv") & (table["target"] == "all") & (table["metric"] == best["metric"])]
    assert best["cv_value"] == cv["value"].max()
    assert len(axes.get_lines()) >= 2
    assert page == Path("report.html")
    assert page.stat().st_size > 100_000


def test_open_reads_what_extract_returned(study: Any) -> None:
    store = sonde.open(study.store)
    assert isinstance(store, sonde.Store)
    assert sonde.open(study.store.as_uri()).ids.tolist() == store.ids.tolist() == [f"s{i}" for i in range(192)]
    layer = store.layer("resid_post", "mean", 1)
    rows = layer.numpy().astype(np.float32)
    assert rows.shape == (192, 32)
    assert np.array_equal(layer.torch().float().numpy(), rows)
    labels = store.labels("topic")
    assert isinstance(labels, sonde.Labels)
    assert labels.names == ("animal", "tool")


def test_extract_takes_a_path_a_mapping_or_a_config_and_reports(study: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = sonde.ExtractConfig.load(study.config, [f"run.out={tmp_path / 'a.zarr'}", "data.limit=10"])
    first = sonde.extract(config, callbacks=[OnProgress(lambda done, total, _: seen.append((done, total)))])
    assert seen[-1] == (10, 10)
    assert seen == sorted(seen)
    mapping = config.model_dump(exclude_unset=True) | {"run": {"out": str(tmp_path / "b.zarr"), "range_size": 4}}
    second = sonde.extract(mapping)
    for spec in first.arrays:
        one, other = (s.layer(spec.site, spec.tokens, 2).numpy() for s in (first, second))
        assert one.tobytes() == other.tobytes()


def test_probes_come_back_and_score_as_they_did(study: Any, tmp_path: Path) -> None:
    import pandas as pd

    store = sonde.open(study.store)
    results = sonde.probe(store, "topic", solver="logistic", n_folds=3, n_draws=20, layers=[2], out=tmp_path / "r")
    assert isinstance(results, sonde.Results)
    (probe,) = [p for p in sonde.load_probes(tmp_path / "r") if p.tokens == "mean"]
    scores = probe.scores(store.layer("resid_post", "mean", 2).numpy())
    written = pd.read_parquet(tmp_path / "r/scores.parquet").query("tokens == 'mean' and target == 'tool'")
    row = {name: i for i, name in enumerate(store.ids)}
    again = scores[[row[name] for name in written["id"]], probe.targets.index("tool")]
    np.testing.assert_allclose(again, written["score"], rtol=1e-4, atol=1e-5)


def test_manifests_can_be_read_and_extracted_from_python(study: Any, tmp_path: Path) -> None:
    dataset = sonde.read_manifest(study.manifest)
    assert isinstance(dataset, sonde.Dataset)
    part = dataset.subset(6)
    store = sonde.extract({"model": {"name": str(study.model)}, "run": {"out": tmp_path / "r.zarr"}}, samples=part)
    assert store.ids.tolist() == [sample.id for sample in part.samples]
    assert sorted(store.label_names) == ["constant", "share", "topic"]


def test_data_in_two_places_or_in_none_is_refused(study: Any, tmp_path: Path) -> None:
    sample = sonde.Sample(id="a", prompt="the cat")
    model, run = {"name": str(study.model)}, {"out": str(tmp_path / "r.zarr")}
    with pytest.raises(sonde.InputError, match="leave one out"):
        sonde.extract({"model": model, "run": run, "data": {"manifest": str(study.manifest)}}, samples=[sample])
    with pytest.raises(sonde.InputError, match="name a manifest, a task, an image_folder or an hf_dataset"):
        sonde.extract({"model": model, "run": run})
    with pytest.raises(sonde.InputError, match="no samples"):
        sonde.extract({"model": model, "run": run}, samples=[])
    assert not (tmp_path / "r.zarr").exists()


def test_errors_are_of_one_family() -> None:
    errors = (
        sonde.InputError,
        sonde.ModelError,
        sonde.StoreError,
        sonde.CorruptStoreError,
        sonde.ProbeError,
        sonde.WorkerError,
    )
    assert all(issubclass(error, sonde.SondeError) for error in errors)
    with pytest.raises(sonde.StoreError, match="make a store with `sonde extract`"):
        sonde.open("nowhere.zarr")


def test_the_names_of_the_package() -> None:
    assert dir(sonde) == sorted(sonde.__all__)
    for name in sonde.__all__:
        assert getattr(sonde, name) is not None
    assert callable(sonde.extract)
    assert "numpy" not in dir(sonde)
    misspelt = "exract"
    with pytest.raises(AttributeError, match="module 'sonde' has no attribute 'exract'"):
        getattr(sonde, misspelt)
