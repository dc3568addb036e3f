"""The device of these tests, and tiny models and pictures to run on it."""

import pytest

from ..engine.conftest import model_folder, pictures, scratch, tmp_path
from ..probes.conftest import example

__all__ = ["device", "example", "gpu", "model_folder", "pictures", "scratch", "tmp_path"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cuda", help="cpu rehearses what does not need a GPU")


@pytest.fixture(scope="session", autouse=True)
def device(request: pytest.FixtureRequest) -> str:
    """Where the tests run; they are skipped where there is no such thing."""
    import torch

    wanted = str(request.config.getoption("--device", "cuda"))
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device: torch.cuda.is_available() is false")
    return wanted


@pytest.fixture
def gpu(device: str) -> str:
    """The GPU, for what cannot be rehearsed without one."""
    if device != "cuda":
        pytest.skip("needs a GPU")
    return device
