"""All questions about an image in one store: each probe is of the samples that its question has."""

import numpy as np
import pytest

import sonde
from sonde.engine import Dataset
from sonde.engine.coco import load_coco
from sonde.engine.scenes import write_scenes
from sonde.engine.tasks import together
from sonde.probes import Problem
from sonde.store import ArraySpec, Labels, Schema, Store


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = write_scenes(tmp_path_factory.mktemp("scenes"), n_images=60, size=32)
    coco = load_coco(folder / "annotations", folder / "images")
    tasks = ("entailment", "recognition")
    return together(coco, tasks, cues=(False, True, "asked"), prompts=(0, 2), limit=60)


@pytest.fixture(scope="module")
def store(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Activations that are noise, with the answers of entailment in one column of the prompt p0 alone."""
    x = np.random.default_rng(0).normal(size=(1, len(data), 6)).astype(np.float32)
    for row, sample in enumerate(data.samples):
        if sample.labels["prompt"] == "p0" and "entailment" in sample.labels:
            x[0, row, 0] = 4.0 * float(str(sample.labels["entailment"])) - 2.0 + 0.1 * x[0, row, 0]
    spec = ArraySpec("resid_post", "last", (0,), 6)
    columns = {"id": [s.id for s in data.samples], "group": [s.group for s in data.samples]}
    schema = Schema((spec,), len(data), 64, {"name": "noise"}, {}, dtype="float32")
    store = Store.create(tmp_path_factory.mktemp("store") / "run.zarr", schema, columns)
    for name in data.labels:
        store.write_labels(Labels.from_column(name, data.column(name), classes=data.classes.get(name)))
    writer = store.writer()
    for range_ in store.ranges:
        buffers = writer.buffers()
        buffers["resid_post/last"][:, : len(range_)] = x[:, range_.rows]
        writer.commit(range_, buffers, {})
    store.refresh()
    return store


@pytest.mark.parametrize("name", ["entailment", "objects", "present", "asked", "task", "cue", "prompt"])
def test_samples_without_a_label_are_no_part_of_its_probes(data: Dataset, store: Store, name: str) -> None:
    asked = np.array([name in sample.labels for sample in data.samples])
    assert store.labels(name).present.tolist() == asked.tolist()
    if name == "asked":
        return
    split = Problem.of(store, name, test_size=0.4, n_folds=2).split
    assert (split.test | (split.folds >= 0)).tolist() == asked.tolist()


def test_an_image_is_on_one_side_of_every_split(data: Dataset, store: Store) -> None:
    groups = np.array([sample.group for sample in data.samples])
    for name in ("entailment", "objects", "present"):
        split = Problem.of(store, name, test_size=0.4, n_folds=2).split
        assert not set(groups[split.test]) & set(groups[split.folds >= 0])


def test_probes_are_trained_on_one_prompt_and_tested_on_another(store: Store) -> None:
    where = {"task": "entailment", "cue": "no-cue"}
    found = sonde.probe(store, "entailment", where=where, transfer="prompt", n_folds=2, n_draws=20, cache=False)
    matrix = found.controls[found.controls["control"] == "transfer"]
    value = {(row.trained_on, row.tested_on): row.value for row in matrix.itertuples()}
    assert value["p0", "p0"] == 1
    assert set(value) == {(a, b) for a in ("p0", "p2") for b in ("p0", "p2")}
    assert all(value[pair] < 0.85 for pair in value if pair != ("p0", "p0"))
