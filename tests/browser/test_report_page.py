"""The report in a real browser: it opens without a complaint, and keeps its promises to mouse, keyboard and paper."""

import itertools
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sonde.probes import Results

from .conftest import N_LAYERS, N_TARGETS
from .synthetic import METRICS, PRIMARY

Show = Callable[..., Any]
ON_TOP = """(elements, layer) => {
  const point = elements.filter((element) => element.__data__?.datum?.layer === layer).at(-1);
  return [point.getBoundingClientRect().toJSON(), point.__data__.datum.curve];
}"""
SCREENS = [(1280, "light"), (1280, "dark"), (400, "light")]
FROM_TOP = """(elements) => elements.filter((element) => element.textContent.startsWith("category"))
  .sort((one, other) => one.getBoundingClientRect().y - other.getBoundingClientRect().y)
  .map((element) => element.textContent)"""


def panel(page: Any, title: str) -> Any:
    return page.locator(f'[data-panel]:has(h3:text-is("{title}"))')


def settle(page: Any) -> None:
    """Wait until all charts show what was chosen."""
    page.evaluate("Promise.all([...views.values()].map((view) => view.runAsync())).then(() => null)")


def paths(figure: Any) -> list[str]:
    """Shapes of the lines of a figure."""
    shapes: list[str] = figure.locator(".mark-line path").evaluate_all("els => els.map(e => e.getAttribute('d'))")
    return shapes


@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_every_chart_is_there_and_nothing_reaches_beyond_the_screen(show: Show, width: int, scheme: str) -> None:
    page = show(width, scheme)
    charts = page.locator(".chart")
    assert charts.count() == 7
    for i in range(charts.count()):
        box = charts.nth(i).bounding_box()
        assert box["height"] > 80
        assert box["x"] + box["width"] <= width
        marks = charts.nth(i).locator(
            '[class*="mark-line"] path, [class*="mark-rect"] path, [class*="mark-symbol"] path'
        )
        assert marks.count() >= 2
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_pointing_at_a_layer_tells_its_scores(show: Show, results: Results) -> None:
    page = show()
    layer = results.best(store="run-0.zarr")["layer"]
    points = page.locator("figure").first.locator(".mark-symbol path")
    # Of points that lie upon each other, the last one is on top.
    box, store = points.evaluate_all(ON_TOP, int(layer))
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#vg-tooltip-element.visible").wait_for()
    told = page.locator("#vg-tooltip-element").inner_text()
    test = results.curves(metric=PRIMARY, store=store)
    row = test[(test["split"] == "test") & (test["layer"] == layer)].iloc[0]
    for text in (store, str(layer), *(f"{row[name]:.3f}" for name in ("value", "low", "high")), "2000", "0.220"):
        assert text in told


def test_targets_stand_in_the_order_that_is_chosen(show: Show, results: Results) -> None:
    page = show()
    heatmap = panel(page, "Layer by target")
    rows = results.rows[(results.rows["store"] == "run-0.zarr") & (results.rows["metric"] == PRIMARY)]
    rows = rows[(rows["target"] != "all") & (rows["split"] == "test")]
    heatmap.get_by_label("Curve").select_option(label="run-0.zarr")
    by_target = rows.set_index("layer").groupby("target")
    expected = {
        "name": sorted(rows["target"].unique()),
        "prevalence": by_target["n_positive"].max().sort_values(ascending=False).index.tolist(),
        "best score": by_target["value"].max().sort_values(ascending=False).index.tolist(),
    }
    for order, targets in expected.items():
        heatmap.get_by_label("Sort by").select_option(label=order)
        settle(page)
        assert heatmap.locator(".role-axis-label text").evaluate_all(FROM_TOP) == targets
    heatmap.get_by_label("Sort by").select_option(label="peak layer")
    settle(page)
    found = heatmap.locator(".role-axis-label text").evaluate_all(FROM_TOP)
    peaks = by_target["value"].idxmax()
    assert [peaks[target] for target in found] == sorted(peaks)


def test_another_layer_has_other_penalties_and_another_calibration(show: Show) -> None:
    page = show()
    closeup = panel(page, "One layer close up")
    figures = [closeup.locator("figure").nth(i) for i in range(2)]
    before = [paths(figure) for figure in figures]
    closeup.locator('select[data-param="layer"]').select_option(label="2")
    settle(page)
    for figure, old in zip(figures, before, strict=True):
        assert paths(figure) != old


def test_choosing_a_curve_goes_to_its_best_layer(show: Show, results: Results) -> None:
    page = show()
    closeup = panel(page, "One layer close up")
    for line in results.summary().itertuples():
        closeup.get_by_label("Curve").select_option(label=line.store)
        assert closeup.locator('select[data-param="layer"]').input_value() == str(line.best_layer)


def test_a_metric_can_be_chosen_by_keyboard_alone(show: Show) -> None:
    page = show()
    select = page.locator('select[data-param="metric"]')
    for _ in range(30):
        page.keyboard.press("Tab")
        if select.evaluate("e => e === document.activeElement"):
            break
    assert select.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    curves = page.locator("figure").first
    before = paths(curves)
    page.keyboard.press("ArrowDown")
    settle(page)
    assert "accuracy" in curves.locator("svg").text_content()
    assert paths(curves) != before


def test_every_metric_can_be_chosen_whether_it_has_baselines_and_a_null_or_not(show: Show) -> None:
    page = show()
    seen = set()
    for i in range(len(METRICS)):
        page.locator('select[data-param="metric"]').select_option(index=i)
        settle(page)
        shapes = paths(page.locator("figure").first)
        assert all("NaN" not in shape for shape in shapes)
        seen.add(tuple(shapes))
    assert len(seen) == len(METRICS)


def test_one_curve_can_be_brought_out(show: Show) -> None:
    page = show()
    page.get_by_label("Bring out").first.select_option(label="run-1.zarr")
    settle(page)
    lines = page.locator("figure").first.locator('[class*="mark-line"] path[stroke^="var(--c"]')
    assert sorted(lines.evaluate_all("els => els.map(e => e.getAttribute('opacity') ?? '1')")) == ["0.12", "1"]


@pytest.mark.parametrize("width", [1280, 400])
def test_a_figure_is_saved_as_picture_and_as_numbers(show: Show, results: Results, tmp_path: Path, width: int) -> None:
    page = show(width, "dark")
    figure = page.locator("figure").first
    saved = {}
    for kind in ("SVG", "PNG", "CSV"):
        with page.expect_download() as download:
            figure.get_by_role("button", name=kind).click()
        saved[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(saved[kind])
    assert saved["SVG"].name == "curves-objects.svg"
    svg = saved["SVG"].read_text()
    assert svg.startswith("<svg")
    # On paper there are no colours of a page.
    assert "var(--" not in svg
    assert saved["PNG"].read_bytes().startswith(b"\x89PNG")
    table = pd.read_csv(StringIO(saved["CSV"].read_text()))
    rows = results.rows[
        (results.rows["target"] == "all") & (results.rows["split"] == "test") & (results.rows["layer"] >= 0)
    ]
    assert len(table) == len(rows) == 2 * N_LAYERS * len(METRICS)
    assert sorted(table["score"]) == pytest.approx(rows["value"].sort_values().tolist(), rel=1e-5)


def test_every_chart_tells_its_figures_and_has_them_as_a_table(show: Show) -> None:
    page = show()
    described = page.locator(".chart").evaluate_all("els => els.map(e => e.getAttribute('aria-label'))")
    assert len(described) == 7
    assert all(re.search(r"\d\.\d{3}|layer \d", text) for text in described)
    heatmap = panel(page, "Layer by target")
    heatmap.locator("summary").click()
    heatmap.locator("table").wait_for()
    rows = heatmap.locator("table tr")
    assert rows.count() == 1 + N_LAYERS * N_TARGETS
    assert heatmap.locator("thead th").evaluate_all("els => els.every(e => e.scope === 'col')")


def test_headings_descend_one_by_one_and_every_control_has_a_name(show: Show) -> None:
    page = show()
    levels = page.locator("h1, h2, h3, h4").evaluate_all("els => els.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(below <= level + 1 for level, below in itertools.pairwise(levels))
    for element in page.locator("select, button").all():
        assert element.evaluate("e => e.ariaLabel || e.labels?.[0]?.textContent || e.textContent").strip()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_page(show: Show, scheme: str) -> None:
    page = show(1280, scheme)
    names = ["page", "ink", "soft", "focus", "panel", "warn-page", "warn-ink"]
    script = "names => names.map(n => getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
    colours = dict(zip(names, page.evaluate(script, names), strict=True))
    for text, ground in (
        *(("ink", "page"), ("soft", "page"), ("focus", "page")),
        *(("ink", "panel"), ("warn-ink", "warn-page")),
    ):
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(one: str, other: str) -> float:
    """Ratio of the relative luminances of two colours, as WCAG 2 defines them."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(share * c for share, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_on_paper_everything_is_open(show: Show) -> None:
    page = show(1280, "dark")
    assert not page.locator("#provenance-text").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.locator("#provenance-text").is_visible()
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="CSV").first.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
