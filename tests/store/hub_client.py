"""What tests of the Hub do again and again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session, disable_progress_bars, enable_progress_bars

from sonde.store import Labels, Store, hub

from .hub_server import TOKEN, Hub

REPO = "lab/activations"


@contextmanager
def empty_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """A Hub on loopback, and a client that speaks plain HTTP to it and waits little before it tries again."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))
    disable_progress_bars()
    server = Hub()
    with server.serve():
        yield server
        close_session()
    enable_progress_bars()


def push(server: Hub, store: Store, repo_id: str = REPO, **options: Any) -> str:
    return hub.push(store, repo_id, **{"token": TOKEN, "endpoint": server.endpoint} | options)


def pull(server: Hub, path: Path, repo_id: str = REPO, **options: Any) -> Store:
    return hub.pull(repo_id, path, **{"token": TOKEN, "endpoint": server.endpoint} | options)


def contents(path: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def puts(server: Hub) -> set[str]:
    """Large objects that were sent."""
    return {path for method, path in server.requests if method == "PUT"}


def add_labels(example: Any, name: str = "cat") -> None:
    example.store.write_labels(Labels(name, "binary", np.arange(example.store.n_samples, dtype=np.int8) % 2))
