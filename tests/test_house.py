"""The house stands as docs/design.md draws it: one direction of dependencies, quick doors, and a wheel of all rooms."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import sonde

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "sonde"
ROOMS = ("engine", "store", "probes")
# Which rooms a room may import besides itself, and which modules stand outside of all rooms.
MAY_IMPORT = {"store": set(), "engine": {"store"}, "probes": {"store"}}
FREE_FOR_ALL = {"callbacks", "errors", "watching", "workers", "__version__"}
DOORS = {
    *(
        "__init__",
        "__main__",
        "asked",
        "cli",
        "cli_about",
        "cli_probe",
        "cli_store",
        "demo",
        "doctor",
        "features",
        "study",
    ),
    *("study_config", "terminal"),
}
MODULE_PATH = re.compile(r"sonde(\.\w+)+")
HEAVY = {
    *("accelerate", "altair", "cuml", "cupy", "dask", "distributed", "matplotlib", "pandas", "pyarrow", "scipy"),
    *("sklearn", "torch", "torchvision", "transformers", "vl_convert", "vllm", "zarr"),
}


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted name, real file) of every module of the package, the rooms reached through their links."""
    for path in sorted(PACKAGE.glob("*.py")):
        yield f"sonde.{path.stem}", path
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = ("sonde", *path.relative_to(ROOT).with_suffix("").parts)
            yield ".".join(parts), path


def imports(name: str, source: str) -> Iterator[str]:
    """Absolute dotted names of all that a module imports, at any depth, relative and by string too."""
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            prefix = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_PATH.fullmatch(node.value):
            yield node.value


def violations(name: str, source: str) -> list[str]:
    """What a module imports against the direction ``engine -> store <- probes``."""
    place = name.split(".")[1]
    found = []
    for imported in imports(name, source):
        top, _, rest = imported.partition(".")
        target = rest.partition(".")[0]
        if top in ROOMS:
            found.append(f"{name} imports the bare name {imported}")
        elif top != "sonde" or place in DOORS:
            continue
        elif place in ROOMS:
            if target not in {place, *MAY_IMPORT[place], *FREE_FOR_ALL}:
                found.append(f"{name} imports {imported}")
        elif target in ROOMS:
            found.append(f"{name} imports {imported}")
    return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run python as a user does, outside of the checkout."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=sys.prefix)


def test_the_rooms_are_the_folders_at_the_top() -> None:
    for room in ROOMS:
        link = PACKAGE / room
        assert link.is_symlink()
        assert not link.readlink().is_absolute()
        assert link.resolve() == (ROOT / room).resolve()
        assert (link / "__init__.py").is_file()


def test_dependencies_point_one_way() -> None:
    modules = list(sources())
    assert {name.split(".")[1] for name, _ in modules} > set(ROOMS)
    found = [v for name, path in modules for v in violations(name, path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sonde.store.layer", "from sonde.engine import extract"),
        ("sonde.store.layer", "import sonde.probes.ridge"),
        ("sonde.store.layer", "from ..engine.model import load"),
        ("sonde.store.__init__", "from ..engine import extract"),
        ("sonde.engine.tasks.edit", "from ...probes import ridge"),
        ("sonde.engine.model", "def f():\n    from sonde.probes import ridge"),
        ("sonde.engine.model", "from sonde import probes"),
        ("sonde.engine.model", "from sonde import extract"),
        ("sonde.engine.model", "import sonde.cli"),
        ("sonde.probes.ridge", "from sonde import engine as e"),
        ("sonde.probes.ridge", "importlib.import_module('sonde.engine.model')"),
        ("sonde.probes.ridge", "from store import Store"),
        ("sonde.cli", "import engine.model"),
        ("sonde.errors", "from .store import Store"),
    ],
)
def test_an_import_against_the_direction_is_seen(name: str, source: str) -> None:
    assert len(violations(name, source)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sonde.store.layer", "from .chunks import read_chunk\nfrom sonde.errors import StoreError"),
        ("sonde.engine.tasks.edit", "from sonde.engine.coco import Coco\nfrom sonde.store import Store"),
        ("sonde.probes.ridge", "from sonde.store.layer import Layer\nimport torch\nfrom sonde import __version__"),
        ("sonde.cli", "from .engine import extract\nfrom sonde.probes import probe\nfrom .store import Store"),
    ],
)
def test_an_import_along_the_direction_is_allowed(name: str, source: str) -> None:
    assert violations(name, source) == []


@pytest.mark.parametrize("folder", ["tests", "benchmarks", "examples"])
def test_nobody_imports_a_room_by_its_bare_name(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        place = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        tops = {name.partition(".")[0] for name in imports(place, path.read_text())}
        assert not tops & set(ROOMS), path


@pytest.mark.parametrize("arguments", [["-c", "import sonde"], ["-m", "sonde", "--help"], ["-m", "sonde", "--version"]])
def test_the_doors_open_without_anything_heavy(arguments: list[str]) -> None:
    done = run("-X", "importtime", *arguments)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "sonde" in imported
    assert {name for name in imported if name.partition(".")[0] in HEAVY} == set()
    assert {name for name in imported if name.startswith(tuple(f"sonde.{room}" for room in ROOMS))} == set()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_is_entered_without_torch(room: str) -> None:
    done = run("-c", f"import sonde.{room}, sys; print(*sys.modules)")
    heavy = {"cuml", "cupy", "dask", "distributed", "matplotlib", "sklearn", "torch", "transformers", "vllm"}
    assert heavy.isdisjoint(done.stdout.split())


def test_help_names_every_command_of_the_design() -> None:
    done = run("-m", "sonde", "--help")
    for command in ("demo", "extract", "probe", "labels", "report", "info", "verify", "models", "doctor"):
        assert re.search(rf"\b{command}\b", done.stdout), command


def test_what_the_package_promises_is_there() -> None:
    for name in sonde.__all__:
        assert getattr(sonde, name) is not None
    assert {"extract", "open", "probe", "Store", "SondeError"} <= set(sonde.__all__)
    with pytest.raises(AttributeError, match="no attribute 'engines'"):
        _ = sonde.engines


def test_the_wheel_holds_exactly_the_files_of_the_source_tree(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")
    for folder in ("src", *ROOMS):
        shutil.copytree(ROOT / folder, copy / folder, symlinks=True, ignore=ignore)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / file, copy / file)
    expected = {p.relative_to(PACKAGE.parent).as_posix() for p in PACKAGE.iterdir() if p.is_file()}
    expected |= {
        f"sonde/{path.relative_to(copy).as_posix()}"
        for room in ROOMS
        for path in (copy / room).rglob("*")
        if path.is_file()
    }
    # torch depends on setuptools: it is there wherever the project is installed.
    build = "import setuptools.build_meta as b; b.build_sdist('out'), b.build_wheel('out')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    [wheel], [sdist] = (copy / "out").glob("*.whl"), (copy / "out").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    with tarfile.open(sdist) as archive:
        members = {name.partition("/src/")[2] for name in archive.getnames() if "/src/sonde/" in name}
        links = [member.name for member in archive if member.issym()]
    assert {name for name in members if Path(name).suffix} == expected
    assert links == []
