"""Tiny models and pictures, made once a session, and places for stores."""

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from .tiny import write_model


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """Folder in memory where the system has such a place: stores wait for the disk at every file."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def tmp_path(scratch: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def model_folder(scratch: Path) -> Callable[[str], Path]:
    """Folder of a family's tiny checkpoint, by model type."""

    def folder(model_type: str) -> Path:
        place = scratch / "models" / model_type
        return place if place.is_dir() else write_model(model_type, place)

    return folder


@pytest.fixture(scope="session")
def one_process() -> Iterator[None]:
    """Let vLLM look at its classes of models here: else a process does, for each, that imports all of vLLM again."""
    from sonde.engine.config import ModelSection
    from sonde.engine.vllm.settings import prepare_environment

    prepare_environment(ModelSection(name="any", backend="vllm"))
    from vllm.model_executor.models import registry

    elsewhere = registry._run_in_subprocess
    registry._run_in_subprocess = lambda look: look()
    yield
    registry._run_in_subprocess = elsewhere


@pytest.fixture(scope="session")
def pictures(scratch: Path) -> list[Path]:
    """Pictures of noise, each of another shape."""
    from PIL import Image

    files = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (60 + 40 * i, 100, 3), dtype=np.uint8)
        files.append(scratch / f"picture{i}.png")
        Image.fromarray(pixels).save(files[-1])
    return files
