"""The extraction: what lands in the store, that it is the same every time, and what it refuses."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine import Dataset, Sample, extract
from sonde.errors import InputError, ModelError, StoreError

from ..recorder import Recorder
from .runs import configuration, contents, text_samples, values


@pytest.fixture
def llama(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("llama")


EVERYTHING = {"sites": ["embed", "resid_pre", "resid_post", "final_norm"], "tokens": ["last", "mean", "text_mean"]}


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "qwen2_5_vl"])
def test_values_depend_neither_on_the_token_budget_nor_on_neighbours(
    model_type: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = text_samples(10)
    if model_type == "qwen2_5_vl":
        samples = [replace(s, images=tuple(pictures[i : i + i % 3])) for i, s in enumerate(samples[:8])]
    shuffled = random.Random(0).sample(samples, len(samples))
    runs = {
        "padded": (samples, {}),
        "one by one": (samples, {"token_budget": 1}),
        "all at once": (samples, {"token_budget": 100_000, "range_size": 10}),
        "others beside it": (shuffled, {"range_size": 3}),
        "half of them gone": (samples[::2], {}),
    }
    found = {}
    for name, (chosen, settings) in runs.items():
        out = tmp_path / f"{name}.zarr"
        store = extract(configuration(model_folder(model_type), out, run=settings), samples=chosen)
        found[name] = {
            (sample.id, *key): x[row] for key, x in values(store).items() for row, sample in enumerate(chosen)
        }
    for name, other in found.items():
        for key, x in other.items():
            want = found["one by one"][key]
            assert np.abs(x - want).max() <= 1e-5 * np.abs(want).max(), (name, key)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_same_configuration_twice_gives_the_same_bytes(
    dtype: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [replace(s, images=tuple(pictures[i : i + i % 3])) for i, s in enumerate(text_samples(9))]
    config = configuration(
        model_folder("llava"), tmp_path / "run.zarr", model={"dtype": dtype}, capture={"tokens": ["last", "mean"]}
    )
    first = contents(extract(config, samples=samples).location.root)
    (tmp_path / "run.zarr").rename(tmp_path / "first.zarr")
    assert contents(extract(config, samples=samples).location.root) == first


def test_layers_that_were_asked_for_and_no_others_are_kept(llama: Path, tmp_path: Path) -> None:
    samples = text_samples(6)
    whole = values(extract(configuration(llama, tmp_path / "all.zarr", capture=EVERYTHING), samples=samples))
    some = EVERYTHING | {"layers": [1]}
    store = extract(configuration(llama, tmp_path / "one.zarr", capture=some), samples=samples)
    part = values(store)
    expected = {("embed", 0), ("resid_pre", 1), ("resid_post", 1), ("final_norm", 2)}
    assert {(site, layer) for site, _, layer in part} == expected
    for key, x in part.items():
        np.testing.assert_array_equal(x, whole[key])


@pytest.mark.parametrize(("stored", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-10)])
def test_the_store_may_have_a_dtype_of_its_own(stored: str, tolerance: float, llama: Path, tmp_path: Path) -> None:
    samples = text_samples(4)
    exact = values(extract(configuration(llama, tmp_path / "exact.zarr"), samples=samples))
    store = extract(configuration(llama, tmp_path / "run.zarr", capture={"dtype": stored}), samples=samples)
    assert store.schema.dtype == stored
    for key, x in values(store).items():
        np.testing.assert_allclose(x, exact[key], rtol=tolerance, atol=1e-6)


def test_labels_of_every_kind_groups_and_splits_land_in_the_store(llama: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"holds": True, "kind": "cat", "tags": ("red", "blue"), "size": 0.5, "n": 3},
        {"holds": False, "kind": "dog", "tags": (), "size": 2, "n": 5},
        {"holds": None, "kind": "cat", "tags": ("blue",), "n": 3},
    ]
    samples = [
        Sample(f"s{i}", prompt="a", group=f"g{i // 2}", split="train" if i else "test", labels=row)
        for i, row in enumerate(rows)
    ]
    dataset = Dataset(tuple(samples), classes={"kind": ("ant", "cat", "dog")})
    store = extract(configuration(llama, tmp_path / "run.zarr"), samples=dataset)
    assert store.ids.tolist() == ["s0", "s1", "s2"]
    assert store.groups.tolist() == ["g0", "g0", "g1"]
    assert store.columns["split"].tolist() == ["test", "train", "train"]
    labels = {name: store.labels(name) for name in store.label_names}
    assert {name: column.kind for name, column in labels.items()} == {
        "holds": "binary",
        "kind": "multiclass",
        "tags": "multilabel",
        "size": "regression",
        "n": "multiclass",
    }
    assert labels["holds"].values.tolist() == [1, 0, -1]
    assert (labels["kind"].names, labels["kind"].values.tolist()) == (("ant", "cat", "dog"), [1, 2, 1])
    assert (labels["tags"].names, labels["tags"].values.tolist()) == (("blue", "red"), [[1, 1], [0, 0], [1, 0]])
    assert labels["size"].values[:2].tolist() == [0.5, 2.0]
    assert np.isnan(labels["size"].values[2])
    assert (labels["n"].names, labels["n"].values.tolist()) == (("3", "5"), [0, 1, 0])


def test_labels_that_cannot_be_used_are_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    samples = [Sample("a", prompt="a", labels={"kind": "x"}), Sample("b", prompt="b", labels={"kind": 1.5})]
    with pytest.raises(InputError, match="'kind' mix"):
        extract(configuration(tmp_path / "no-model", tmp_path / "run.zarr"), samples=samples)


def test_a_run_is_reported_as_it_goes_and_logged(llama: Path, tmp_path: Path) -> None:
    samples: list[Sample] = text_samples(10)
    recorder = Recorder()
    config = configuration(llama, tmp_path / "run.zarr")
    store = extract(config, samples=samples, callbacks=[recorder])
    seen = [{"samples": done, "total": total, **measures} for done, total, measures in recorder.progress]
    assert {progress["total"] for progress in seen} == {10}
    for name in ("samples", "tokens", "bytes", "ranges", "seconds"):
        counts = [progress[name] for progress in seen]
        assert counts == sorted(counts)
    last = seen[-1]
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(llama)
    assert (last["samples"], last["skipped"]) == (10, 0)
    assert last["tokens"] == sum(len(tokenizer(sample.prompt)["input_ids"]) for sample in samples)
    assert last["bytes"] == store.info()["bytes"] > 0
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "run.zarr" / "log").glob("2*.json"))
    assert (record["samples"], record["tokens"], record["nbytes"]) == (10, last["tokens"], last["bytes"])
    found, stages = store.throughput(), record["stages"]
    assert found["tokens_per_s"] == record["tokens"] / record["seconds"]
    assert found["forward_tokens_per_s"] == record["tokens"] / stages["forward"] > found["tokens_per_s"]
    assert found["write_bytes_per_s"] == record["nbytes"] / stages["write"] > found["bytes_per_s"]
    assert {"prepare", "collate", "forward", "copy out", "place", "write"} <= stages.keys()


def test_the_store_says_where_it_came_from(llama: Path, tmp_path: Path) -> None:
    store = extract(configuration(llama, tmp_path / "run.zarr", model={"seed": 5}), samples=text_samples(2))
    model = dict(store.schema.model)
    fingerprint = model.pop("fingerprint")
    assert len(fingerprint) == 64
    assert model == {
        "name": str(llama),
        "revision": None,
        "class": "LlamaModel",
        "blocks": "layers",
        "n_layers": 3,
        "dtype": "float32",
        "attention": "sdpa",
        "weights": "pretrained",
    }
    assert store.schema.config["model"]["seed"] == 5


@pytest.mark.parametrize(
    ("capture", "message"),
    [
        ({"sites": ["resid_mid"]}, r"unknown site 'resid_mid' in capture\.sites"),
        ({"tokens": ["lasst"]}, r"unknown tokens 'lasst' in capture\.tokens"),
        ({"layers": [3]}, r"capture\.layers \[3\]: the model has layers 0 to 2"),
    ],
)
def test_what_cannot_be_captured_is_refused_and_nothing_is_left_behind(
    capture: dict[str, Any], message: str, llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        extract(configuration(llama, tmp_path / "run.zarr", capture=capture), samples=text_samples(2))
    assert not (tmp_path / "run.zarr").exists()


def test_an_output_place_that_is_taken_is_refused(llama: Path, tmp_path: Path) -> None:
    samples = text_samples(2)
    extract(configuration(llama, tmp_path / "run.zarr"), samples=samples)
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=r"run\.zarr exists already; go on with it by --resume, or choose another"):
        extract(configuration(llama, tmp_path / "run.zarr"), samples=samples)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in ("notes", "file"):
        for resume in (False, True):
            with pytest.raises(StoreError, match=f"{place} .*choose another --out"):
                extract(configuration(llama, tmp_path / place), samples=samples, resume=resume)
    assert contents(tmp_path) == before | {"notes/diary.txt": b"mine", "file": b"mine"}


def test_no_output_place_is_an_input_error(llama: Path) -> None:
    with pytest.raises(InputError, match=r"run\.out is missing"):
        extract({"model": {"name": str(llama)}}, samples=text_samples(2))


def test_a_model_that_is_not_there_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        extract(configuration(tmp_path / "none", tmp_path / "run.zarr"), samples=text_samples(2))
    assert not (tmp_path / "run.zarr").exists()
