"""How Sphinx builds these pages; tables made of the code stand where a page says ``<!-- generated: NAME -->``."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import sonde

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

project = "sonde"
author = "the authors of sonde"
version = release = sonde.__version__
html_title = f"sonde {version}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
exclude_patterns = ["_build"]
default_role = "py:obj"
pygments_style, pygments_dark_style = "friendly", "monokai"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sphinx = html_show_copyright = False
html_math_renderer = "mathml"
html_copy_source = html_show_sourcelink = False

myst_heading_anchors = 4
myst_links_external_new_tab = False
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 96
# Attributes are in the docstrings of the classes; autodoc adds methods and properties.
numpydoc_show_class_members = False
# All checks of numpydoc but these: one sentence is enough where it says all.
numpydoc_validation_checks = {
    *("all", "ES01", "EX01", "GL01", "GL02", "PR01", "PR03", "PR04", "PR07", "PR08"),
    *("RT01", "RT03", "SA01", "SS05", "YD01"),
}


def commands() -> str:
    """Every command with its arguments and options, as typer tells them."""
    import typer
    from typer.cli import get_docs_for_click

    from sonde.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="sonde"), name="sonde")
    # Each command follows with all that is told of it here in a few words.
    text = re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)
    # A bracket that is no markup has a backslash in help texts; the page has a title of its own.
    return text.replace("\\[", "[").partition("\n")[2]


def extraction() -> str:
    """The settings of an extraction, a table for each section."""
    from sonde.engine import ExtractConfig

    return "\n".join(_sections(ExtractConfig.model_json_schema()))


def study() -> str:
    """The settings that a study has besides."""
    from sonde.engine.config import ModelSection
    from sonde.study_config import StudyConfig

    known = {("models", setting) for setting in ModelSection.model_fields}
    known |= {("data", ""), ("capture", ""), ("run", "")}
    return "\n".join(_sections(StudyConfig.model_json_schema(), known))


def families() -> str:
    """The families of models that the tests run over."""
    from sonde.engine.families import FAMILIES

    rows = (f"| {f.name} | `{f.model_type}` | {f.takes} | {f.verified} |" for f in FAMILIES)
    return "\n".join(["| family | `model_type` | takes | how it was verified |", "|---|---|---|---|", *rows])


def benchmarks() -> str:
    """Which scripts there are, and what each asks."""
    rows = ["| script | what it asks |", "|---|---|"]
    for path in sorted(BENCHMARKS.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        asked = ast.get_docstring(ast.parse(source))
        if asked and 'if __name__ == "__main__":' in source and "--fast" in source:
            rows.append(f"| `benchmarks.{path.stem}` | {asked.partition(chr(10))[0]} |")
    return "\n".join(rows)


def owed() -> str:
    """What the recorded runs say of what is owed."""
    rows = ["| run | owed | found | bound | |", "|---|---|---|---|---|"]
    for path in sorted((BENCHMARKS / "results").glob("*.txt"), reverse=True):
        link = f"[{path.stem}](../benchmarks/results/{path.name})"
        for line in path.read_text(encoding="utf-8").splitlines():
            if found := re.fullmatch(r"owed (.+): ([\d.,]+) of (at \w+ [\d.,]+), (holds|MISSED)", line):
                name, value, bound, state = found.groups()
                rows.append(
                    f"| {link} | {name} | {value} | {bound} | {state.lower().replace('missed', '**missed**')} |"
                )
                link = ""
    return "\n".join(rows)


def _sections(schema: Mapping[str, Any], known: Collection[tuple[str, str]] = ()) -> Iterator[str]:
    """Write a table for each section of a schema, but for the settings that are known and whole sections of them."""
    for name, field in schema["properties"].items():
        if (name, "") in known:
            continue
        [reference] = re.findall(r"#/\$defs/(\w+)", json.dumps(field))
        section = schema["$defs"][reference]
        title = f"[[{name}]]" if field.get("type") == "array" else f"[{name}]"
        yield from (f"## `{title}`", "", "| setting | value | default | meaning |", "|---|---|---|---|")
        for setting, about in section["properties"].items():
            if (name, setting) in known:
                continue
            required = setting in section.get("required", ())
            default = "*needed*" if required else "" if about.get("default") is None else _code(about["default"])
            meaning = re.sub(r"([*_|])", r"\\\1", about.get("description", ""))
            yield f"| `{setting}` | {' or '.join(_values(about))} | {default} | {meaning} |"
        yield ""


def _values(about: Mapping[str, Any]) -> list[str]:
    """Say in words what a setting may be, from its JSON schema."""
    if "anyOf" in about:
        said = (value for one in about["anyOf"] if one.get("type") != "null" for value in _values(one))
        return list(dict.fromkeys(said))
    if "enum" in about or "const" in about:
        return [_code(value) for value in about.get("enum", [about.get("const")])]
    kind = {"string": "text", "integer": "whole number", "boolean": "true, false", "object": "table"}.get(about["type"])
    if about["type"] == "array":
        return [f"list ({' or '.join(_values(about['items']))})"]
    if about["type"] == "object" and "propertyNames" in about:
        return [f"table ({' or '.join(_values(about['propertyNames']))})"]
    return [kind or about["type"]]


def _code(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


GENERATED = {maker.__name__: maker for maker in (benchmarks, commands, extraction, families, owed, study)}


def fill(app: Sphinx, page: str, source: list[str]) -> None:
    """Put generated text in its places."""
    source[0] = re.sub(r"<!-- generated: (\w+) -->", lambda found: GENERATED[found[1]](), source[0])


def formula(translator: Any, node: Any) -> None:
    """Write a formula as MathML, which browsers draw by themselves: no script of another site."""
    translator.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
    app.connect("source-read", fill)
