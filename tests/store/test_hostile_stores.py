"""Stores that lead out of their folder, hold readers up or carry code are refused."""

import ast
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sonde.store
from sonde.errors import CorruptStoreError, StoreError
from sonde.store import Store

from .hostile import (
    WATCH,
    with_crc,
)
from .hostile_store import Base, build, copy_of, edit, forged_schema, put, read_all, read_watched


@pytest.fixture(scope="module")
def sound(scratch: str) -> Iterator[dict[str, Base]]:
    """A store by codec."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield {codec: build(Path(folder) / codec, "float32", codec) for codec in ("zstd", "lz4+bitshuffle")}


@pytest.fixture
def base(sound: dict[str, Base], tmp_path: Path) -> Base:
    return copy_of(sound["zstd"], tmp_path / "run.zarr")


NAMES = (
    *("..", "../outside", "a/../../outside", "/etc", "a//b", "a/", "", ".", "./a", "a/.hidden", ".hidden"),
    *(
        "a\0b",
        "a\nb",
        "a\tb",
        "\u202eelif",
        "a\u200bb",
        "a\xa0b",
        "\ud800",
        "..\\outside",
        "C:\\outside",
        "%2e%2e/outside",
    ),
    *("resid_post/all", "résid", "re\u0301sid", "~", "$HOME", "file:", "s3:"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("field", ["site", "tokens"])
def test_a_name_of_an_array_does_not_lead_out(base: Base, field: str, name: str) -> None:
    (base.path.parent / "outside/last").mkdir(parents=True)
    put(base, forged_schema(base, lambda s: s["arrays"][0].update({field: name})))
    with pytest.raises(StoreError):
        read_watched(base)


KEYS = (
    *("zarr.json", "samples", "samples/zarr.json", "samples/id", "samples/id/c", "samples/id/c/0", "samples/group/c/1"),
    *("labels", "labels/colour", "labels/colour/zarr.json", "labels/colour/values", "labels/colour/values/c/0"),
    *("commits", "commits/00000001.json", "activations", "activations/z", "activations/z/all/00000001"),
    *("activations/resid_post/last/c.0.0.0", "activations/resid_post/last/zarr.json", "activations/resid_post/layer"),
    *("activations/z/all/00000001/offsets", "activations/z/all/00000001/offsets/c.0", "log", "log/run.json"),
)


REPLACEMENTS: dict[str, Callable[[Path, Path], None]] = {
    "a link to it": lambda path, outside: path.symlink_to(outside),
    "a link to the root": lambda path, outside: path.symlink_to("/"),
    "a link to itself": lambda path, outside: path.symlink_to(path),
    "a link to nowhere": lambda path, outside: path.symlink_to(outside / "nowhere"),
    "a pipe": lambda path, outside: os.mkfifo(path),
    "a folder": lambda path, outside: path.mkdir(),
    "a file": lambda path, outside: path.write_bytes(b"?") and None,
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("replace", REPLACEMENTS.values(), ids=REPLACEMENTS.keys())
def test_what_is_no_file_or_folder_of_the_store_is_refused(
    base: Base, key: str, replace: Callable[[Path, Path], None]
) -> None:
    """At every level; our reader has no need of the logs and of some metadata, on which verification reports."""
    outside = base.path.parent / "outside"
    (base.path / key).rename(outside)
    replace(base.path / key, outside)
    with WATCH.over(base.path):
        try:
            read_all(base.store.location)
        except StoreError:
            return
        # Nothing vouches for labels: where their group is gone they are not there.
        gone = key.startswith("labels") and "colour" not in base.store.label_names
        assert gone or key.startswith("log") or Store.open(base.path).verify()


class Spring:
    """Makes a file when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> Any:
        return Path.touch, (self.trap,)


@pytest.mark.parametrize("codec", ["pickle", "numcodecs.pickle", "bytes", "vlen-utf8", "vlen-bytes"])
@pytest.mark.parametrize("data_type", ["object", "|O", "string", "variable_length_bytes", {"name": "object"}])
@pytest.mark.parametrize("array", ["labels/colour/values", "samples/id"])
def test_a_pickle_is_never_loaded(base: Base, array: str, data_type: Any, codec: str) -> None:
    trap = base.path.parent / "trap"
    payload = pickle.dumps(np.array([Spring(trap)] * 6, dtype=object))
    changes = {"data_type": data_type, "codecs": [{"name": codec}, {"name": "crc32c"}]}
    put(base, edit(base, f"{array}/zarr.json", **changes) | {f"{array}/c/0": with_crc(payload)})
    with pytest.raises(CorruptStoreError):
        read_watched(base)
    assert not trap.exists()
    pickle.loads(payload)
    assert trap.exists()


def test_no_module_of_the_store_can_unpickle_or_run_what_it_reads() -> None:
    modules = sorted(Path(sonde.store.__file__).parent.glob("*.py"))
    assert len(modules) > 20
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = [node.func.id]
            forbidden = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "eval", "exec", "__import__"}
            assert not forbidden.intersection(names), module
            assert not (isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "object_codec")), module
