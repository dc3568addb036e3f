"""`sonde demo`: the whole study from one command, in a folder that holds nothing else."""

import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import sonde

MODELS = ("trained", "random-weights")
STUDIES = ("entailment-no-cue", "entailment-cue", "recognition-no-cue", "recognition-cue")


class Page(HTMLParser):
    """Collects what a page would load, what it allows itself to load, its headline and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.policy = self.headline = self.text = self._element = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.loads += [values[name] for name in ("src", "href", "srcset", "data", "action") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"]
        self._element = tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._element == "h1":
            self.headline += data


@pytest.mark.slow
def test_the_demo_runs_the_whole_study_and_replaces_an_earlier_one(start: Any, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with start("demo", "--fast", "--out", out) as first:
        # An earlier demo that was stopped in the middle is replaced like a finished one.
        while not (out / "data").exists():
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.001)
        first.kill()
    (out / "left-over.txt").touch()
    with start("demo", "--fast", "--out", out) as process:
        printed, told = process.communicate(timeout=180)
    assert process.returncode == 0, told
    assert "Traceback" not in told
    assert not (out / "left-over.txt").exists()

    *found, place, report = printed.splitlines()
    assert [line.split(",")[0] for line in found] == list(STUDIES)
    for line in found:
        assert re.search(r"best layer \d of 6 \(chosen by cross-validation\) 0\.\d{3} \[", line), line
        assert "the top layer" in line
    assert place.endswith(f": {out}")
    assert report == f"report: {out / 'report.html'}"

    for model in MODELS:
        store = sonde.open(out / f"{model}.zarr")
        assert store.complete
        assert store.verify() == []
        assert store.array("resid_post", "last").layers == tuple(range(6))
        for study in STUDIES:
            rows = pd.read_parquet(out / f"{model}.probes" / study / "results.parquet")
            assert set(range(6)) <= set(rows["layer"])
            assert sonde.load_probes(out / f"{model}.probes" / study)

    # There is something to find: more than guessing, words, and what untrained layers pass on; and layers differ.
    for line in found:
        told = re.search(
            r"majority ([\d.]+), words alone ([\d.]+), random weights ([\d.]+), "
            r"trained ([\d.]+) \(\+[\d.]+ \[([+-][\d.]+)",
            line,
        )
        assert told, line
        majority, words, untrained, trained, low = map(float, told.groups())
        assert trained > max(majority, words, untrained) + 0.1, line
        assert low > 0, line
    holding = sonde.probes.Results.load(out / "trained.probes" / "entailment-no-cue")
    assert holding.difference(5, 0, tokens="last").low > 0.1

    page = Page((out / "report.html").read_text())
    assert [address for address in page.loads if not address.startswith(("#", "data:"))] == []
    assert page.policy.startswith("default-src 'none'")
    assert "http" not in page.policy
    # Neither model is taken for the other.
    assert page.headline.strip() == "Layers of demo/trained, demo/random-weights"
    assert "demo/random-weights was never trained" in page.text
    assert "(random weights)" not in (out / "layer_curves.svg").read_text("utf-8")


def test_a_folder_that_is_no_demo_is_refused(call: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("all I have")
    answer = call("demo", "--fast", "--out", tmp_path)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == f"sonde: error: {tmp_path} exists and is no earlier demo; choose another --out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
