"""What a notebook shows of a store is true, harmless, and can be copied and run."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from sonde.store import ArraySpec, Schema, Store
from sonde.store.notebook import card

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>&amp;"


class Page(HTMLParser):
    """Elements, attributes, table rows and code of a fragment, as a browser sees them; unbalanced elements fail."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.code: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "code":
            self.code.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] in (["td"], ["th"]):
            self.rows[-1][-1] += data
        elif self.open[-1:] == ["code"]:
            self.code[-1] += data

    def row(self, name: str) -> list[str]:
        [found] = [cells[1:] for cells in self.rows if cells[0] == name]
        return found


def test_a_card_shows_place_state_samples_and_every_array(build: Callable[..., Any], tmp_path: Path) -> None:
    example = build(tmp_path / "run.zarr", skipped={3: "broken"})
    page = Page(card(example.store))
    assert page.code[0] == str(example.path)
    assert page.row("state") == ["complete"]
    assert page.row("samples") == ["10 (1 skipped)"]
    for spec in example.store.arrays:
        nbytes = sum(file.stat().st_size for file in (example.path / spec.path).glob("c.*"))
        layers = ", ".join(map(str, spec.layers))
        shape = f"[{len(spec.layers)}, 10, {spec.hidden}]"
        assert page.row(spec.name) == [shape, layers, "bfloat16", "none", f"{nbytes} B"]


def test_a_card_of_a_store_that_is_not_finished_says_how_to_finish_it(
    build: Callable[..., Any], tmp_path: Path
) -> None:
    page = Page(card(build(tmp_path / "run.zarr", commit=[0, 2]).store))
    assert page.row("state") == ["2 of 3 ranges"]
    assert page.code[1:] == ["sonde extract --resume"]


def test_labels_stand_with_their_kind_and_damaged_ones_do_not_hide_the_rest(example: Any) -> None:
    assert Page(card(example.store)).row("labels") == ["none"]
    example.store.add_labels("colour", example.store.ids.tolist(), ["red", "blue"] * 5)
    example.store.add_labels("score", example.store.ids.tolist(), [0.5, 1.25] * 5)
    assert Page(card(example.store)).row("labels") == ["colour (multiclass), score (regression)"]
    for file in (example.path / "labels/colour/values").rglob("*"):
        if file.is_file() and file.name != "zarr.json":
            file.write_bytes(b"damaged")
    assert Page(card(example.store)).row("labels") == ["colour (cannot be read), score (regression)"]


def test_provenance_tells_the_model_and_the_versions(tmp_path: Path) -> None:
    model = {
        "name": "org/model-7b",
        "revision": "abc123",
        "class": "TinyForCausalLM",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "fingerprint": "f00d",
        "adapter": None,
    }
    schema = Schema(
        (ArraySpec("a", "last", tuple(range(32)), 2),), 1, 1, model, {}, versions={"sonde": "0.1", "torch": "9"}
    )
    page = Page(card(Store.create(tmp_path / "run.zarr", schema, {"id": ["a"], "group": ["g"]})))
    for key, value in model.items():
        if value is not None:
            assert page.row({"name": "model"}.get(key, key)) == [value]
    assert page.row("versions") == ["sonde 0.1, torch 9"]
    assert page.row("a/last")[1] == "0 to 31"


def test_a_card_is_self_contained_and_takes_the_colours_of_its_page(example: Any) -> None:
    html = card(example.store)
    page = Page(html)
    tables = {"table", "thead", "tbody", "tr", "th", "td"}
    assert set(page.tags) <= tables | {"style", "div", "strong", "code", "pre", "details", "summary"}
    assert {name for name, _ in page.attributes} <= {"class", "scope", "open"}
    assert not re.search(r"https?:|//|url\(|@import", html.replace(str(example.path), ""))
    assert not re.search(r"#[0-9a-f]{3}|rgb|: *(black|white)\b", html)


def test_hostile_text_is_shown_and_never_run(tmp_path: Path) -> None:
    place = tmp_path / "<b onclick=alert(1)>'\"&.zarr"
    schema = Schema(
        (ArraySpec("<i>site", "span:'\"<u>&lt;", (0,), 2),),
        2,
        1,
        {"name": HOSTILE, HOSTILE: HOSTILE},
        {"fingerprint": HOSTILE},
        versions={HOSTILE: HOSTILE},
    )
    store = Store.create(place, schema, {"id": ["a", "b"], "group": ["g", "g"]})
    for range_ in store.ranges:
        store.writer().commit(range_, store.writer().buffers())
    store.refresh()
    store.add_labels("<img src=x onerror=alert(1)>", ["a", "b"], [0, 1])
    page = Page(card(store))
    assert not {"script", "img", "b", "i", "u"} & set(page.tags)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert page.code[0] == str(place)
    assert page.row("model") == [HOSTILE]
    assert page.row(HOSTILE) == [HOSTILE]
    assert page.row("data") == [HOSTILE]
    assert page.row("versions") == [f"{HOSTILE} {HOSTILE}"]
    assert page.row("labels") == ["<img src=x onerror=alert(1)> (binary)"]
    assert eval(page.code[1].removeprefix("import sonde; "), {"sonde": __import__("sonde")}).shape == (1, 2, 2)


def test_the_line_that_a_card_ends_with_opens_an_array(example: Any) -> None:
    line = Page(card(example.store)).code[-1]
    assert "\n" not in line
    names: dict[str, Any] = {}
    *statements, expression = line.split("; ")
    exec("; ".join(statements), names)
    opened = eval(expression, names)
    assert opened.dims == ("layer", "sample", "hidden")
    np.testing.assert_array_equal(opened.values.view(np.uint16), example.values["resid_post/last"].view(np.uint16))
