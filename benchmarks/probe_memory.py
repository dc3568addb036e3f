"""Peak memory of probing a layer of N rows, and then of 4 N, in a process that does nothing else.

python -m benchmarks.probe_memory STORE_OF_N STORE_OF_4N
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from sonde.probes import Problem, accumulate, ridge_cv
from sonde.store import Store

from .extract_memory import megabytes
from .probe_data import SITE, TOKENS, fit_one

_CLEAR = Path("/proc/self/clear_refs")
_ALPHAS = np.logspace(0, 5, 5)


def main(few: str, many: str) -> dict[str, dict[str, float]]:
    """Return megabytes by what is done: of this process before, its peak at N and at 4 N."""
    stores = {"N": Store.open(few), "4 N": Store.open(many)}
    problems = {name: Problem.of(store, "objects", n_folds=2) for name, store in stores.items()}
    found: dict[str, dict[str, float]] = {}
    for what, run in {"statistics and solution": solve, "the whole layer": fit}.items():
        # The first run is to find the libraries loaded and the allocator at work.
        run(stores["N"], problems["N"])
        found[what] = {"before": megabytes("VmRSS")}
        for name, store in stores.items():
            # Sets the peak back to what is in use.
            _CLEAR.write_text("5", encoding="ascii")
            run(store, problems[name])
            found[what][name] = megabytes("VmHWM")
    return found


def solve(store: Store, problem: Problem) -> None:
    """Pass over a layer once and solve."""
    rows, folds = store.layer(SITE, TOKENS, 0), problem.split.folds
    ridge_cv(accumulate(rows, problem.y, folds, n_folds=problem.split.n_folds), _ALPHAS)


def fit(store: Store, problem: Problem) -> None:
    """Score the rows as well, for which layers of up to 1 GiB stay in memory."""
    fit_one(0, store, problem, "ridge", _ALPHAS)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2])))
