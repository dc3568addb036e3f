"""The report is one safe page that needs nothing, and says what the numbers say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import altair
import numpy as np
import pandas as pd
import pytest
import vl_convert
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from sonde.errors import InputError, StoreError
from sonde.probes.report import claim, write_report
from sonde.probes.results import Results
from sonde.probes.tables import COLUMNS

N_LAYERS = 5
EVIL = '</script><script>alert("x")</script><img src=x onerror=alert(1)>&\u2028$\\frac$'

THROUGHPUT = {
    **{"samples_per_s": 12.5, "tokens_per_s": 900.0, "forward_tokens_per_s": 1000.0},
    **{"bytes_per_s": 2e6, "write_bytes_per_s": 5e7},
}


def synthetic(*, store: str = "runs/a.zarr", weights: str = "pretrained", suffix: str = "", seed: int = 0) -> Results:
    """One binary and one multilabel set of labels, two kinds of tokens, one target without positives."""
    rng = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for labels, metrics, targets in (
        ("entailment" + suffix, ("accuracy", "log_loss"), ["entailment"]),
        ("recognition" + suffix, ("average_precision",), ["cat" + suffix, "dog", "zebra"]),
    ):
        key: dict[str, Any] = {"labels": labels}
        for metric in metrics:
            baseline = {"site": "", "tokens": "", "layer": -1, "solver": "majority", "target": "all", "split": "test"}
            lines.append(key | baseline | {"metric": metric, "value": 0.25})
            for tokens in ("last", "image_mean"):
                values = 0.4 + 0.1 * rng.random(N_LAYERS)
                values[rng.integers(1, N_LAYERS - 1)] += -0.2 if metric == "log_loss" else 0.2
                for layer, value in enumerate(values):
                    probe = {
                        "site": "resid_post",
                        "tokens": tokens,
                        "layer": layer,
                        "solver": "ridge",
                        "metric": metric,
                    }
                    lines.append(key | probe | {"target": "all", "split": "cv", "value": value})
                    for target in ["all", *targets]:
                        score = np.nan if target == "zebra" else value
                        interval = {"value": score, "low": score - 0.05, "high": score + 0.05}
                        lines.append(key | probe | {"target": target, "split": "test"} | interval)
    constant: dict[str, Any] = {"model": "tiny" + suffix, "store": store + suffix, "alpha": 1.0, "n_train": 30}
    constant |= {"n_test": 10, "n_positive": 5, "converged": True, "split_hash": "ab", "seed": 0}
    frame = pd.DataFrame(lines).assign(**constant)[list(COLUMNS)]
    provenance = {"model": "tiny" + suffix, "store": store + suffix, "weights": weights, "n_layers": N_LAYERS}
    primary = {"entailment" + suffix: "accuracy", "recognition" + suffix: "average_precision"}
    return Results(frame, provenance=provenance | {"primary": primary, "throughput": THROUGHPUT})


class Page(HTMLParser):
    """What a browser would find: tags with their attributes, visible text, and the text of each script."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def figures(self) -> list[dict[str, Any]]:
        """What the page's script draws, with the rows of each data set in place of the number of its table."""
        figures, tables = json.loads(self.scripts[1]), json.loads(self.scripts[2])
        for figure in figures:
            figure["data"] = {name: unpacked(tables[number]) for name, number in figure["data"].items()}
        return list(figures)

    @property
    def points(self) -> list[dict[str, Any]]:
        """The rows of all charts."""
        return [row for figure in self.figures for rows in figure["data"].values() for row in rows]


def unpacked(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of a table: lists of numbers, and texts by their place among the different ones."""
    columns = {
        name: values if isinstance(values, list) else [values["names"][code] for code in values["codes"]]
        for name, values in table["columns"].items()
    }
    return [{name: values[i] for name, values in columns.items()} for i in range(table["n"])]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("plain")
    synthetic().save(folder)
    assert write_report(folder, folder / "page.html") == folder / "page.html"
    return Page(folder / "page.html")


def test_the_page_loads_nothing(plain: Page) -> None:
    for tag, attributes in plain.tags:
        assert not {"src", "srcset", "action", "data"} & set(attributes), (tag, attributes)
        assert str(attributes.get("href", "#")).startswith("#")
        assert tag not in {"link", "iframe", "base", "object", "embed"}
    policy = [a["content"] for tag, a in plain.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy
    assert str(policy[0]).startswith("default-src 'none'")
    assert not re.search(r"https?:", "".join(plain.scripts[1:]))


def test_the_page_holds_the_chart_library_once(plain: Page) -> None:
    assert [len(script) > 100_000 for script in plain.scripts] == [True, False, False, False, False]
    assert "vegaEmbed" in plain.scripts[0]
    placed = [int(str(a["data-chart"])) for _, a in plain.tags if "data-chart" in a]
    assert sorted(placed) == list(range(len(plain.figures)))


def test_the_real_renderer_draws_every_chart_with_the_scores_of_the_table(plain: Page) -> None:
    assert [figure["name"] for figure in plain.figures] == [
        "curves-entailment",
        "curves-recognition",
        "targets-recognition",
    ]
    version = ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    for figure in plain.figures:
        spec = figure["spec"] | {"datasets": figure["data"], "width": 400}
        assert "<svg" in vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=version)
        # Writing a page leaves this out.
        assert altair.Chart.from_dict(figure["spec"], validate=True)
    rows = synthetic().curves("entailment")
    expected = rows.loc[rows["split"] == "test", "value"].sort_values().tolist()
    drawn = [row for row in plain.figures[0]["data"]["data"] if row["metric"] == "accuracy"]
    assert sorted(row["value"] for row in drawn) == pytest.approx(expected, rel=1e-5)
    best = synthetic().summary()
    chosen = best.loc[best["labels"] == "entailment", "best"].sort_values().tolist()
    assert sorted(row["value"] for row in drawn if row["best"]) == pytest.approx(chosen, rel=1e-5)


def test_the_page_says_each_claim_with_its_figures(plain: Page) -> None:
    best, top = synthetic().best("entailment"), synthetic().top("entailment")
    estimate = f"{best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}]"
    assert f"best layer {best['layer']} of 5 (chosen by cross-validation) {estimate}" in plain.words
    assert f"{top['layer']}: {top['value']:.3f}" in plain.words
    assert "average precision (mean over 3 targets) of ridge on resid_post" in plain.words
    assert "0.250" in plain.words
    assert "12 samples/s, 900 tokens/s (the forward passes alone: 1,000), 2.00 MB/s" in plain.words
    assert "2.00 MB/s (the disk while it was written to: 50)" in plain.words
    assert '"n_layers": 5' in plain.text
    assert "random" not in plain.words.lower()


def test_random_weights_stand_in_the_head_line(tmp_path: Path) -> None:
    page = Page(write_report([synthetic(weights="random")], tmp_path))
    headline = re.search(r"<h1>(.*?)</h1>", (tmp_path / "report.html").read_text("utf-8"))
    assert headline is not None
    assert "random weights" in headline[1]
    assert "what an untrained network passes through" in page.words
    assert "(random weights)" in (tmp_path / "layer_curves.svg").read_text("utf-8")


def test_hostile_names_stay_text(tmp_path: Path, plain: Page) -> None:
    page = Page(write_report(synthetic(suffix=EVIL), tmp_path / "report.html"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert "entailment" + EVIL in page.text
    assert "cat" + EVIL in {row.get("target") for row in page.points}
    svg = ElementTree.parse(tmp_path / "layer_curves.svg")
    assert not [element for element in svg.iter() if element.tag.endswith("script")]


def test_several_results_stand_side_by_side(tmp_path: Path) -> None:
    synthetic(store="runs/cue.zarr").save(tmp_path / "cue")
    page = Page(
        write_report([tmp_path / "cue", synthetic(store="runs/no-cue.zarr", weights="random", seed=1)], tmp_path)
    )
    for store in ("runs/cue.zarr", "runs/no-cue.zarr"):
        assert f"recognition · {store}:" in page.words
    curves = {row["curve"] for row in page.figures[0]["data"]["data"]}
    assert curves == {f"runs/{store}.zarr · {t}" for store in ("cue", "no-cue") for t in ("last", "image_mean")}


def test_the_figures_lie_beside_the_page_and_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_report(synthetic(), tmp_path / folder)
    for name, start in (
        ("layer_curves.png", b"\x89PNG"),
        ("layer_curves.svg", b"<?xml"),
        ("layer_curves.csv", b"model,store"),
    ):
        data = (tmp_path / "one" / name).read_bytes()
        assert data.startswith(start)
        assert data == (tmp_path / "two" / name).read_bytes()


def test_what_cannot_be_reported_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one"):
        write_report([], tmp_path)
    with pytest.raises(StoreError, match="no results"):
        write_report(tmp_path / "absent", tmp_path)
    table = synthetic().rows
    with pytest.raises(InputError, match="probe with folds"):
        write_report(Results(table[table["split"] == "test"]), tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        write_report(synthetic(), tmp_path / "file" / "report.html")


@pytest.mark.parametrize(
    ("difference", "interval", "expected"),
    [
        (0.03, (0.01, 0.05), "is 0.030 lower [0.010, 0.050]."),
        (-0.03, (-0.05, -0.01), "is 0.030 higher [0.010, 0.050]."),
        (0.01, (-0.02, 0.04), "is 0.010 lower [−0.020, 0.040], no clear difference."),
        (0.03, (np.nan, np.nan), "is 0.030 lower."),
    ],
)
def test_a_claim_tells_direction_size_and_doubt(
    difference: float, interval: tuple[float, float], expected: str
) -> None:
    line: dict[str, Any] = {"best_layer": 3, "best": 0.81, "best_low": 0.78, "best_high": 0.84, "top_layer": 5}
    line |= {"difference": difference, "low": interval[0], "high": interval[1]}
    text = claim(line, 6).replace("\u00a0", " ")
    assert text.startswith("best layer 3 of 6 (chosen by cross-validation) 0.810 [0.780, 0.840]; the top layer (5) ")
    assert text.endswith(expected)
    assert claim(line | {"best_layer": 5}).endswith("it is the top layer.")


def test_a_plot_shows_the_test_scores_their_interval_and_the_chosen_layer_without_a_display() -> None:
    found = synthetic()
    ax = found.plot("entailment", tokens="last")
    best = found.best("entailment", tokens="last")
    rows = found.curves("entailment", tokens="last")
    test = rows[rows["split"] == "test"].sort_values("layer")
    lines = {tuple(line.get_xdata()): list(line.get_ydata()) for line in ax.get_lines()}
    assert lines[tuple(range(N_LAYERS))] == list(test["value"])
    assert lines[(best["layer"],)] == [best["value"]]
    assert [0.25, 0.25] in lines.values()
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((test["low"].min(), test["high"].max()))
    assert ax.get_ylabel() == "accuracy"
    assert not Gcf.get_all_fig_managers()


def test_a_plot_can_be_drawn_into_a_figure_of_the_caller() -> None:
    ax = Figure().add_subplot()
    assert synthetic(weights="random").plot("recognition", ax=ax) is ax
    assert "random weights" in ax.get_title(loc="left")
    with pytest.raises(InputError, match="several labels"):
        synthetic().plot()
