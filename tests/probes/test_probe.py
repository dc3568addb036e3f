"""Probes on disk are numbers and their meaning, nothing that could run, and score as they did when fitted."""

import json
import pickle
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy

from sonde.errors import InputError, ProbeError, StoreError
from sonde.probes import Probe, Problem, load_probes, probe, save_probes


def make_probe(**changes: Any) -> Probe:
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "site": "resid_post",
        "tokens": "last",
        "layer": 8,
        "labels": "objects",
        "solver": "ridge",
        "kind": "multilabel",
        "targets": ("cat", "dog – chien"),
        "weights": rng.normal(size=(2, 4)).astype(np.float32),
        "bias": np.array([0.5, -0.25], dtype=np.float32),
        "alpha": (1.0, 100.0),
    }
    return Probe(**given | changes)


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects"])
@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_a_loaded_probe_gives_the_scores_of_its_run_on_the_stores_own_rows(
    labels: str, solver: Any, bfloat16_example: Any, tmp_path: Path
) -> None:
    store = bfloat16_example.store
    probe(store, labels, solver=solver, alphas=[10.0], layers=[5, 9], n_draws=2, out=tmp_path / "out")
    test = np.flatnonzero(Problem.of(store, labels).split.test)
    saved = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    loaded = load_probes(tmp_path / "out")
    assert [one.name for one in loaded] == ["resid_post/last/5", "resid_post/last/9"]
    for one in loaded:
        expected = saved[saved["layer"] == one.layer]["score"].to_numpy().reshape(len(test), -1)
        rows = store.layer(one.site, one.tokens, one.layer).rows(test)
        assert rows.dtype.name == "bfloat16"
        np.testing.assert_allclose(one.scores(rows), expected, atol=1e-5)
        answers = one.predict(rows)
        if labels == "colour":
            np.testing.assert_array_equal(answers, expected.argmax(axis=1))
        else:
            np.testing.assert_array_equal(answers, expected > 0.5)


def test_logistic_scores_are_probabilities() -> None:
    x = np.random.default_rng(1).normal(size=(5, 4))
    one = make_probe(solver="logistic")
    linear = x.astype(np.float32) @ one.weights.T + one.bias
    np.testing.assert_allclose(one.scores(x), 1 / (1 + np.exp(-linear)), rtol=1e-5)
    softmax = np.exp(linear) / np.exp(linear).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(replace(one, kind="multiclass").scores(x), softmax, rtol=1e-5)


def test_answers_are_classes_flags_or_numbers() -> None:
    x = np.eye(2)
    one = make_probe(weights=np.array([[0.5, 2.0], [0.75, 1.0]], dtype=np.float32), bias=np.zeros(2, dtype=np.float32))
    assert one.predict(x).tolist() == [[0, 1], [1, 1]]  # a half is not more than a half, here as in the metrics
    assert replace(one, kind="multiclass").predict(x).tolist() == [1, 0]
    assert replace(one, kind="regression").predict(x).tolist() == [[0.5, 0.75], [2.0, 1.0]]


def test_activations_of_another_size_are_refused() -> None:
    text = (
        r"activations of shape \(3, 7\) do not match the hidden size 4 of the probe 'resid_post/last/8': "
        "refit the probe or pick another store"
    )
    with pytest.raises(ProbeError, match=text):
        make_probe().scores(np.zeros((3, 7)))
    with pytest.raises(ProbeError, match=r"shape \(4,\)"):
        make_probe().predict(np.zeros(4))


def test_probes_come_back_as_they_were_from_safetensors_and_json(tmp_path: Path) -> None:
    transposed = np.arange(12, dtype=np.float32).reshape(4, 3).T
    other = make_probe(
        layer=9, targets=("a", "b", "c"), weights=transposed, bias=np.ones(3, np.float32), alpha=(1.0,) * 3
    )
    saved = [make_probe(), other]
    assert save_probes(tmp_path / "new" / "folder", saved) == tmp_path / "new" / "folder"
    loaded = load_probes(str(tmp_path / "new" / "folder"))
    assert len(loaded) == 2
    for one, before in zip(loaded, saved, strict=True):
        for field in fields(Probe):
            found, expected = getattr(one, field.name), getattr(before, field.name)
            assert type(found) is type(expected)
            np.testing.assert_array_equal(found, expected)
        assert one.weights.dtype == np.float32
    files = {file.name: file for file in (tmp_path / "new" / "folder").iterdir()}
    assert sorted(files) == ["probes.json", "probes.safetensors"]
    tensors = safetensors.numpy.load_file(files["probes.safetensors"])
    assert sorted(tensors) == [f"resid_post/last/{layer}/{part}" for layer in (8, 9) for part in ("bias", "weights")]
    assert [p["targets"] for p in json.loads(files["probes.json"].read_text())["probes"]] == [
        ["cat", "dog – chien"],
        ["a", "b", "c"],
    ]


def test_two_probes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two probes are named 'resid_post/last/8'"):
        save_probes(tmp_path / "out", [make_probe(), make_probe(labels="mood")])
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        save_probes(tmp_path / "file", [make_probe()])


def test_what_holds_no_probes_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("absent", ".", "file"):
        with pytest.raises(InputError, match=r"holds no probes: there is no probes\.safetensors"):
            load_probes(tmp_path / place)
    save_probes(tmp_path, [make_probe()])
    (tmp_path / "probes.json").unlink()
    with pytest.raises(InputError, match=r"holds no probes: there is no probes\.json"):
        load_probes(tmp_path)


def _description(**changes: Any) -> bytes:
    entry = {"site": "resid_post", "tokens": "last", "layer": 8, "labels": "l", "solver": "ridge", "kind": "multilabel"}
    entry |= {"targets": ["a", "b"], "alpha": [1.0, 1.0]} | changes
    return json.dumps({"version": 1, "probes": [entry]}).encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("probes.safetensors", b""),
        ("probes.safetensors", b"\xff" * 40),
        ("probes.safetensors", safetensors.numpy.save({"other": np.zeros(1)})),
        (
            "probes.safetensors",
            safetensors.numpy.save({f"resid_post/last/8/{part}": np.zeros(2) for part in ("weights", "bias")}),
        ),
        ("probes.json", b"{"),
        ("probes.json", b"[]"),
        ("probes.json", b"\xff\xfe"),
        ("probes.json", b'{"version": 1}'),
        ("probes.json", b'{"version": 1, "probes": [{}]}'),
        ("probes.json", _description(layer=9)),
        ("probes.json", _description(targets=["a"])),
        ("probes.json", _description(alpha=[1.0])),
        ("probes.json", _description(extra="column")),
    ],
)
def test_damaged_files_and_files_of_two_runs_are_errors(name: str, data: bytes, tmp_path: Path) -> None:
    save_probes(tmp_path, [make_probe()])
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=r"are damaged .*fit them again with `sonde probe`"):
        load_probes(tmp_path)


def test_half_a_file_is_an_error(tmp_path: Path) -> None:
    for name in ("probes.safetensors", "probes.json"):
        save_probes(tmp_path, [make_probe()])
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(InputError, match="are damaged"):
            load_probes(tmp_path)


def test_probes_of_another_version_are_an_error_that_says_so(tmp_path: Path) -> None:
    save_probes(tmp_path, [make_probe()])
    (tmp_path / "probes.json").write_bytes(_description().replace(b'"version": 1', b'"version": 2'))
    with pytest.raises(InputError, match="are of version 2, this sonde reads 1: fit them again"):
        load_probes(tmp_path)


def test_a_pickle_in_the_place_of_probes_does_not_run(tmp_path: Path) -> None:
    save_probes(tmp_path, [make_probe()])
    for name in ("probes.safetensors", "probes.json"):
        good = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
        with pytest.raises(InputError, match="are damaged"):
            load_probes(tmp_path)
        (tmp_path / name).write_bytes(good)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Touch(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


class Touch:
    """An object whose unpickling makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)
