"""`sonde extract`: what it makes, what it says on the way, and what a dry run says before."""

import json
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sonde
from sonde.progress import ProgressBar
from sonde.watching import watched

FAST = ["--draws", 20, "--folds", 3]


def test_out_and_set_override_the_configuration(study: Any, call: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "other.zarr"
    settings = ["model.dtype=float32", "capture.layers=[0, 2]", 'capture.tokens=["first"]', "data.limit=10"]
    answer = call("extract", study.config, "--out", out, *(part for s in settings for part in ("--set", s)))
    assert (answer.code, answer.err) == (0, "")
    assert "activations: resid_post/first  [2, 10, 32] float32" in answer.out
    store = sonde.open(out)
    assert [(a.name, a.layers) for a in store.arrays] == [("resid_post/first", (0, 2))]
    assert store.layer("resid_post", "first", 2).numpy().dtype == np.float32
    assert store.schema.config["capture"]["layers"] == [0, 2]


def test_resume_of_nothing_begins_and_json_says_what_came_of_it(study: Any, call: Any, tmp_path: Path) -> None:
    new = tmp_path / "new.zarr"
    answer = call("extract", study.config, "--resume", "--out", new, "--set", "data.limit=4", "--json")
    assert (answer.code, answer.err) == (0, "")
    facts = json.loads(answer.out)
    assert (facts["store"], facts["samples"], facts["ranges"]["committed"]) == (str(new), 4, 1)


# probe


def lines_of(manifest: Path, start: int, stop: int, out: Path) -> Path:
    out.write_text("".join(manifest.read_text().splitlines(keepends=True)[start:stop]))
    return out


def test_append_adds_the_samples_of_another_manifest(study: Any, call: Any, tmp_path: Path) -> None:
    first, second = (lines_of(study.manifest, a, b, tmp_path / f"{a}.jsonl") for a, b in ((0, 90), (90, 192)))
    out = tmp_path / "grown.zarr"
    extract = ("extract", study.config, "--out", out, "--set")
    assert call(*extract, f"data.manifest={first}").code == 0
    again = call(*extract, f"data.manifest={second}")
    assert (again.code, "exists already" in again.err) == (1, True)
    grown = call(*extract, f"data.manifest={second}", "--append", "--json")
    assert (grown.code, json.loads(grown.out)["parts"]) == (0, [90, 102])
    store, whole = sonde.open(out), sonde.open(study.store)
    assert store.ids.tolist() == whole.ids.tolist()
    assert store.labels("topic").column() == whole.labels("topic").column()
    np.testing.assert_allclose(
        store.layer("resid_post", "mean", 1).numpy().astype(np.float32),
        whole.layer("resid_post", "mean", 1).numpy().astype(np.float32),
        atol=0.1,
    )
    assert call("probe", out, "--labels", "topic", *FAST).code == 0
    assert "parts: 90 + 102 samples" in call("info", out).out
    wrong = call(*extract, f"data.manifest={second}", "--append", "--set", "capture.tokens=['last']")
    assert (wrong.code, "capture tokens" in wrong.err, wrong.err.count("\n")) == (1, True, 1)


def test_all_tokens_are_extracted_and_pooled(study: Any, call: Any, tmp_path: Path) -> None:
    out = tmp_path / "all.zarr"
    assert call("extract", study.config, "--out", out, "--set", 'capture.tokens=["all"]').code == 0
    assert "resid_post/all  [3, tokens, 32] bfloat16" in call("info", out).out
    refused = call("probe", out, "--labels", "topic")
    assert (refused.code, "store.pool('mean')" in refused.err) == (1, True)
    assert call("pool", out, "mean").out == "resid_post/mean\n"
    assert call("probe", out, "--labels", "topic", *FAST).code == 0
    assert call("verify", out).code == 0


@pytest.mark.parametrize("codec", ["zstd", "lz4+bitshuffle"])
def test_codec_and_dtype_are_settings(study: Any, call: Any, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "small.zarr"
    settings = ["--set", f"capture.codec={codec}", "--set", "capture.dtype=int8", "--set", "run.fsync=false"]
    assert call("extract", study.config, "--out", out, *settings).code == 0
    assert f"int8, {codec}" in call("info", out).out
    assert call("probe", out, "--labels", "topic", *FAST).code == 0
    assert call("verify", out).code == 0


def test_an_extraction_goes_straight_to_a_url(study: Any, call: Any, tmp_path: Path, tree: Any) -> None:
    url = f"memory://{tmp_path.name}/run.zarr"
    assert call("extract", study.config, "--out", url).code == 0
    assert "exists already" in call("extract", study.config, "--out", url).err
    assert call("extract", study.config, "--out", url, "--resume").code == 0
    assert call("copy", url, tmp_path / "copy.zarr").code == 0
    assert tree(tmp_path / "copy.zarr") == tree(study.store)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(study: Any, call: Any, tmp_path: Path) -> None:
    out = tmp_path / "run.zarr"
    answer = call("extract", study.config, "--out", out, "--dry-run", "--json")
    assert answer.code == 0
    plan = json.loads(answer.out)
    lengths = [len(json.loads(line)["prompt"].split()) for line in study.manifest.read_text().splitlines()]
    assert (plan["samples"], plan["ranges"], plan["range_size"]) == (192, 48, 4)
    assert plan["samples_read"] == 16
    read = [n for i in (0, 16, 31, 47) for n in lengths[4 * i : 4 * i + 4]]
    assert plan["tokens"] == round(sum(read) * 192 / 16)
    assert plan["bytes_written"] == 2 * 3 * 192 * 32 * 2
    assert 0 <= plan["padding"] < 1
    assert plan["seconds"] > 0
    assert plan["tokens_per_s"] > 0
    assert not out.exists()
    shown = call("extract", study.config, "--out", out, "--dry-run").out
    for words in (
        "192 in 48 ranges of 4 (16 read to estimate the rest)",
        "padded tokens",
        "shared prefixes: yes; ",
        "to be written: 73.7 kB",
        "peak memory",
        "tokens/s",
    ):
        assert words in shown
    assert not out.exists()
    alone = call("extract", study.config, "--out", out, "--dry-run", "--set", "run.shared_prefix=false").out
    assert "shared prefixes: no, because run.shared_prefix is off\n" in alone


def test_the_example_of_the_help_is_a_configuration(call: Any) -> None:
    example = call("extract", "--help").out.partition("A minimal CONFIG.toml:")[2].partition("╭")[0]
    sections = tomllib.loads(textwrap.dedent("\n".join(line.rstrip() for line in example.splitlines())))
    assert sections == {
        "model": {"name": "gpt2"},
        "data": {"manifest": "samples.jsonl"},
        "capture": {"tokens": ["last", "mean"]},
        "run": {"out": "run.zarr"},
    }


def test_progress_is_a_line_now_and_then_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    measures = {"tokens": 4000, "bytes": 3 * 10**9, "seconds": 25.0}
    said = "sonde: 50 of 200 samples  2.0 samples/s  160 tokens/s  0.120 GB/s  0:01:15 left\n"
    for line_seconds, expected in ((0.0, said), (60.0, ""), (None, "")):
        with watched([ProgressBar(line_seconds)], {"run": "extract", "unit": "samples"}) as watch:
            watch.on_progress(50, 200, measures)
        assert capsys.readouterr().err == expected
    with watched([ProgressBar(0.0)], {"run": "probe", "unit": "layers"}) as watch:
        watch.on_progress(3, 24)
    assert capsys.readouterr().err == "sonde: 3 of 24 layers\n"


def test_a_run_with_nothing_left_to_do_says_so(study: Any, store: Path, call: Any, tree: Any) -> None:
    for again in ("--resume", "--append"):
        answer = call("extract", study.config, again)
        assert (answer.code, answer.err.count("\n")) == (0, 1)
        assert f"all 192 samples are in {store} already" in answer.err
    assert tree(store) == tree(study.store)


def test_skipped_samples_are_shown_by_row_and_the_rest_counted(study: Any, call: Any, tmp_path: Path) -> None:
    prompts = ["cat " * (70 if i % 2 else 3) for i in range(26)]
    manifest = tmp_path / "samples.jsonl"
    manifest.write_text("".join(json.dumps({"id": f"s{i}", "prompt": p}) + "\n" for i, p in enumerate(prompts)))
    settings = (f"data.manifest={manifest}", "run.on_error=skip", "run.range_size=13")
    asked = [part for setting in settings for part in ("--set", setting)]
    answer = call("extract", study.config, "--out", tmp_path / "run.zarr", *asked)
    assert answer.code == 3
    shown = [line.split()[2] for line in answer.out.splitlines() if line.startswith("skipped row")]
    assert shown == [f"{row}:" for row in range(1, 20, 2)]
    assert "and 3 more: sonde.open(…).skipped has them all" in answer.out
    assert "on_error" not in answer.out


def test_workers_write_the_same_store(study: Any, call: Any, tmp_path: Path, tree: Any) -> None:
    out = tmp_path / "run.zarr"
    assert call("extract", study.config, "--out", out, "--workers", 2).code == 0
    assert tree(out) == tree(study.store)
