"""A probing run in Weights & Biases: a run with its configuration, and scores by layer.

    WANDB_MODE=offline uv run --with wandb python examples/log_to_wandb.py run.zarr answer
    uv run --with wandb wandb sync wandb/offline-run-*

Without ``WANDB_MODE=offline``, and after ``wandb login``, it is there at once. The same callback watches
`sonde.extract`.
"""

import sys
from collections.abc import Mapping
from typing import Any

import wandb

import sonde


class WeightsAndBiases(sonde.Callback):
    """Makes each run one of W&B's; scores are drawn over ``layer``, measures over ``samples``."""

    def __init__(self, project: str) -> None:
        self._project = project

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Begin a run with the facts as its configuration."""
        self._run = wandb.init(project=self._project, job_type=facts["run"], config=dict(facts))
        self._run.define_metric("*", step_metric="layer")
        self._run.define_metric("progress/*", step_metric="samples")

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Log tokens, bytes and seconds by samples."""
        if measures:
            self._run.log({"samples": done} | {f"progress/{name}": value for name, value in measures.items()})

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        """Log scores by layer."""
        self._run.log({"layer": step, **scores})

    def on_end(self, error: BaseException | None) -> None:
        """End it as it ended."""
        self._run.finish(exit_code=0 if error is None else 1)


if __name__ == "__main__":
    store, labels = sys.argv[1:]
    print(sonde.probe(store, labels, callbacks=[WeightsAndBiases("sonde")]))
