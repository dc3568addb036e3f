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
    """Rates of the longest run that wrote to this store: samples, tokens and bytes per second, where logged."""
    runs = []
    for name in store.location.list("log"):
        try:
            run = json.loads(store.location.read(f"log/{name}"))
            runs.append({key: float(run[key]) for key in ("seconds", "samples", "tokens", "nbytes")})
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    longest = max((run for run in runs if run["seconds"] > 0), key=lambda run: run["samples"], default=None)
    if longest is None:
        return {}
    counts = {"samples_per_s": "samples", "tokens_per_s": "tokens", "bytes_per_s": "nbytes"}
    return {rate: longest[count] / longest["seconds"] for rate, count in counts.items()}
