"""A store in a few numbers."""

from __future__ import annotations

import json
from typing import Any

from .contents import Contents


def describe(store: Contents) -> dict[str, Any]:
    """What ``sonde info`` prints, ready for JSON."""
    return {
        "store": str(store.location),
        "samples": store.n_samples,
        "skipped": len(store.skipped),
        "ranges": {
            "committed": len(store.commits),
            "planned": len(store.ranges),
            "size": store.schema.range_size,
        },
        "arrays": {
            a.name: {"layers": list(a.layers), "hidden": a.hidden, "dtype": store.schema.dtype} for a in store.arrays
        },
        "codec": store.schema.codec,
        "parts": [part.n_samples for part in store.schema.parts],
        "labels": {name: store.labels(name).kind for name in store.label_names},
        "bytes": sum(commit.nbytes for commit in store.commits.values()),
        "nonfinite": sum(a.nonfinite for c in store.commits.values() for a in c.arrays.values()),
        "model": dict(store.schema.model),
        "data": dict(store.schema.data),
        "capture": dict(store.schema.capture),
        "versions": dict(store.schema.versions),
    }


def rates(store: Contents) -> dict[str, float]:
    """Rates of the longest run that wrote to this store, and what bounds them, where logged.

    Returns
    -------
    dict
        ``samples_per_s``, ``tokens_per_s`` and ``bytes_per_s``; of a run of one process, ``write_bytes_per_s`` while
        something was written, and on a CPU ``forward_tokens_per_s`` while the model ran (a GPU runs on its own, and its
        passes are not timed).
    """
    runs = []
    for name in store.location.list("log"):
        try:
            run = json.loads(store.location.read(f"log/{name}"))
            stages = {} if "gpu" in run else {"forward": float(run.get("stages", {}).get("forward", 0))}
            stages["write"] = float(run.get("stages", {}).get("write", 0))
            runs.append({key: float(run[key]) for key in ("seconds", "samples", "tokens", "nbytes")} | stages)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            continue
    longest = max((run for run in runs if run["seconds"] > 0), key=lambda run: run["samples"], default=None)
    if longest is None:
        return {}
    counts = {"samples_per_s": "samples", "tokens_per_s": "tokens", "bytes_per_s": "nbytes"}
    found = {rate: longest[count] / longest["seconds"] for rate, count in counts.items()}
    limits = (("forward", "tokens"), ("write", "nbytes"))
    return found | {
        f"{stage}_{'tokens' if count == 'tokens' else 'bytes'}_per_s": longest[count] / longest[stage]
        for stage, count in limits
        if longest.get(stage, 0) > 0
    }
