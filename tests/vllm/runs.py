"""Runs of either backend, and what a run on vLLM needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sonde.engine import Sample, extract
from sonde.store import Store

from ..engine.runs import prompt

# A step of 64 tokens, and of 8 prompts.
BUDGET, SEQUENCES = 64, 8
LENGTHS = (3, 50, 7, 120, 1, 90, 13, 5, 30, 20)


def require_vllm() -> list[pytest.MarkDecorator]:
    """Marks of a module whose tests run vLLM; where it is not installed the module is skipped."""
    if importlib.util.find_spec("vllm") is None:
        pytest.skip(
            "vLLM is not installed: it has an environment of its own, which .ci/run makes", allow_module_level=True
        )
    # What vLLM and torch say when an engine starts.
    return [pytest.mark.filterwarnings("ignore"), pytest.mark.slow, pytest.mark.usefixtures("one_process")]


def text_samples() -> list[Sample]:
    """From one word to three steps full of them, and more short ones than run in a step."""
    lengths = [*LENGTHS, *[1] * (3 * SEQUENCES)]
    return [Sample(f"s{i}", prompt=prompt(i, n)) for i, n in enumerate(lengths)]


def image_samples(pictures: Sequence[Path]) -> list[Sample]:
    """One image or two, and prompts that are shorter than a step or longer."""
    images = [(pictures[i % 3],) if i % 3 else (pictures[i % 3], pictures[(i + 1) % 3]) for i in range(6)]
    return [
        Sample(f"i{i}", prompt=prompt(i, n), images=its)
        for i, (n, its) in enumerate(zip(LENGTHS, images, strict=False))
    ]


def run(
    backend: str, folder: Path, out: Path, samples: Sequence[Sample], *, capture: Any = None, **sections: Any
) -> Store:
    """Extract in float32, in ranges of 8 samples, unless the sections say otherwise."""
    config = {
        "model": {"name": str(folder), "backend": backend, "dtype": "float32"} | sections.pop("model", {}),
        "capture": capture or {"tokens": ["last", "mean"]},
        "run": {"out": out, "token_budget": BUDGET, "range_size": 8} | sections.pop("run", {}),
    }
    return extract(config, samples=samples, **sections)
