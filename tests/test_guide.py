"""Every code block of the pages and the README runs, or says why it cannot; every link leads somewhere."""

import contextlib
import json
import re
import shlex
import shutil
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import typer

import sonde
from sonde.cli import app, run
from sonde.engine import ExtractConfig
from sonde.study_config import StudyConfig

from .conftest import write_model
from .store.s3_server import environment, serve_s3

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "_build" not in path.parts
}
# Its blocks are of one store with all that a store can have: tests/test_docs.py.
ELSEWHERE = "docs/schema.md"
FIRST = "docs/data.md"
# Models of the hub for which one stands in that is small, of random weights, and has the layers that pages name.
STAND_INS = ("gpt2", "Qwen/Qwen2.5-VL-7B-Instruct")
WORDS = "I have seen the Nobody knows where he left There it was at last ,"


@dataclass(frozen=True, slots=True)
class Block:
    """A code block and the place of its first line.

    ``why_not`` is what the comment above it gives as the reason for not running it.
    """

    page: str
    line: int
    language: str
    text: str
    why_not: str | None

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


_BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?^```(\w+)\n(.*?)^```$", re.M | re.S)


@cache
def blocks(page: str) -> tuple[Block, ...]:
    text = PAGES[page].read_text(encoding="utf-8")
    return tuple(
        Block(page, text.count("\n", 0, found.start(3)) + 1, found[2], found[3], found[1])
        for found in _BLOCK.finditer(text)
    )


def of(language: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == language]


def command_of(line: str) -> tuple[Any, str, list[str]]:
    """The command that a line calls, its name, and the words behind that."""
    name, *words = shlex.split(line, comments=True)
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        name, *words = words
        command = command.commands[name]
    return command, name, words


def is_sonde(line: str) -> bool:
    return line.split(maxsplit=1)[:1] == ["sonde"]


# What runs


def made_by(name: str, words: list[str]) -> Path | None:
    """What a command makes, where it refuses to make it twice."""
    given = dict(pairwise(words))
    if name == "probe" and "--resume" not in words:
        conditions = [value for option, value in pairwise(words) if option == "--where"]
        default = "-".join([given["--labels"], *conditions, given.get("--solver", "ridge")])
        return Path(given.get("--out", f"{words[0].removesuffix('.zarr')}.probes/{default}"))
    if name == "extract" and not {"--resume", "--append", "--dry-run"} & set(words):
        return Path(given.get("--out", "run.zarr"))
    return None


def follow(page: str) -> None:
    """Do what a page says, from its first block to its last, in the working directory."""
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.why_not is not None:
            continue
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGES[page]), "exec"), names)
        elif block.language == "toml" and (named := re.match(r"# (\S+\.toml)\n", block.text)):
            Path(named[1]).write_text(block.text)
        elif block.language == "sh":
            for line in filter(str.strip, block.text.splitlines()):
                _, name, words = command_of(line)
                there = made_by(name, words)
                if there is not None and there.exists():
                    shutil.rmtree(there)
                assert run(shlex.split(line, comments=True)[1:]) == 0, f"{block.place}: {line}"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as docs/data.md leaves it, with what other pages take to be there."""
    folder = tmp_path_factory.mktemp("guide")
    mpl.use("agg")
    [nouns] = (block for block in blocks(FIRST) if block.language == "python" and "nouns" in block.text)
    words = [*WORDS.split(), *re.findall(r'"(\w+)"', nouns.text)]
    for name in STAND_INS:
        write_model(folder / name, n_layers=9, more_words=words)
    with contextlib.chdir(folder):
        config = '[model]\nname = "gpt2"\n[data]\nmanifest = "more.jsonl"\n[capture]\ntokens = ["last", "mean"]\n'
        Path("more.toml").write_text(f'{config}[run]\nout = "run.zarr"\n')
        more = {"id": "yak-0", "prompt": "I have seen the yak", "group": "yak", "kind": "animal", "scene": "s0"}
        Path("more.jsonl").write_text(json.dumps(more))
        first = blocks(FIRST)[0].text
        exec(compile(first, FIRST, "exec"), {})
        rows = [json.loads(line) for line in Path("samples.jsonl").read_text().splitlines()]
        for name, values in {"labels": "colour", "new-labels": "sound"}.items():
            table = [{"id": row["id"], values: row["group"][0] in "cdhw"} for row in rows]
            Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
            Path(f"{name}.csv").write_text(f"id,{values}\n" + "".join(f"{r['id']},{r[values]}\n" for r in table))
        shutil.copytree(ROOT / "tests/store/data/v1.zarr", "old.zarr")
        follow(FIRST)
    return folder


RUNNING = dict.fromkeys(block.page for block in [*of("python"), *of("sh")] if block.why_not is None)


@pytest.mark.parametrize("page", [page for page in RUNNING if page != ELSEWHERE])
def test_what_a_page_says_can_be_done(page: str, followed: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(shutil.copytree(followed, tmp_path / "here")))
        if "s3://" in PAGES[page].read_text(encoding="utf-8"):
            stack.enter_context(environment(stack.enter_context(serve_s3())))
        follow(page)


# What is true of all blocks, those that do not run among them


def test_every_block_is_of_a_language_that_is_tested() -> None:
    languages = {block.language for page in PAGES for block in blocks(page)}
    assert languages == {"python", "sh", "toml", "json", "text"}
    for page, path in PAGES.items():
        fences = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("```")]
        directives = sum(line.startswith("```{") for line in fences)
        assert len(fences) == 2 * (len(blocks(page)) + directives), page


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.place)
def test_python_can_be_read(block: Block) -> None:
    compile(block.text, block.place, "exec")


@pytest.mark.parametrize("block", of("json"), ids=lambda block: block.place)
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of("toml"), ids=lambda block: block.place)
def test_a_configuration_is_valid(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(block.text)
    kind: Any = StudyConfig if "[study]" in block.text else ExtractConfig
    assert kind.load(path)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_sonde_takes(page: str) -> None:
    whole = [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]
    mentioned = re.findall(r"`(sonde [^`]*)`", PAGES[page].read_text(encoding="utf-8").replace("\n", " "))
    for line in filter(is_sonde, [*whole, *mentioned]):
        command, name, words = command_of(line)
        if line in whole and "--version" not in words:
            command.make_context(name, words)
        known = {"--help"} | {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line


def headings(page: Path) -> set[str]:
    found = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    path = PAGES[page]
    for target, heading in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        there = path.parent / target if target else path
        assert there.exists(), target
        assert not heading or heading in headings(there), f"{target}#{heading}"


@pytest.mark.parametrize("room", ["sonde", "sonde.engine", "sonde.store", "sonde.probes"])
def test_the_reference_has_every_public_name(room: str) -> None:
    modules = {"sonde": sonde} | {f"sonde.{name}": getattr(sonde, name) for name in ("engine", "store", "probes")}
    page = PAGES[f"docs/reference/{room.rpartition('.')[2]}.md"].read_text(encoding="utf-8")
    told = set(re.findall(r"^\.\. (?:auto|py:)\w+:: (\w+)$", page, re.M))
    names = set(modules[room].__all__) - {"__version__"}
    # Each object is told once: where the package itself has it, there.
    elsewhere = {name for name in names if room != "sonde" and name in _at_the_top()}
    assert told == names - elsewhere


def _at_the_top() -> set[str]:
    return {name for public in sonde.__all__ for name in (public, getattr(getattr(sonde, public), "__name__", public))}
