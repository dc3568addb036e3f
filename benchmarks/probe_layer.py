"""One layer, which sonde and others probe in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from sonde.probes import Problem
from sonde.probes.fit import Solver
from sonde.probes.metrics import score, score_probabilities
from sonde.probes.sums import macro
from sonde.store import Store

from .probe_data import Floats, LayerData, fit_one
from .probe_peers import one_thread

Row: TypeAlias = dict[str, Any]

_ENOUGH_SECONDS = 20.0


@dataclass(frozen=True, slots=True, eq=False)
class OneLayer:
    """The first layer of a store, to be probed by sonde and by peers.

    Attributes
    ----------
    solver, store, problem, data
        What is asked, and the layer as peers are given it.
    targets
        Those that loops over targets are timed on, and that all are scored on; all if empty.
    """

    solver: Solver
    store: Store
    problem: Problem
    data: LayerData
    targets: Sequence[int] = ()

    @property
    def what(self) -> str:
        """The question."""
        return f"{self.solver}: one layer"

    def beside(
        self, peers: Mapping[str, Callable[[LayerData], Floats]], rounds: int
    ) -> tuple[list[Row], dict[str, float]]:
        """Time all in turns, with one thread; return rows, and how many times as long as sonde each takes."""
        found: dict[str, Floats] = {}

        def keep(name: str, fit: Callable[[LayerData], Floats]) -> None:
            found[name] = fit(self.data)

        everyone = {"sonde": self._ours, **peers}
        with one_thread():
            seconds = take_turns({name: partial(keep, name, fit) for name, fit in everyone.items()}, rounds)
        n_targets = len(self.problem.targets)
        rows, times = [], {}
        for who, took in seconds.items():
            some = found[who].shape[1] < n_targets
            times[who] = took * (n_targets / len(self.targets) if some else 1) / seconds["sonde"]
            scores = found[who] if some or not self.targets else found[who][:, self.targets]
            row = {"what": self.what, "who": who, "seconds": took, "of sonde": times[who], **self._quality(scores)}
            rows.append(row | {"note": f"{len(self.targets)} of {n_targets} targets" if some else ""})
        return rows, times

    def _ours(self, data: LayerData) -> Floats:
        return fit_one(0, self.store, self.problem, self.solver, data.alphas).scores[self.problem.split.test]

    def _quality(self, scores: Floats) -> Row:
        truth = self.data.test_y[:, self.targets] if self.targets else self.data.test_y
        auroc = float(macro(score("multilabel", truth, scores)["auroc"]))
        if self.solver == "ridge":
            return {"R²": float(macro(score("regression", truth, scores)["r2"])), "AUROC": auroc}
        return {"log-loss": float(macro(score_probabilities("multilabel", truth, scores)["log_loss"])), "AUROC": auroc}


def take_turns(contestants: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run all in turns, as `interleave`; who has run for long enough gets no more, and one turn may be all."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(1 + rounds):
        for name, run in contestants.items():
            if sum(seconds[name]) < _ENOUGH_SECONDS:
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
