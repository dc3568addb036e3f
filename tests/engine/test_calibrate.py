"""The number of tokens in a batch: given, found, or kept from the run before."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sonde.engine import calibrate, extract
from sonde.engine.config import ExtractConfig
from sonde.engine.packs import Pack
from sonde.engine.sample import Dataset
from sonde.engine.session import Session
from sonde.store import Store

from .runs import configuration, contents, text_samples

DEFAULT = 4096


@pytest.fixture
def session(model_folder: Callable[[str], Path], tmp_path: Path) -> Session:
    return Session.open(ExtractConfig.load(configuration(model_folder("llama"), tmp_path / "unused.zarr")))


def test_a_short_run_keeps_the_default(session: Session) -> None:
    assert calibrate.find_token_budget(Dataset(tuple(text_samples(10))), session) == DEFAULT


def test_a_long_run_takes_a_budget_that_was_tried(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the processor did a thousand operations a second.
    monkeypatch.setattr(calibrate, "_OPERATIONS_PER_S", {"cpu": 1e3})
    tried: list[int] = []
    seconds = {1024: 4.0, 2048: 1.0, 4096: 1.99, 8192: 9.0}

    def run(session: Session, packs: Sequence[Pack]) -> float:
        padded = len(packs) * max(pack.length for pack in packs)
        tried.append(next(budget for budget in seconds if padded <= budget))
        return seconds[tried[-1]]

    monkeypatch.setattr(calibrate, "_run", run)
    # The speeds are about 256, 2048, 2058 and 910 tokens a second: 2048 is within 3 % of the fastest.
    assert calibrate.find_token_budget(Dataset(tuple(text_samples(2000))), session) == 2048
    assert set(tried) == set(seconds)


def test_the_budget_is_kept_in_the_store_and_taken_from_it(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = text_samples(10)
    config = configuration(model_folder("llama"), tmp_path / "run.zarr")
    del config["run"]["token_budget"]
    monkeypatch.setattr(
        importlib.import_module("sonde.engine.extract"), "find_token_budget", lambda dataset, session: 100
    )
    extract(config, samples=samples)
    before = contents(tmp_path / "run.zarr")
    store = Store.open(tmp_path / "run.zarr")
    assert store.schema.config["run"]["token_budget"] == 100
    store.forget(store.ranges[:2])
    # Another machine, on which another budget would be found, makes the same bytes.
    monkeypatch.setattr(
        importlib.import_module("sonde.engine.extract"), "find_token_budget", lambda dataset, session: 4096
    )
    extract(config, samples=samples, resume=True)
    assert contents(tmp_path / "run.zarr") == before
