"""A batch that the device has no memory for is done again in halves."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine import extract
from sonde.errors import ModelError

from .runs import configuration, text_samples, values


@pytest.fixture
def room() -> Iterator[dict[str, int]]:
    """A device with room for so many padded tokens; what larger batches were tried is noted."""
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    state = {"tokens": 10**9, "refused": 0}

    def hook(module: Any, args: Any) -> None:
        # The embedding is the first to see a batch.
        if isinstance(module, torch.nn.Embedding) and args[0].numel() > state["tokens"]:
            state["refused"] += 1
            raise torch.cuda.OutOfMemoryError("out of memory")

    handle = register_module_forward_pre_hook(hook)
    yield state
    handle.remove()


def test_batches_are_halved_until_they_fit_and_stay_small(
    room: dict[str, int], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    samples = text_samples(16)
    run = {"range_size": 8}
    expected = values(extract(configuration(model_folder("llama"), tmp_path / "a.zarr", run=run), samples=samples))
    room["tokens"] = 60
    store = extract(configuration(model_folder("llama"), tmp_path / "b.zarr", run=run), samples=samples)
    for key, x in values(store).items():
        np.testing.assert_allclose(x, expected[key], rtol=0, atol=1e-5 * np.abs(expected[key]).max())
    assert 1 <= room["refused"] <= 2, "180 tokens, then 90 at most, then 45"
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "b.zarr" / "log").glob("2*.json"))
    assert record["token_budget"] <= 60


def test_one_sample_that_does_not_fit_is_a_model_error(
    room: dict[str, int], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    room["tokens"] = 20
    with pytest.raises(ModelError, match=r"not the memory for one sample of \d+ tokens: shorten it"):
        extract(configuration(model_folder("llama"), tmp_path / "run.zarr"), samples=text_samples(8))
