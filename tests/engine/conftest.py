"""Tiny models and pictures, made once a session, and places for stores."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from sonde.engine.config import ModelSection
from sonde.engine.model import Model, load_model

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
def model_folder(scratch: Path) -> Iterator[Callable[[str], Path]]:
    """Folder of a family's tiny checkpoint, by model type."""
    import torch

    def folder(model_type: str) -> Path:
        place = scratch / "models" / model_type
        return place if place.is_dir() else write_model(model_type, place)

    # Models as small as these lose more by waiting for a second thread than it brings.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def load(model_folder: Callable[[str], Path]) -> Callable[[str], Model]:
    """A family's tiny model in float32, by model type; the tests of a module have it in common."""
    models: dict[str, Model] = {}

    def load(model_type: str) -> Model:
        if model_type not in models:
            models[model_type] = load_model(ModelSection(name=str(model_folder(model_type)), dtype="float32"))
        return models[model_type]

    return load


@pytest.fixture(scope="session")
def pictures(scratch: Path) -> list[Path]:
    """Eight pictures of noise, of three sizes."""
    draw = random.Random(0)
    paths = []
    for i in range(8):
        width, height = ((32, 32), (24, 40), (48, 24))[i % 3]
        paths.append(scratch / f"picture{i}.png")
        Image.frombytes("RGB", (width, height), draw.randbytes(width * height * 3)).save(paths[-1])
    return paths
