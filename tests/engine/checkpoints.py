"""Loading of checkpoints that are whole, damaged or hostile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sonde.engine.config import ModelSection
from sonde.engine.model import load_model

State = dict[str, torch.Tensor]


def section(folder: Path, **settings: Any) -> ModelSection:
    return ModelSection(name=str(folder), **{"dtype": "float32", "device": "cpu"} | settings)


def parameters(folder: Path, **settings: Any) -> State:
    return dict(load_model(section(folder, **settings)).module.named_parameters())


def assert_same(found: State, wanted: State) -> None:
    assert wanted
    assert found.keys() == wanted.keys()
    assert [name for name, x in wanted.items() if not found[name].equal(x)] == []


class Code:
    """Makes a file, where a pickle that holds it is trusted."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)
