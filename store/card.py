"""The page that a store has on the Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence

from .schema import Schema


def dataset_card(schema: Schema, labels: Sequence[str], repo_id: str) -> bytes:
    """Write the dataset card, ``README.md``, of a store: the same bytes for the same store.

    Parameters
    ----------
    schema
        Of the store.
    labels
        Names of its labels.
    repo_id
        Where it is to be pulled from.
    """
    model = str(schema.model.get("name", "a model"))
    of_revision = f" (revision `{schema.model['revision']}`)" if schema.model.get("revision") else ""
    arrays = "\n".join(f"| `{a.name}` | {_layers(a.layers)} | {a.hidden} |" for a in schema.arrays)
    first = schema.arrays[0]
    return f"""---
license: unknown
pretty_name: {json.dumps(f"Activations of {model}")}
tags: [activations, interpretability, probing, zarr, sonde]
viewer: false
---

# Activations of {model}

Activations of `{model}`{of_revision} for {schema.n_samples} samples, kept as {schema.dtype} in a Zarr v3 group that
sonde made. Its `zarr.json` says where they came from.

| activations | layers | hidden size |
|---|---|---|
{arrays}

Labels: {", ".join(f"`{name}`" for name in labels) or "none"}.

The licence is unknown: see those of the model and of the data.

```sh
sonde pull {repo_id} run.zarr
```

```python
import sonde

store = sonde.open("run.zarr")
layer = store.layer({json.dumps(first.site)}, {json.dumps(first.tokens)}, {first.layers[-1]})
```
""".encode()


def _layers(layers: Sequence[int]) -> str:
    consecutive = len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]} to {layers[-1]}" if consecutive else ", ".join(map(str, layers))
