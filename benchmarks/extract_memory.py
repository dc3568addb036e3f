"""Peak memory of extracting N samples with all tokens, and then 4 N, in a process that does nothing else.

python -m benchmarks.extract_memory MODEL FOLDER N
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from .extract_engine import Extraction
from .extract_shapes import prompts

# Prompts are of one length and ranges of one batch, so that N and 4 N run the same shapes: the kernels that torch keeps
# for every shape are no part of the question. What is kept of any range but the latest would show.
_RANGE_SIZE = _LENGTH = 64
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(model: Path, folder: Path, n_samples: int) -> dict[str, float]:
    """Return megabytes: of this process once the model is loaded, its peaks, and what 4 N keep more than N."""
    numbers = {"first": n_samples, "N": n_samples, "4 N": 4 * n_samples}
    runs = {
        name: Extraction.of_model(model, prompts(n, _LENGTH, _LENGTH), folder, tokens="all", range_size=_RANGE_SIZE)
        for name, n in numbers.items()
    }
    found, sizes = {"loaded": megabytes("VmRSS")}, {}
    # The first run is to find the allocator at work.
    for name, run in runs.items():
        # Sets the peak back to what is in use: what loading took is no part of it.
        _CLEAR.write_text("5", encoding="ascii")
        store = run.whole()
        found[name] = megabytes("VmHWM")
        sizes[name] = store.info()["bytes"] / 1e6
        shutil.rmtree(str(store.location))
    return found | {"added": sizes["4 N"] - sizes["N"]}


def megabytes(key: str) -> float:
    """One line of what the system says of this process."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
