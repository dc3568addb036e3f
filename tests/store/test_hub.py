"""Push to and pull from the Hugging Face Hub, against a server on loopback that keeps what it is given."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import StoreError
from sonde.store import Labels

from .hub_client import REPO, add_labels, contents, empty_hub, pull, push, puts
from .hub_server import Hub

# The client's way of uploading without Xet is not that of the HTTP library that it has.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with empty_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def test_what_is_pushed_and_pulled_is_the_same_store_byte_for_byte(server: Hub, example: Any, tmp_path: Path) -> None:
    add_labels(example)
    before = example.files()
    url = push(server, example.store)
    assert re.fullmatch(rf"{server.endpoint}/datasets/{REPO}/commit/[0-9a-f]{{40}}", url)
    pulled = pull(server, tmp_path / "pulled.zarr")
    assert contents(tmp_path / "pulled.zarr") == before == example.files()
    assert pulled.complete
    assert pulled.verify() == []
    for site, tokens, layer, values in example.layers():
        np.testing.assert_array_equal(pulled.layer(site, tokens, layer).numpy(), values)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["pulled.zarr", "run.zarr"]


def test_the_records_of_a_log_and_foreign_files_stay_at_home(server: Hub, example: Any, tmp_path: Path) -> None:
    (example.path / "log" / "run-1.json").write_text('{"host": "secret.example"}')
    (example.path / "notes.txt").write_text("mine")
    (example.path / ".hidden").write_text("mine")
    push(server, example.store)
    names = set(server.contents(REPO))
    assert {"log/zarr.json", "zarr.json", "commits/00000000.json"} <= names
    assert not {"log/run-1.json", "notes.txt", ".hidden"} & names
    assert pull(server, tmp_path / "pulled.zarr").verify() == []


def test_the_card_says_what_the_store_is_and_how_to_pull_it(server: Hub, example: Any) -> None:
    add_labels(example)
    push(server, example.store)
    card = server.contents(REPO)["README.md"].decode()
    for text in ("license: unknown", "tiny", "10 samples", "bfloat16", "`vision/resid_post/mean` | 1, 2 | 5", "`cat`"):
        assert text in card
    assert f"sonde pull {REPO} run.zarr" in card
    assert "README.md" not in example.files()


def test_the_card_keeps_up_with_the_store_until_somebody_edits_it(server: Hub, example: Any) -> None:
    push(server, example.store)
    add_labels(example, "cat")
    push(server, example.store)
    assert b"`cat`" in server.contents(REPO)["README.md"]
    server.put(REPO, **{"README.md": b"---\nlicense: mit\n---\n# Ours\n"})
    add_labels(example, "dog")
    push(server, example.store)
    assert server.contents(REPO)["README.md"] == b"---\nlicense: mit\n---\n# Ours\n"


def test_nothing_looks_like_a_store_until_everything_of_it_is_there(
    server: Hub, build: Callable[..., Any], tmp_path: Path
) -> None:
    example = build(tmp_path / "run.zarr", n_samples=140)
    push(server, example.store)
    *partial, last = server.repos[REPO].commits.values()
    assert len(partial) == 3
    arrays = {spec.path: len(spec.layers) * len(example.store.ranges) for spec in example.store.arrays}
    for files in partial:
        assert "zarr.json" not in files
        chunks = Counter(path.rpartition("/")[0] for path in files if re.search(r"/c\.\d+\.\d+\.0$", path))
        described = [path for path in arrays if f"{path}/zarr.json" in files]
        assert all(chunks[path] == arrays[path] for path in described)
        assert chunks == arrays or not any(path.startswith("commits/") for path in files)
    assert set(last) >= set(example.files())


def test_a_push_that_the_hub_cut_off_goes_on_without_sending_chunks_twice(
    server: Hub, example: Any, tmp_path: Path
) -> None:
    add_labels(example)
    server.fault = lambda method, path: 500 if "/commit/" in path and len(server.repos[REPO].titles) == 2 else None
    with pytest.raises(StoreError, match=r"lab/activations: the Hub answered 500 .*try again, it goes on where"):
        push(server, example.store)
    with pytest.raises(StoreError, match=r"holds no store: .*finish the push if it was cut off"):
        pull(server, tmp_path / "early.zarr")
    server.fault = lambda method, path: None
    sent = puts(server)
    server.requests.clear()
    push(server, example.store)
    assert len(sent) >= len(example.store.ranges) * 8
    assert not sent & puts(server)
    assert pull(server, tmp_path / "pulled.zarr").verify() == []
    assert contents(tmp_path / "pulled.zarr") == example.files()


def test_passing_errors_of_the_hub_do_not_end_a_push_or_a_pull(server: Hub, example: Any, tmp_path: Path) -> None:
    seen: set[tuple[str, str]] = set()

    def fault(method: str, path: str) -> int | None:
        first = (method, path) not in seen
        seen.add((method, path))
        busy = first and any(part in path for part in ("/lfs/", "/preupload/", "/commit/", "c.1.0.0"))
        return 503 if busy else None

    server.fault = fault
    push(server, example.store)
    assert pull(server, tmp_path / "pulled.zarr").verify() == []


def test_a_pull_from_a_hub_that_died_goes_on_where_it_stopped(server: Hub, example: Any, tmp_path: Path) -> None:
    push(server, example.store)
    lock, served = threading.Lock(), 0

    def fault(method: str, path: str) -> int | None:
        nonlocal served
        with lock:
            served += method == "GET" and "/resolve/" in path
            return 0 if served > 12 else None

    server.fault = fault
    with pytest.raises(StoreError, match=r"cannot be reached .*try again, it goes on where it stopped"):
        pull(server, tmp_path / "pulled.zarr")
    assert not (tmp_path / "pulled.zarr").exists()
    server.fault = lambda method, path: None
    server.requests.clear()
    assert pull(server, tmp_path / "pulled.zarr").verify() == []
    assert contents(tmp_path / "pulled.zarr") == example.files()
    fetched = {path for method, path in server.requests if method == "GET" and "/resolve/" in path}
    assert 0 < len(fetched) <= len(example.files()) - 8


def test_a_pull_goes_on_with_the_files_of_a_newer_commit_only(server: Hub, example: Any, tmp_path: Path) -> None:
    add_labels(example)
    push(server, example.store)
    server.fault = lambda method, path: 403 if method == "GET" and path.endswith("commits/00000002.json") else None
    with pytest.raises(StoreError, match=r"refuses .403"):
        pull(server, tmp_path / "pulled.zarr")
    server.fault = lambda method, path: None
    example.store.write_labels(Labels("cat", "binary", np.ones(10, np.int8)), overwrite=True)
    push(server, example.store)
    np.testing.assert_array_equal(pull(server, tmp_path / "pulled.zarr").labels("cat").values, 1)
    assert contents(tmp_path / "pulled.zarr") == example.files()


def test_a_second_push_of_the_same_store_commits_nothing(server: Hub, example: Any) -> None:
    first = push(server, example.store)
    server.requests.clear()
    assert push(server, example.store) == first
    assert len([path for _, path in server.requests if "/preupload/" in path]) == 1
    titles = server.repos[REPO].titles
    assert len(titles) == len(set(titles))


def test_a_push_after_a_change_leaves_only_what_the_store_has_and_foreign_files(
    server: Hub, example: Any, tmp_path: Path
) -> None:
    example.store.write_labels(Labels("kinds", "multilabel", np.zeros((10, 2), np.int8), ("a", "b")))
    push(server, example.store)
    server.put(REPO, LICENSE=b"MIT", labels__old__values=b"whose?")
    example.store.write_labels(Labels("kinds", "binary", np.ones(10, np.int8)), overwrite=True)
    push(server, example.store)
    pull(server, tmp_path / "pulled.zarr")
    assert contents(tmp_path / "pulled.zarr") == example.files()
    assert set(server.contents(REPO)) == set(example.files()) | {"LICENSE", "README.md", ".gitattributes"}


def test_a_store_that_has_grown_is_pushed_over_what_it_was(server: Hub, example: Any, tmp_path: Path) -> None:
    push(server, example.store)
    before, sent = server.contents(REPO), puts(server)
    server.requests.clear()
    example.store.append({"id": ["x", "y"], "group": ["g", "g"]})
    with pytest.raises(StoreError, match="1 of 4 ranges are not committed"):
        push(server, example.store)
    assert server.requests == []
    writer = example.store.writer()
    writer.commit(example.store.ranges[-1], writer.buffers())
    push(server, example.store)
    after = server.contents(REPO)
    assert b"12 samples" in after["README.md"]
    assert puts(server)
    assert not sent & puts(server)
    assert all(after[key] == data for key, data in before.items() if re.search(r"/c\.\d+\.\d+\.0$", key))
    assert pull(server, tmp_path / "pulled.zarr").n_samples == 12
    assert contents(tmp_path / "pulled.zarr") == example.files()


def test_a_branch_and_a_commit_can_be_named(server: Hub, example: Any, tmp_path: Path) -> None:
    push(server, example.store)
    first = server.repos[REPO].branches["main"]
    add_labels(example)
    push(server, example.store, revision="labelled")
    assert server.repos[REPO].branches["main"] == first
    assert pull(server, tmp_path / "branch.zarr", revision="labelled").label_names == ["cat"]
    assert pull(server, tmp_path / "main.zarr").label_names == []
    assert pull(server, tmp_path / "commit.zarr", revision=first).label_names == []
    with pytest.raises(StoreError, match=r"lab/activations@v9 does not exist: give a branch, a tag or a commit"):
        pull(server, tmp_path / "none.zarr", revision="v9")
