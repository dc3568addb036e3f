"""The page shows what a probe gets most wrong, where it is asked to, and no more than that."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from sonde.errors import InputError
from sonde.probes import probe, write_report
from sonde.probes.report import Question

N = 5
PROMPT = "<b>What is it?</b> " + "word " * 100


def png(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGBA", (640, 320), colour).save(buffer, "PNG")
    return buffer.getvalue()


def ask(store: str, ids: Sequence[str]) -> Mapping[str, Question]:
    """One sample has a picture, one a file that is none, and one is not known."""
    images = [png("red"), b"no picture"]
    return {name: Question(PROMPT, image) for name, image in zip(ids, [*images, None, None], strict=False)}


@pytest.fixture(scope="module")
def probed(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    runs: dict[str, Path] = {}

    def run(labels: str) -> Path:
        if labels not in runs:
            runs[labels] = tmp_path_factory.mktemp("worst") / labels
            probe(example.path, labels, n_draws=10, out=runs[labels])
        return runs[labels]

    return run


def lines(folder: Path, out: Path, **options: Any) -> list[list[str]]:
    """Cells of the page's table of mistakes."""
    page = write_report(folder, out / "page.html", **options).read_text("utf-8")
    table = re.search(r'<table class="mistakes">(.*?)</table>', page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)[1:] if table else []
    return [[cell for _, cell in re.findall(r"<(t[hd])\b[^>]*>(.*?)</\1>", row, re.DOTALL)] for row in rows]


def best_scores(folder: Path) -> pd.DataFrame:
    """Raw test scores of the best layer."""
    from sonde.probes import Results

    best = Results.load(folder).best()
    scores = pd.read_parquet(folder / "scores.parquet")
    return scores[(scores[["site", "tokens", "layer"]] == best[["site", "tokens", "layer"]]).all(axis=1)]


def test_yes_or_no_the_furthest_on_the_wrong_side_come_first(probed: Callable[[str], Path], tmp_path: Path) -> None:
    scores = best_scores(probed("entailment"))
    wrong = scores[(scores["truth"] > 0.5) != (scores["score"] > 0.5)]
    wrong = wrong.assign(error=(wrong["truth"] - wrong["score"]).abs()).nlargest(N, "error")
    found = lines(probed("entailment"), tmp_path, worst=N)
    assert [line[0] for line in found] == wrong["id"].tolist()
    assert [line[2] for line in found] == ["yes" if truth else "no" for truth in wrong["truth"]]
    assert all(line[2] != line[3] for line in found)


def test_of_several_targets_each_is_an_answer_of_its_own(probed: Callable[[str], Path], tmp_path: Path) -> None:
    scores = best_scores(probed("objects"))
    wrong = scores[(scores["truth"] > 0.5) != (scores["score"] > 0.5)]
    wrong = wrong.assign(error=(wrong["truth"] - wrong["score"]).abs()).nlargest(N, "error")
    assert [(line[0], line[5]) for line in lines(probed("objects"), tmp_path, worst=N)] == list(
        zip(wrong["id"], wrong["target"], strict=True)
    )


def test_of_classes_the_one_that_was_said_stands_beside_the_one_that_was_true(
    probed: Callable[[str], Path], tmp_path: Path
) -> None:
    wide = best_scores(probed("colour")).pivot(index="id", columns="target", values=["truth", "score"])
    true, said = wide["truth"].idxmax(axis=1), wide["score"].idxmax(axis=1)
    found = lines(probed("colour"), tmp_path, worst=1000)
    assert {line[0]: (line[2], line[3]) for line in found} == {
        name: (true[name], said[name]) for name in wide.index[true != said]
    }


def test_numbers_are_as_wrong_as_they_are_far(probed: Callable[[str], Path], tmp_path: Path) -> None:
    scores = best_scores(probed("size"))
    furthest = scores.loc[(scores["truth"] - scores["score"]).abs().idxmax()]
    [line] = lines(probed("size"), tmp_path, worst=1)
    assert line[0] == furthest["id"]
    assert float(line[2].replace("−", "-")) == pytest.approx(furthest["truth"], abs=1e-3)


def test_prompts_are_cut_and_stay_text_and_pictures_are_small(probed: Callable[[str], Path], tmp_path: Path) -> None:
    found = lines(probed("size"), tmp_path, worst=N, ask=ask)
    pictures = [line[1] for line in found]
    assert pictures[1:] == ["–"] * (N - 1)
    data = re.search(r'src="data:image/jpeg;base64,([^"]*)"', pictures[0])
    assert data is not None
    with Image.open(BytesIO(base64.b64decode(data[1]))) as picture:
        assert picture.size == (192, 96)
    assert all(line[6].startswith("&lt;b&gt;What is it?&lt;/b&gt; word ") for line in found[:4])
    assert all(len(line[6]) < len(PROMPT) for line in found)
    assert found[4][6] == "–"


def test_nothing_is_shown_or_looked_up_unless_it_is_asked_for(probed: Callable[[str], Path], tmp_path: Path) -> None:
    looked_up: list[str] = []

    def watch(store: str, ids: Sequence[str]) -> Mapping[str, Question]:
        looked_up.append(store)
        return {}

    assert lines(probed("size"), tmp_path, ask=watch) == []
    assert looked_up == []
    assert lines(probed("size"), tmp_path, worst=1, ask=watch)
    assert len(looked_up) == 1


def test_results_that_are_in_no_folder_have_no_raw_scores(example: Any, tmp_path: Path) -> None:
    results = probe(example.path, "size", n_draws=10)
    with pytest.raises(InputError, match="folders of results"):
        write_report(results, tmp_path, worst=1)
