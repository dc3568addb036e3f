"""A probing run in TensorBoard: scores by layer, and the progress of an extraction by samples.

    uv run --with tensorboard python examples/log_to_tensorboard.py run.zarr answer
    uv run --with tensorboard tensorboard --logdir tensorboard

The same callback watches `sonde.extract`.
"""

import json
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

import sonde


class TensorBoard(sonde.Callback):
    """Writes each run to a folder of its own; the step of a score is its layer, that of a measure the samples done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Open the folder, and keep what the run is of beside its curves."""
        self._writer = SummaryWriter(self._folder / f"{facts['run']}-{datetime.now():%Y%m%d-%H%M%S}")
        self._writer.add_text("facts", f"```json\n{json.dumps(facts, indent=1)}\n```")

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Draw tokens, bytes and seconds over samples."""
        for name, value in measures.items():
            self._writer.add_scalar(f"progress/{name}", value, done)

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        """Draw scores over layers."""
        for name, value in scores.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self, error: BaseException | None) -> None:
        """Write what is left."""
        self._writer.close()


if __name__ == "__main__":
    store, labels = sys.argv[1:]
    print(sonde.probe(store, labels, callbacks=[TensorBoard(Path("tensorboard"))]))
