"""Everything that a reader can learn of a store, in values that compare."""

from typing import Any

from sonde.store import Store


def observe(store: Store) -> dict[str, Any]:
    values: dict[tuple[str, int], Any] = {}
    for spec in store.arrays:
        for layer in spec.layers:
            if spec.ragged:
                parts = [(t.rows, t.values, t.offsets, t.token_ids, t.modality) for t in store.tokens(spec.site, layer)]
            else:
                parts = list(store.layer(spec.site, spec.tokens, layer))
            values[spec.name, layer] = [(rows, *(x.tobytes() for x in arrays)) for rows, *arrays in parts]
    labels = {name: store.labels(name) for name in store.label_names}
    return {
        "schema": store.schema.to_json(),
        "columns": {name: column.tolist() for name, column in store.columns.items()},
        "commits": sorted(store.commits),
        "valid": store.valid.tolist(),
        "skipped": store.skipped,
        "values": values,
        "labels": {name: (x.kind, x.names, x.values.dtype, x.values.tobytes()) for name, x in labels.items()},
        "damage": [error for damage in store.verify() for error in damage.errors],
    }
