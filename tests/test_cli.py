"""The command line: every command does what it says, results on stdout, the rest on stderr, and the code tells."""

import importlib.metadata
import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer

import sonde
from sonde.cli import app


def commands(group: Any, *names: str) -> Iterator[tuple[str, Any]]:
    """Every command with the words by which it is called, groups and the whole among them."""
    yield " ".join(names), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))
OPTIONS = {
    "demo": ["--out", "--fast"],
    "extract": [
        "CONFIG.toml",
        "--out",
        "--set",
        "--resume",
        "--append",
        "--workers",
        "--scheduler",
        "--dry-run",
        "--json",
    ],
    "copy": ["SRC", "DST", "--json"],
    "push": ["RUN.zarr", "OWNER/NAME", "--private", "--revision"],
    "pull": ["OWNER/NAME", "DST", "--revision"],
    "probe": ["RUN.zarr", "--labels", "--solver", "--out", "--scheduler", "--workers", "--json"],
    "labels add": ["RUN.zarr", "FILE", "--ignore-unknown", "--overwrite", "--kind"],
    "report": ["DIR", "--out", "--worst"],
    "info": ["RUN.zarr", "--json"],
    "verify": ["RUN.zarr", "--repair", "--json"],
}
FAST = ["--draws", 20, "--folds", 3]


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)


def test_help_and_version_of_the_real_command(start: Any) -> None:
    with start("--help") as asked:
        out, err = asked.communicate(timeout=60)
    assert (asked.returncode, err) == (0, "")
    for command in COMMANDS:
        assert command.partition(" ")[0] in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(call: Any, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    answer = call(*command.split(), "--help")
    assert (answer.code, answer.err) == (0, "")
    assert all(option in answer.out for option in ["Usage", *OPTIONS.get(command, [])])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_examples_that_sonde_takes(call: Any, command: str) -> None:
    lines = [line.strip() for line in call(*command.split(), "--help").out.partition("Example")[2].splitlines()[1:]]
    examples = [shlex.split(line) for line in lines if line]
    assert examples
    for program, *words in examples:
        assert program == "sonde"
        called = max((name for name in COMMANDS if words[: len(name.split())] == name.split()), key=len)
        assert called.startswith(command)
        # It raises where an option is not there, a value is of another kind, or an argument is missing.
        COMMANDS[called].make_context(called, words[len(called.split()) :])


def test_version(call: Any) -> None:
    assert call("--version").out == importlib.metadata.version("sonde") + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe", "run.zarr"], "Missing option '--labels'; see `"),
        (["info"], "Missing argument 'RUN.zarr'; see `"),
        (["frobnicate"], "No such command 'frobnicate'"),
        (["info", "--frobnicate", "run.zarr"], "No such option: --frobnicate"),
        (["probe", "run.zarr", "--labels", "x", "--solver", "magic"], "'ridge', 'logistic'"),
        (["labels", "frobnicate"], "No such command 'frobnicate'"),
    ],
)
def test_a_wrong_call_is_one_line_on_stderr_and_code_2(call: Any, arguments: list[str], message: str) -> None:
    answer = call(*arguments)
    assert (answer.code, answer.out) == (2, "")
    assert message in answer.err
    assert answer.err.startswith("sonde: ")
    assert answer.err.count("\n") == 1
    assert "--help`" in answer.err


def test_no_command_at_all_is_wrong_and_shows_the_help(call: Any) -> None:
    answer = call()
    assert answer.code == 2
    assert "extract" in answer.out + answer.err
    assert "sonde: " not in answer.err


# extract


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_probe_writes_beside_the_store_and_finds_what_is_there(store: Path, call: Any, solver: str) -> None:
    answer = call("probe", store, "--labels", "topic", "--solver", solver, *FAST)
    folder = store.with_name("run.probes") / f"topic-{solver}"
    assert answer.code == 0
    assert answer.out.endswith(f"results: {folder}\n")
    rows = pd.read_parquet(folder / "results.parquet")
    curves = rows[(rows["solver"] == solver) & (rows["target"] == "all") & (rows["split"] == "test")]
    for tokens in ("last", "mean"):
        curve = curves[(curves["tokens"] == tokens) & (curves["metric"] == "accuracy")]
        assert curve["layer"].tolist() == [0, 1, 2]
        # The topic is in every word but one: a probe that reads the store's rows in order cannot miss it.
        assert curve["value"].min() > 0.9
    assert len(sonde.load_probes(folder)) == 6


def test_no_name_of_a_result_is_cut_off(store: Path, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = call("probe", store, "--labels", "topic", *FAST).out
    assert "…" not in table
    columns = [line.split("│") for line in table.splitlines() if "│" in line]
    assert "resid_post" in "".join(cells[1].strip() for cells in columns)


def test_probe_out_selection_and_json(store: Path, call: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "results"
    chosen = ["--tokens", "last", "--layer", 0, "--layer", 2, "--site", "resid_post"]
    answer = call("probe", store, "--labels", "share", *chosen, *FAST, "--out", out, "--json")
    assert answer.code == 0
    found = json.loads(answer.out)
    assert found["results"] == str(out)
    assert [(line["tokens"], line["top_layer"]) for line in found["summary"]] == [("last", 2)]
    rows = pd.read_parquet(out / "results.parquet")
    assert set(rows.loc[rows["solver"] == "ridge", "layer"]) == {0, 2}


# labels

SUFFIXES: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "parquet": lambda table, path: table.to_parquet(path, index=False),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_are_added_from_a_table_and_probed(store: Path, call: Any, tmp_path: Path, suffix: str) -> None:
    opened = sonde.open(store)
    truth = np.array(opened.labels("topic").names)[opened.labels("topic").values]
    table = pd.DataFrame({"id": opened.ids, "kind": truth, "tool": (truth == "tool").astype(int)})
    # Shuffled and not all: rows find their samples by id.
    table = table.drop(index=[0, 5]).sample(frac=1, random_state=0)
    SUFFIXES[suffix](table, tmp_path / f"late.{suffix}")
    answer = call("labels", "add", store, tmp_path / f"late.{suffix}")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.splitlines() == [
        "kind: multiclass, 190 samples labelled, 2 without a label",
        "tool: binary, 190 samples labelled, 2 without a label",
    ]
    added = sonde.open(store).labels("tool")
    assert np.flatnonzero(~added.present).tolist() == [0, 5]
    assert np.array_equal(added.values[added.present], (truth == "tool")[added.present])
    probed = call("probe", store, "--labels", "kind", *FAST, "--layer", 0, "--tokens", "last", "--json")
    assert json.loads(probed.out)["summary"][0]["best"] > 0.9


def test_unknown_ids_are_refused_unless_they_are_to_be_ignored(store: Path, call: Any, tmp_path: Path) -> None:
    file = tmp_path / "late.csv"
    file.write_text("id,late\ns0,1\ns1,0\nnobody,1\n")
    answer = call("labels", "add", store, file)
    assert answer.code == 1
    assert "1 ids are not in the store, the first is 'nobody'; correct them or pass --ignore-unknown" in answer.err
    assert "late" not in sonde.open(store).label_names
    answer = call("labels", "add", store, file, "--ignore-unknown", "--json")
    assert json.loads(answer.out) == {"late": {"kind": "binary", "labelled": 2, "missing": 190, "unknown": 1}}


def test_labels_are_replaced_only_on_demand(store: Path, call: Any, tmp_path: Path) -> None:
    file = tmp_path / "late.csv"
    file.write_text("id,topic\ns0,sun\ns1,moon\n")
    answer = call("labels", "add", store, file)
    assert answer.code == 1
    assert "has labels 'topic' already; replace them with --overwrite" in answer.err
    assert sonde.open(store).labels("topic").names == ("animal", "tool")
    assert call("labels", "add", store, file, "--overwrite").code == 0
    assert sonde.open(store).labels("topic").names == ("moon", "sun")


@pytest.mark.parametrize("second", ["", "topic"], ids=["a column without values", "a column that is there"])
def test_labels_of_a_file_are_added_all_or_none(store: Path, call: Any, tmp_path: Path, second: str) -> None:
    file = tmp_path / "late.csv"
    file.write_text(f"id,fine,{second or 'empty'}\ns0,1,\ns1,0,{second}\n")
    assert call("labels", "add", store, file).code == 1
    assert "fine" not in sonde.open(store).label_names


# report, info, verify, models


def test_report_of_two_results(store: Path, call: Any, tmp_path: Path) -> None:
    for labels in ("topic", "share"):
        assert call("probe", store, "--labels", labels, *FAST, "--tokens", "last").code == 0
    answer = call("report", "run.probes/topic-ridge", "run.probes/share-ridge", "--out", tmp_path / "page.html")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"{tmp_path / 'page.html'}\n"
    page = (tmp_path / "page.html").read_text()
    assert "topic" in page
    assert "share" in page
    assert (tmp_path / "layer_curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_report_shows_prompts_where_it_is_asked_to_and_only_those_that_were_extracted(
    study: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest, page = Path(shutil.copy(study.manifest, tmp_path / "own.jsonl")), tmp_path / "page.html"
    prompts = [json.loads(line)["prompt"] for line in manifest.read_text().splitlines()]
    assert call("extract", study.config, "--set", f'data.manifest="{manifest}"').code == 0
    assert call("probe", "run.zarr", "--labels", "share", *FAST, "--tokens", "last").code == 0

    def report(*options: object) -> tuple[int, str]:
        answer = call("report", "run.probes/share-ridge", "--out", page, *options)
        assert answer.code == 0
        return sum(f">{prompt}<" in page.read_text() for prompt in prompts), answer.err

    assert report() == (0, "")
    assert report("--worst", 3) == (3, "")
    manifest.write_text(manifest.read_text().replace("the", "a"))
    n_shown, told = report("--worst", 3)
    assert n_shown == 0
    assert "their data set has changed since the extraction" in told


def test_info_says_what_is_there(study: Any, store: Path, call: Any) -> None:
    facts = json.loads(call("info", store, "--json").out)
    assert facts["store"] == str(store)
    assert (facts["samples"], facts["skipped"], facts["nonfinite"]) == (192, 0, 0)
    assert facts["ranges"] == {"committed": 48, "planned": 48, "size": 4}
    assert facts["arrays"]["resid_post/mean"] == {"layers": [0, 1, 2], "hidden": 32, "dtype": "bfloat16"}
    assert facts["labels"] == {"constant": "multiclass", "share": "regression", "topic": "multiclass"}
    assert facts["model"]["name"] == str(study.model)
    chunks = list(store.glob("activations/resid_post/*/c.*"))
    assert facts["bytes"] == sum(chunk.stat().st_size for chunk in chunks)
    people = call("info", store).out
    assert "complete" in people
    assert "activations: resid_post/last  [3, 192, 32] bfloat16" in people


def test_resume_extracts_what_is_missing_and_nothing_else(study: Any, store: Path, call: Any, tree: Any) -> None:
    for index in (3, 47):
        (store / f"commits/{index:08d}.json").unlink()
        flip_a_byte(store / f"activations/resid_post/last/c.1.{index}.0")
    assert "46 of 48 ranges committed" in call("info", store).out
    untouched = (store / "commits/00000000.json").stat().st_mtime_ns
    assert call("extract", study.config, "--resume").code == 0
    assert tree(store) == tree(study.store)
    assert (store / "commits/00000000.json").stat().st_mtime_ns == untouched
    # A finished store has nothing to resume, and that is no mistake.
    assert call("extract", study.config, "--resume").code == 0


def test_verify_finds_damage_marks_it_and_resume_refills_it(study: Any, store: Path, call: Any, tree: Any) -> None:
    sound = call("verify", store)
    assert (sound.code, sound.out, sound.err) == (0, "0 of 48 ranges damaged\n", "")
    flip_a_byte(store / "activations/resid_post/mean/c.2.7.0")
    (store / "activations/resid_post/last/c.0.9.0").unlink()
    found = call("verify", store)
    assert found.code == 1
    assert "range 7 of layer 2 of resid_post/mean" in found.out
    assert "range 9 of layer 0 of resid_post/last" in found.out
    assert "2 of 48 ranges damaged; run `sonde verify --repair` to mark them" in found.out
    assert [d["range"] for d in json.loads(call("verify", store, "--json").out)["damaged"]] == [7, 9]
    assert call("verify", store, "--repair").code == 0
    assert "46 of 48 ranges committed" in call("info", store).out
    assert call("extract", study.config, "--resume").code == 0
    assert call("verify", store).code == 0
    assert tree(store) == tree(study.store)


def test_models_lists_every_family_that_is_tested(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from sonde.engine.families import FAMILIES

    monkeypatch.setenv("COLUMNS", "200")
    listed = json.loads(call("models", "--json").out)
    assert [family["family"] for family in listed] == [family.name for family in FAMILIES]
    assert all(family["takes"] and family["verified"] for family in listed)
    shown = call("models").out
    assert all(f"{family.name} " in shown for family in FAMILIES)


# Growing and moving


def test_copy_to_another_place_and_back(store: Path, call: Any, tmp_path: Path, tree: Any) -> None:
    url = f"memory://{tmp_path.name}/run.zarr"
    there = call("copy", store, url, "--json")
    assert json.loads(there.out)["copied"] == 48
    assert call("verify", url).code == 0
    assert call("probe", url, "--labels", "topic", *FAST, "--out", tmp_path / "probes").code == 0
    back = call("copy", url, tmp_path / "back.zarr")
    assert "48 ranges copied" in back.out
    assert tree(tmp_path / "back.zarr") == tree(store)
    assert "0 ranges copied (0 bytes), 48 there" in call("copy", store, url).out


def test_the_kind_of_labels_can_be_given(store: Path, call: Any, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    table.write_text("id,score\n" + "".join(f"s{i},{i % 7}\n" for i in range(100)) + "elsewhere,3\n")
    assert call("labels", "add", store, table).code == 1
    added = call("labels", "add", store, table, "--ignore-unknown", "--kind", "score=regression", "--json")
    report = json.loads(added.out)["score"]
    assert report == {"kind": "regression", "labelled": 100, "missing": 92, "unknown": 1}
    wrong = call("labels", "add", store, table, "--overwrite", "--kind", "score=number")
    assert (wrong.code, "one of binary, multiclass, multilabel, regression" in wrong.err) == (1, True)
