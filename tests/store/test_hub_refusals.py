"""What is not pushed to or pulled from the Hugging Face Hub, and what is said of it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from sonde.errors import CorruptStoreError, InputError, StoreError
from sonde.store import hub

from .hub_client import REPO, add_labels, contents, empty_hub, pull, push
from .hub_server import Hub

# The client's way of uploading without Xet is not that of the HTTP library that it has.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with empty_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


@pytest.mark.parametrize("key", ["activations/resid_post/last/c.1.2.0", "activations/vision/resid_post/mean/zarr.json"])
def test_an_object_that_was_tampered_with_on_the_hub_is_an_error_that_names_it(
    server: Hub, example: Any, tmp_path: Path, key: str
) -> None:
    push(server, example.store)
    blob = server.repos[REPO].files()[key]  # type: ignore[index]
    intact = server.objects[blob.sha256 or blob.oid]
    server.objects[blob.sha256 or blob.oid] = intact[:-9] + bytes([intact[-9] ^ 1]) + intact[-8:]
    with pytest.raises(CorruptStoreError, match=rf"1 of \d+ files arrived damaged .*{re.escape(key)}; pull again"):
        pull(server, tmp_path / "pulled.zarr")
    assert not (tmp_path / "pulled.zarr").exists()
    server.objects[blob.sha256 or blob.oid] = intact
    assert pull(server, tmp_path / "pulled.zarr").verify() == []


def test_a_store_that_was_damaged_before_it_came_to_the_hub_is_an_error_that_names_the_range(
    server: Hub, example: Any, tmp_path: Path
) -> None:
    push(server, example.store)
    first, second = (f"activations/resid_post/last/c.{row}.0.0" for row in (0, 1))
    files = server.repos[REPO].files()
    assert files is not None
    files[first], files[second] = files[second], files[first]
    with pytest.raises(CorruptStoreError, match=r"holds a damaged store: range 0 of layer 0 .*have it pushed again"):
        pull(server, tmp_path / "pulled.zarr")
    assert not (tmp_path / "pulled.zarr").exists()


def test_a_store_that_is_unfinished_damaged_or_elsewhere_is_not_pushed(
    server: Hub, build: Callable[..., Any], tmp_path: Path
) -> None:
    unfinished = build(tmp_path / "unfinished.zarr", commit=[0, 2])
    with pytest.raises(StoreError, match=r"1 of 3 ranges are not committed; finish it with `sonde extract --resume`"):
        push(server, unfinished.store)
    damaged = build(tmp_path / "damaged.zarr")
    damaged.chunk("resid_post/mean", 2, 1).write_bytes(b"")
    with pytest.raises(CorruptStoreError, match="was not pushed: range 1 of layer 7 of resid_post/mean"):
        push(server, damaged.store)
    label = build(tmp_path / "label.zarr")
    add_labels(label)
    next((label.path / "labels" / "cat").rglob("c*/**/*")).write_bytes(b"no chunk")
    with pytest.raises(CorruptStoreError, match=r"was not pushed: .*labels 'cat'"):
        push(server, label.store)
    assert server.requests == []


def test_a_repository_with_the_store_of_another_model_is_not_overwritten(
    server: Hub, build: Callable[..., Any], example: Any, tmp_path: Path
) -> None:
    push(server, example.store)
    before = server.contents(REPO)
    other = build(tmp_path / "other.zarr", dtype="float32")
    with pytest.raises(StoreError, match=r"holds another store: its dtype is 'bfloat16', not 'float32'; push to anoth"):
        push(server, other.store)
    longer = build(tmp_path / "longer.zarr", n_samples=12)
    with pytest.raises(StoreError, match=r"of other samples, 10 of them where this one has 12; push to another id"):
        push(server, longer.store)
    assert server.contents(REPO) == before


def test_private_means_private(server: Hub, example: Any) -> None:
    push(server, example.store, "lab/secret", private=True)
    assert server.repos["lab/secret"].private
    server.create("lab/open")
    with pytest.raises(StoreError, match="lab/open is public already: make it private"):
        push(server, example.store, "lab/open", private=True)
    assert set(server.contents("lab/open")) == {".gitattributes"}


def test_files_that_the_repository_ignores_are_an_error_and_no_store(server: Hub, example: Any) -> None:
    server.create(REPO)
    server.put(REPO, **{".gitignore": b"*c.1.0.0\n"})
    with pytest.raises(StoreError, match=r"left out 3 files: activations/resid_post/last/c.1.0.0.*\.gitignore"):
        push(server, example.store)
    assert "zarr.json" not in server.contents(REPO)


def test_only_files_of_a_store_are_fetched(server: Hub, example: Any, tmp_path: Path) -> None:
    push(server, example.store)
    evil = {
        "..__..__escaped": b"x",
        "labels__..__..__..__escaped": b"x",
        "__etc__escaped": b"x",
        "labels__.hidden": b"x",
        ".bashrc": b"x",
        "setup.py": b"x",
        "log__run.json": b"x",
    }
    server.put(REPO, **evil)
    pull(server, tmp_path / "in" / "pulled.zarr")
    assert contents(tmp_path / "in") == {f"pulled.zarr/{key}": data for key, data in example.files().items()}
    assert not any("escaped" in path for _, path in server.requests)


def test_a_pull_refuses_a_destination_that_holds_something_else(server: Hub, example: Any, tmp_path: Path) -> None:
    push(server, example.store)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match="full exists already and is not a store: pull to another folder"):
        pull(server, tmp_path / "full")
    with pytest.raises(StoreError, match=r"thesis.tex is a file"):
        pull(server, tmp_path / "full" / "thesis.tex")
    with pytest.raises(StoreError, match="is not a local folder"):
        hub.pull(REPO, "s3://bucket/run.zarr")
    (tmp_path / "empty").mkdir()
    assert pull(server, tmp_path / "empty").complete
    # The same again costs nothing; the store of another commit is in the way.
    server.requests.clear()
    assert pull(server, tmp_path / "empty").complete
    assert not any("/resolve/" in path for _, path in server.requests)
    add_labels(example)
    push(server, example.store)
    with pytest.raises(StoreError, match="is not this store of hf://datasets/lab/activations"):
        pull(server, tmp_path / "empty")
    assert contents(tmp_path / "full") == {"thesis.tex": b"years"}


def test_what_the_hub_refuses_is_one_clear_error(server: Hub, example: Any, tmp_path: Path) -> None:
    server.create("lab/gated", gated=True)
    server.create("lab/private", private=True)
    for options, repo_id, message in (
        (
            {},
            "lab/missing",
            r"lab/missing does not exist or is not open to you: check the id, and log in with `hf auth",
        ),
        ({"token": False}, "lab/private", r"lab/private does not exist or is not open to you: .*`hf auth login`"),
        ({}, "lab/gated", r"lab/gated is gated: ask for access on its page, and log in with `hf auth login`"),
    ):
        with pytest.raises(StoreError, match=message) as caught:
            pull(server, tmp_path / "pulled.zarr", repo_id, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(StoreError, match=r"the Hub refuses .401.: log in by `hf auth login` with a token that may do"):
        push(server, example.store, token="hf_wrong")
    server.create("lab/empty")
    with pytest.raises(StoreError, match=r"holds no store: there is no zarr.json in its root; check the id"):
        pull(server, tmp_path / "pulled.zarr", "lab/empty")


def test_no_network_is_one_clear_error(example: Any, tmp_path: Path, server: Hub) -> None:
    with Hub().serve() as closed:
        pass
    message = r"cannot be reached \(.*\); check the network and HF_ENDPOINT and try again"
    with pytest.raises(StoreError, match=message):
        pull(server, tmp_path / "pulled.zarr", endpoint=closed)
    with pytest.raises(StoreError, match=message):
        push(server, example.store, endpoint=closed)


def test_offline_mode_is_one_clear_error(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE switches the Hub off; unset it and try again"):
        pull(server, tmp_path / "pulled.zarr")


@pytest.mark.parametrize(
    "repo_id",
    [
        *("", "activations", "datasets/lab/run", "https://huggingface.co/lab/run", "lab/../run", "-lab/run"),
        *("lab/run.git", "lab/a--b", "lab/" + "a" * 97, "lab/café", "lab/run\n", "/run"),
    ],
)
def test_a_repository_id_of_another_form_is_an_input_error(
    server: Hub, example: Any, tmp_path: Path, repo_id: str
) -> None:
    with pytest.raises(InputError, match="no id of a dataset repository: give owner/name"):
        push(server, example.store, repo_id)
    with pytest.raises(InputError, match="no id of a dataset repository: give owner/name"):
        pull(server, tmp_path / "pulled.zarr", repo_id)
    assert server.requests == []
