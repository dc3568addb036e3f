"""A benchmark ends with one line of JSON of a form that does not depend on its size."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark in a process of its own."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark of the store says of arrays too small for its numbers to mean anything."""
    return summary_of("store", tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def extract(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark of extraction says of models too small for its numbers to mean anything."""
    return summary_of("extract", tmp_path_factory.mktemp("benchmark"))


@pytest.fixture(scope="module")
def plots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benchmark of probes draws."""
    return tmp_path_factory.mktemp("plots")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, plots: Path) -> dict[str, Any]:
    """What the benchmark of probes says of layers too small for its numbers to mean anything."""
    return summary_of("probe", tmp_path_factory.mktemp("benchmark"), "--plots", str(plots))


def summary_of(name: str, folder: Path, *options: str) -> dict[str, Any]:
    done = run(f"benchmarks.{name}", "--tiny", "--folder", str(folder), *options)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def test_a_summary_says_what_ran_where(store: dict[str, Any]) -> None:
    assert store.keys() == {"benchmark", "hardware", "versions", "results", "owed"}
    assert store["benchmark"] == "store"
    assert {"cpu", "cores", "system", "file system"} <= store["hardware"].keys()
    assert {"python", "sonde", "numpy", "zarr", "zarrs", "tensorstore", "safetensors"} <= store["versions"].keys()


def test_every_question_about_the_array_is_put_to_every_peer(store: dict[str, Any]) -> None:
    asked: dict[str, set[str]] = {}
    for row in store["results"]:
        asked.setdefault(row["what"], set()).add(row["who"])
    peers = {
        *("raw files, 1 thread", "raw files, 4 threads", "sonde", "zarr-python", "zarr-python, uncompressed"),
        *("zarrs, uncompressed", "TensorStore", "safetensors shards", "np.memmap"),
        *(".npy per sample", "torch.save per sample"),
    }
    for what in ("create the array durably", "write the array durably", "write the array to the page cache"):
        assert asked[what] == peers
    assert asked["read a layer"] == peers
    assert asked["read 256 random rows"] == peers - {"raw files, 4 threads"}
    assert {"raw files, 1 thread", "sonde"} <= asked["read a layer into a buffer"]
    assert {"safetensors per sample", "sonde"} <= asked["write all tokens durably"] & asked[
        "read all tokens of a layer"
    ]


def test_each_question_has_one_floor_that_speeds_are_given_of(store: dict[str, Any]) -> None:
    timed = [row for row in store["results"] if "seconds" in row]
    for what in {row["what"] for row in timed}:
        rows = [row for row in timed if row["what"] == what]
        (floor,) = [row for row in rows if row["note"] == "the floor"]
        for row in rows:
            assert row["of raw"] == pytest.approx(floor["seconds"] / row["seconds"])


def test_a_promise_is_its_value_its_bound_and_whether_it_holds(store: dict[str, Any]) -> None:
    assert [promise.keys() == {"name", "value", "bound", "holds"} for promise in store["owed"]] == [True] * 8
    named = {promise["name"]: promise for promise in store["owed"]}
    lowest = [promise for name, promise in named.items() if "of raw files" in name or "zarr-python" in name]
    assert len(lowest) == 6
    assert all(promise["holds"] == (promise["value"] >= promise["bound"]) for promise in lowest)
    highest = [promise for name, promise in named.items() if "seconds to open" in name or "peak memory" in name]
    assert len(highest) == 2
    assert all(promise["holds"] == (promise["value"] <= promise["bound"]) for promise in highest)


@pytest.fixture(scope="module")
def gpu() -> list[dict[str, Any]]:
    """What the benchmark of a GPU prints when it is rehearsed on a CPU: its lines of JSON."""
    # In memory where the system has such a place: stores wait for the disk at every file.
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        done = run("benchmarks.gpu", "--tiny", "--device", "cpu", "--folder", folder)
        assert done.returncode == 0, done.stderr
        assert list(Path(folder).iterdir()) == []
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_every_stage_of_the_gpu_benchmark_ends_without_an_error(gpu: list[dict[str, Any]]) -> None:
    *lines, summary = gpu
    assert summary.keys() == {"benchmark", "hardware", "versions", "results", "owed"}
    assert [line for line in lines if "stage" in line] == summary["results"]
    ended = [row["stage"] for row in summary["results"] if row["what"] == "the whole stage"]
    assert ended == ["ceilings", "text", "ridge", "logistic", "images"]
    (tests,) = [row for row in summary["results"] if row["stage"] == "tests"]
    assert tests["failed"] == 0
    assert tests["passed"] + tests["skipped"] > 20
    assert len(summary["owed"]) == 6


@pytest.mark.slow
def test_extraction_is_put_beside_the_bare_forward_pass(gpu: list[dict[str, Any]]) -> None:
    for stage in ("text", "images"):
        rows = [row for row in gpu if row.get("stage") == stage]
        for tokens, others in (("last", {"capture alone"}), ("all", {"raw write"})):
            asked = {row["who"]: row for row in rows if row["what"] == f"{tokens} tokens"}
            assert asked.keys() == {"sonde", "bare forward", *others}
            assert asked["sonde"]["of bare"] == pytest.approx(
                asked["bare forward"]["seconds"] / asked["sonde"]["seconds"]
            )
            (deviation,) = [row["value"] for row in rows if row["what"].startswith(f"deviation of {tokens}")]
            assert 0 < deviation < 0.01


@pytest.mark.slow
def test_annotations_are_read_beside_a_parser_and_the_bytes_alone(tmp_path: Path) -> None:
    summary = summary_of("coco", tmp_path)
    rows = {row["what"]: row for row in summary["results"]}
    drawn = {f"1000 pairs, {negatives}" for negatives in ("swap", "random", "shared-category", "nearest")}
    assert rows.keys() == {"bytes", "json", "sonde", "order, balance", "weights, asked"} | drawn
    assert all(row["seconds"] > 0 and row["MB"] >= 0 for row in rows.values())
    [promise] = summary["owed"]
    assert promise["value"] == rows["sonde"]["seconds"]


def test_probes_on_a_gpu_are_at_their_optimum(gpu: list[dict[str, Any]]) -> None:
    fits = [row for row in gpu if "residual" in row]
    assert {row["stage"] for row in fits} == {"ridge", "logistic"}
    assert all(row["residual"] < 1e-4 for row in fits)


def test_without_a_gpu_its_benchmark_says_so() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = run("benchmarks.gpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "no CUDA device" in done.stderr


BAD_STAGES = """
import json, os, sys, time
from pathlib import Path

from benchmarks.gpu import Stage, run_stage


def fails(emit, folder, device, size):
    emit({"what": "begun"})
    raise ValueError("no\\nway")


def dies(emit, folder, device, size):
    emit({"what": "begun"})
    os._exit(3)


def hangs(emit, folder, device, size):
    emit({"what": "begun"})
    time.sleep(600)


if __name__ == "__main__":
    for name, seconds in (("fails", 500), ("dies", 500), ("hangs", 4)):
        found = [*run_stage(Stage("bad_stages", name, seconds), Path.cwd(), "cpu", "full", seconds)]
        print(json.dumps([name, *found[:2]]))
"""


def test_a_stage_that_fails_dies_or_hangs_leaves_its_results_and_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad_stages.py").write_text(BAD_STAGES)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "src", tmp_path)))}
    command = [sys.executable, "-m", "bad_stages"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        ["fails", {"what": "begun"}, {"error": "ValueError: no"}],
        ["dies", {"what": "begun"}, {"error": "the process ended with exit code 3"}],
        ["hangs", {"what": "begun"}, {"error": "stopped after 4 s"}],
    ]


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-qwen2.5-vl"])
def test_operations_are_counted_as_torch_counts_them(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks.gpu_session import GpuExtraction, load
    from benchmarks.gpu_shapes import image_samples, text_samples, write_model
    from torch.utils.flop_counter import FlopCounterMode

    session = load(write_model(tmp_path / "model", shape), "last", "cpu", 1)
    # Torch sees the products of this kernel; of them it counts the pairs that a causal mask hides.
    session.model.module.set_attn_implementation("eager")
    samples = text_samples(3, 30, 90) if shape == "tiny-llama" else image_samples(2, 4, 8, tmp_path / "images", 112)
    run = GpuExtraction(session, samples, "last", 1, tmp_path)
    with FlopCounterMode(display=False) as counter:
        run.bare()
    lengths = [session.encoder(row, sample).length for row, sample in enumerate(samples)]
    hidden = sum(run.needed.per_pair * length**2 / 2 for length in lengths)
    assert run.operations + hidden == pytest.approx(counter.get_total_flops(), rel=0.01)
    session.close()


MODULES = {"nnsight": "nnsight", "TransformerLens": "transformer_lens", "SAELens": "sae_lens"}


@pytest.mark.slow
def test_every_question_about_extraction_has_its_floor_and_its_contestants(extract: dict[str, Any]) -> None:
    assert extract["benchmark"] == "extract"
    asked: dict[str, set[str]] = {}
    for row in extract["results"]:
        asked.setdefault(row["what"], set()).add(row["who"])
    one_by_one = {f"{how}, {who}" for how in ("forward", "sonde") for who in ("one by one", "shared")}
    alone = {"bare forward", "capture alone", "sonde"}
    assert asked == {
        "GPT-2, last token": alone | {"plain loop", "nnsight", "TransformerLens"},
        "GPT-2, contexts of one length": alone | {"SAELens"},
        "LLaVA, one prompt per picture": alone,
        "GPT-2, all tokens": alone | {"raw write"},
        "LLaVA, K = 1 prompts per picture": one_by_one,
        "LLaVA, K = 3 prompts per picture": one_by_one,
        "all tokens of 2 samples": {"sonde"},
        "all tokens of 8 samples": {"sonde"},
        "GPT-2, last token, in worker processes": {"this process"},
    }


@pytest.mark.slow
def test_a_peer_that_is_not_there_is_named_and_one_that_is_has_our_values(extract: dict[str, Any]) -> None:
    rows = {row["who"]: row for row in extract["results"] if row["who"] in {"plain loop", *MODULES}}
    for name, module in MODULES.items():
        if importlib.util.find_spec(module) is None:
            assert rows[name]["note"] == "not installed"
            assert "seconds" not in rows[name]
            assert extract["versions"][name] == {}
    there = {name for name, row in rows.items() if "note" not in row}
    assert "plain loop" in there
    assert all(rows[name]["differs"] <= 0.03 for name in there)
    ahead = {promise["name"].rpartition("ahead of ")[2] for promise in extract["owed"] if "ahead of" in promise["name"]}
    assert ahead == there


@pytest.mark.slow
def test_sharing_is_held_against_the_tokens_that_it_saves(extract: dict[str, Any]) -> None:
    shared = {row["what"]: row for row in extract["results"] if row["who"] == "sonde, shared"}
    assert shared["LLaVA, K = 1 prompts per picture"]["token ratio"] == 1
    # 256 tokens of the picture and 24 to 40 of each prompt.
    ratio = shared["LLaVA, K = 3 prompts per picture"]["token ratio"]
    assert 3 * (256 + 40) / (256 + 3 * 40) <= ratio <= 3 * (256 + 24) / (256 + 3 * 24)
    for what, row in shared.items():
        (promise,) = [promise for promise in extract["owed"] if promise["name"].startswith(what)]
        assert promise["value"] == pytest.approx(row["gain"] / row["token ratio"])
        assert promise["bound"] == 0.8


PROBE_MODULES = {"himalaya RidgeCV": "himalaya", "cvmatrix": "cvmatrix", "probelab": "probelab"}


def rows_of(summary: dict[str, Any], what: str) -> dict[str, dict[str, Any]]:
    """Rows of the question that begins so, by contestant."""
    return {row["who"]: row for row in summary["results"] if row["what"].startswith(what)}


@pytest.mark.slow
def test_the_floor_of_ridge_is_the_sum_of_its_parts(probe: dict[str, Any]) -> None:
    assert probe["benchmark"] == "probe"
    rows = rows_of(probe, "ridge: 2 layers")
    parts = {"read the layers", "symmetric products", "decompositions"}
    assert rows.keys() == {"sonde", "floor", *parts}
    assert rows["floor"]["seconds"] == pytest.approx(sum(rows[part]["seconds"] for part in parts))
    (promise,) = [promise for promise in probe["owed"] if promise["name"] == "ridge, of its floor"]
    assert promise["value"] == pytest.approx(rows["sonde"]["seconds"] / rows["floor"]["seconds"])
    assert promise["holds"] == (promise["value"] <= 1.5)


@pytest.mark.slow
def test_peers_find_the_probes_that_sonde_finds(probe: dict[str, Any]) -> None:
    ridge, logistic = rows_of(probe, "ridge: one layer"), rows_of(probe, "logistic: one layer")
    lbfgs, newton = [name for name in logistic if name.startswith("scikit-learn")]
    for name, column, rows in (
        ("scikit-learn RidgeCV, leave-one-out", "R²", ridge),
        (newton, "log-loss", logistic),
        (lbfgs, "log-loss", logistic),
    ):
        assert rows[name][column] == pytest.approx(rows["sonde"][column], rel=0.05)
    assert all(logistic[name]["excess"] < 1e-6 for name in ("sonde", lbfgs, newton))
    assert rows_of(probe, "statistics")["sonde"]["error"] < 1e-5


@pytest.mark.slow
def test_a_peer_of_probes_that_is_not_there_is_named_and_times_are_of_all_targets(probe: dict[str, Any]) -> None:
    rows = {row["who"]: row for row in probe["results"] if row["what"].endswith("one layer")}
    for name, module in PROBE_MODULES.items():
        (row,) = [row for who, row in rows.items() if who.startswith(name)]
        assert (row.get("note") == "not installed") == (importlib.util.find_spec(module) is None)
        assert (row.get("note") == "not installed") == ("seconds" not in row)
    logistic = rows_of(probe, "logistic: one layer")
    looped = next(row for who, row in logistic.items() if who.startswith("scikit-learn"))
    assert looped["note"] == "1 of 3 targets"
    assert looped["of sonde"] == pytest.approx(3 * looped["seconds"] / logistic["sonde"]["seconds"])


@pytest.mark.slow
def test_new_labels_are_put_beside_reading_the_layers(probe: dict[str, Any]) -> None:
    rows = rows_of(probe, "sonde.probe")
    alone = {"read the layers", "read, XᵀY and scores"}
    assert rows.keys() == alone | {"first labels, 10 draws", "new labels, 10 draws", "new labels, 1 draw"}
    (promise,) = [promise for promise in probe["owed"] if promise["name"].startswith("new labels")]
    assert promise["value"] == pytest.approx(rows["new labels, 10 draws"]["of reading"])


@pytest.mark.slow
def test_growth_is_told_for_every_size_and_drawn(probe: dict[str, Any], plots: Path) -> None:
    grown = {row["what"] for row in probe["results"] if "size" in row}
    assert grown == {f"ridge as {size} grow" for size in ("rows", "hidden", "targets", "alphas", "folds", "layers")}
    assert (plots / "growth.svg").read_text().startswith("<?xml")
