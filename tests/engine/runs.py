"""Configurations, prompts and what is in a store, for tests that extract."""

import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.engine import Sample
from sonde.store import Store, as_float32

from .tiny_parts import WORDS

BUDGET = 180


def prompt(seed: int, n_words: int) -> str:
    """Words drawn by a seed."""
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(n_words))


def text_samples(n: int = 10, **fields: Any) -> list[Sample]:
    """Samples of 1 to 40 words."""
    return [Sample(f"s{i}", prompt=prompt(i, 1 + (i * 17) % 40), **fields) for i in range(n)]


def configuration(folder: Path, out: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """A float32 run with padded batches and ranges of four samples; sections are laid over it."""
    config: dict[str, Any] = {
        "model": {"name": str(folder), "dtype": "float32"},
        "run": {"out": out, "token_budget": BUDGET, "range_size": 4},
    }
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return config


def values(store: Store) -> dict[tuple[str, str, int], NDArray[np.float32]]:
    """(site, tokens, layer) -> all that the store holds of it, ``[sample, hidden]``; arrays of all tokens left out."""
    return {
        (spec.site, spec.tokens, layer): as_float32(store.layer(spec.site, spec.tokens, layer).numpy())
        for spec in store.arrays
        if not spec.ragged
        for layer in spec.layers
    }


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store but its logs, which say how a run went."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("log/")}
