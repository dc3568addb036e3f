"""docs/schema.md says what is true: a reader made from it alone reads every kind of store, and its code runs."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine.run import Progress
from sonde.store import ArraySpec, Schema, Store, token_buffer
from sonde.store.copying import copy_store

from .schema_reader import ThirdParty

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/schema.md"
Array = np.ndarray[Any, Any]

SPECS = (
    ArraySpec("resid_post", "last", (0, 8), 32),
    ArraySpec("resid_post", "all", (0, 8), 32),
    ArraySpec("resid_post", "all:image", (0, 8), 32),
    ArraySpec("vision/resid_post", "mean", (1,), 5),
)
KINDS = (
    *(("bfloat16", "none"), ("float16", "zstd"), ("float32", "lz4+bitshuffle"), ("bfloat16", "lz4+bitshuffle")),
    *(("int8", "none"), ("int8", "zstd")),
)
LENGTHS = (3, 1, 9, 2, 5, 1, 1, 12, 4, 2, 6, 1, 3)
SKIPPED = {5: "a broken image", 11: "too long"}
FIRST, SIZE = 10, 4


@dataclass(frozen=True, slots=True)
class Written:
    """A store of ten samples and three that were appended, in ranges of four, and what was put into it."""

    path: Path
    values: dict[str, Array]
    tokens: list[Array]

    def commit(self) -> None:
        store = Store.open(self.path, fsync=False)
        for range_ in store.missing:
            buffers = store.writer().buffers()
            skipped = {i: why for i, why in SKIPPED.items() if range_.start <= i < range_.stop}
            for name, values in self.values.items():
                buffers[name][:, : len(range_)] = values[:, range_.rows]
            for i in set(range(range_.start, range_.stop)) - skipped.keys():
                ids, kinds = np.arange(LENGTHS[i]) + i, np.arange(LENGTHS[i]) % 2
                buffers["resid_post/all"].put(i, self.tokens[i], ids, kinds)
                buffers["resid_post/all:image"].put(i, self.tokens[i][:, 1::2], ids[1::2], kinds[1::2])
            store.writer().commit(range_, buffers, skipped)


def write(path: Path, dtype: str = "bfloat16", codec: str = "none") -> Written:
    schema = Schema(SPECS, FIRST, SIZE, {"name": "tïny", "rate": 1e-5}, {}, dtype=dtype, codec=codec)
    texts = [f"s{i}" for i in range(len(LENGTHS))], [f"grüppe {i // 2}" for i in range(len(LENGTHS))]
    columns = dict(zip(("id", "group"), texts, strict=True))
    store = Store.create(path, schema, {name: column[:FIRST] for name, column in columns.items()}, fsync=False)
    draw = np.random.default_rng(0)
    native = schema.numpy_dtype
    values = {
        a.name: draw.normal(size=(len(a.layers), len(LENGTHS), a.hidden)).astype(native) for a in SPECS if not a.ragged
    }
    written = Written(path, values, [draw.normal(size=(2, n, 32)).astype(native) for n in LENGTHS])
    written.commit()
    store.add_labels("colour", ["s1", "s2", "s9"], ["red", "blue", "green"])
    store.add_labels("colour", ["s1", "s2", "s9"], ["red", "blue", "red"], overwrite=True)
    store.add_labels("length", ["s3", "s0"], [0.5, -1.25])
    store.add_labels("things", ["s3", "s0"], [["a"], []])
    store.append({name: column[FIRST:] for name, column in columns.items()}, fingerprint="more")
    written.commit()
    store.refresh()
    store.add_labels("long", ["s12", "s0"], [True, False])
    store.pool("mean")
    return written


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    with pytest.MonkeyPatch.context() as patch:
        # Chunks of a few tokens: samples straddle them.
        patch.setattr(token_buffer, "MAX_CHUNK_BYTES", 5 * 32 * 2)
        return write(tmp_path_factory.mktemp("docs") / "run.zarr", *request.param)


def assert_kept(found: Array, put: Array, dtype: str) -> None:
    """What was put in is found, rows of int8 within half a scale."""
    wide = put.astype(np.float32)
    if dtype != "int8":
        assert found.tobytes() == wide.tobytes()
        return
    bound = np.abs(wide).max(axis=-1, keepdims=True) / 254 * 1.00001
    assert (np.abs(found - wide) <= bound).all()


def test_a_reader_made_from_the_page_alone_finds_the_activations(written: Written) -> None:
    reader = ThirdParty(written.path)
    assert len(reader.commits) == len(reader.ranges) == 4
    kept = [i for i in range(len(LENGTHS)) if i not in SKIPPED]
    for name, values in written.values.items():
        for row, number in enumerate(reader.arrays[name]["layers"]):
            found = reader.layer(name, number)
            assert np.isnan(found[list(SKIPPED)]).all()
            assert_kept(found[kept], values[row, kept], reader.schema["dtype"])
    skipped = {int(i): why for commit in reader.commits.values() for i, why in commit["skipped"].items()}
    assert skipped == SKIPPED


def test_a_reader_made_from_the_page_alone_finds_all_tokens_and_what_was_pooled(written: Written) -> None:
    reader = ThirdParty(written.path)
    for row, number in enumerate((0, 8)):
        means = reader.layer("resid_post/mean", number)
        samples = list(reader.tokens("resid_post/all", number))
        of_image = list(reader.tokens("resid_post/all:image", number))
        assert len(samples) == len(LENGTHS)
        for i, (x, ids, kinds) in enumerate(samples):
            n = 0 if i in SKIPPED else LENGTHS[i]
            assert ids == [i + t for t in range(n)]
            assert kinds == [("text", "image")[t % 2] for t in range(n)]
            assert_kept(x, written.tokens[i][row][:n], reader.schema["dtype"])
            assert (of_image[i][0].tobytes(), *of_image[i][1:]) == (x[1::2].tobytes(), ids[1::2], ["image"] * (n // 2))
            if n:
                np.testing.assert_allclose(means[i], x.mean(axis=0), atol=0.03)
    assert all(a["pooled"] == (a["tokens"] == "mean" and a["site"] == "resid_post") for a in reader.schema["arrays"])


def test_a_reader_made_from_the_page_alone_finds_samples_and_labels(written: Written) -> None:
    reader = ThirdParty(written.path)
    columns = reader.columns()
    assert columns["id"] == [f"s{i}" for i in range(13)]
    assert columns["group"] == [f"grüppe {i // 2}" for i in range(13)]
    padded = reader.texts("activations/resid_post/sample")
    assert [padded[row] for row in reader.rows] == columns["id"]
    kind, names, values = reader.labels("colour")
    assert (kind, names, values.tolist()) == ("multiclass", ["blue", "red"], [-1, 1, 0, *[-1] * 6, 1])
    kind, names, values = reader.labels("things")
    assert (kind, names, values[[0, 3]].tolist()) == ("multilabel", ["a"], [[0], [1]])
    assert (values[[1, 2, *range(4, 10)]] == -1).all()
    kind, names, values = reader.labels("length")
    assert (kind, names, values[[0, 3]].tolist()) == ("regression", [], [-1.25, 0.5])
    assert np.isnan(values).sum() == 8
    assert reader.labels("long")[2].tolist() == [0, *[-1] * 11, 1]


def test_a_reader_made_from_the_page_alone_passes_over_what_is_not_committed(tmp_path: Path) -> None:
    written = write(tmp_path / "run.zarr")
    (written.path / "commits/00000001.json").unlink()
    reader = ThirdParty(written.path)
    assert sorted(reader.commits) == [0, 2, 3]
    assert reader.layer("resid_post/last", 0).shape == (9, 32)


def test_a_reader_made_from_the_page_alone_reads_version_1_and_its_migration(tmp_path: Path) -> None:
    old = ROOT / "tests/store/data/v1.zarr"
    new = tmp_path / "new.zarr"
    copy_store(old, new)
    a, b = ThirdParty(old), ThirdParty(new)
    assert (a.schema["version"], b.schema["version"]) == (1, 2)
    assert a.columns() == b.columns()
    assert a.labels("colour")[2].tolist() == b.labels("colour")[2].tolist() == [1, 0] * 5
    for name, array in a.arrays.items():
        for number in array["layers"]:
            assert a.layer(name, number).tobytes() == b.layer(name, number).tobytes()


# Snippets


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def root_attribute(store: Path) -> dict[str, Any]:
    attribute: dict[str, Any] = json.loads((store / "zarr.json").read_bytes())["attributes"]["sonde"]
    return attribute


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the ``run.zarr`` that the page speaks of."""
    monkeypatch.chdir(tmp_path)
    return write(tmp_path / "run.zarr").path


def test_every_python_block_of_the_page_runs(place: Path) -> None:
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, PAGE.name, "exec"), names)
    assert {"layout", "samples_sha256", "labels_sha256"} <= names.keys()


def test_the_digest_rules_of_the_page_give_the_digests_of_a_store(place: Path) -> None:
    rules: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, PAGE.name, "exec"), rules)
    store = Store.open(place)
    stated = root_attribute(place)["samples_sha256"]
    for part, digest in zip((slice(0, FIRST), slice(FIRST, None)), stated, strict=True):
        assert rules["samples_sha256"]({n: c[part].tolist() for n, c in store.columns.items()}) == digest
    store.add_labels("odd", ["s0", "s1", "s2"], ["it's", 'a "b\\"', "new\nline\u200b\U000e0001é"])
    group = json.loads((place / "labels/odd/zarr.json").read_bytes())["attributes"]
    values: Array = np.full(15, -1, dtype=np.int32)
    values[:3] = [group["names"].index(name) for name in store.labels("odd").column()[:3]]
    assert rules["labels_sha256"]("multiclass", group["names"], values) == group["sha256"]


def test_the_examples_of_the_page_are_whole_and_have_the_digests_that_they_state(place: Path) -> None:
    attribute, record, log = map(json.loads, blocks("json"))
    for example in (attribute, record):
        stated = example.pop("sha256")
        canonical = json.dumps(example, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(canonical.encode()).hexdigest() == stated
    assert set(attribute) | {"sha256"} == set(root_attribute(place))
    assert set(record) | {"sha256"} == set(json.loads((place / "commits/00000001.json").read_bytes()))
    assert set(log) > {*asdict(Progress(0)), "started", "host", "device"}
