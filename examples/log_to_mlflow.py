"""A probing run in MLflow: a run with its parameters, and scores by layer.

    uv run --with mlflow python examples/log_to_mlflow.py run.zarr answer
    uv run --with mlflow mlflow ui --backend-store-uri sqlite:///mlflow.db

The same callback watches `sonde.extract`.
"""

import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import mlflow

import sonde

# An extraction tells of every batch; a tracking server need not hear of each.
_SECONDS = 10.0


class MLflow(sonde.Callback):
    """Makes each run one of MLflow's; the step of a score is its layer, that of a measure the samples done."""

    def on_start(self, facts: Mapping[str, Any]) -> None:
        """Begin a run: plain facts are its parameters, all of them a file."""
        self._last = -_SECONDS
        mlflow.start_run(run_name=f"{facts['run']} {facts['store']}")
        mlflow.log_params({name: value for name, value in facts.items() if isinstance(value, str | int | float)})
        mlflow.log_dict(dict(facts), "facts.json")

    def on_progress(self, done: int, total: int, measures: Mapping[str, float]) -> None:
        """Log tokens, bytes and seconds by samples."""
        if measures and (done == total or time.monotonic() - self._last >= _SECONDS):
            self._last = time.monotonic()
            mlflow.log_metrics({f"progress/{name}": value for name, value in measures.items()}, step=done)

    def on_result(self, step: int, scores: Mapping[str, float]) -> None:
        """Log scores by layer, under names that MLflow allows."""
        mlflow.log_metrics({re.sub(r"[^\w\-./ ]", "_", name): value for name, value in scores.items()}, step=step)

    def on_end(self, error: BaseException | None) -> None:
        """End it as it ended."""
        mlflow.end_run("FINISHED" if error is None else "FAILED")


if __name__ == "__main__":
    store, labels = sys.argv[1:]
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    print(sonde.probe(store, labels, callbacks=[MLflow()]))
