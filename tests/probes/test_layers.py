"""Which layers are probed, and errors that name the layer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.errors import InputError, StoreError
from sonde.probes import probe
from sonde.store import Labels


def test_only_what_was_chosen_is_probed(example: Any) -> None:
    rows = probe(example.store, "size", sites=["resid_post"], layers=[9, 2], n_draws=2).rows
    assert rows[rows["solver"] == "ridge"][["site", "layer"]].drop_duplicates().to_numpy().tolist() == [
        ["resid_post", 2],
        ["resid_post", 9],
    ]
    assert set(probe(example.store, "size", tokens=["mean"], n_draws=2).rows["site"]) == {"embed", ""}


def test_what_the_store_lacks_is_an_error_that_lists_what_there_is(example: Any, tmp_path: Path) -> None:
    for chosen, text in (
        ({"sites": ["attn_out"]}, r"no site 'attn_out': it has \['embed', 'resid_post'\]"),
        ({"tokens": ["first"]}, r"no tokens 'first': it has \['last', 'mean'\]"),
        ({"layers": [3]}, r"no layer 3: it has \[0, 2, 5, 9\]"),
        ({"sites": ["embed"], "tokens": ["last"]}, "no activations of these sites, tokens and layers together"),
    ):
        with pytest.raises(StoreError, match=text):
            probe(example.store, "size", out=tmp_path / "out", **chosen)
    with pytest.raises(StoreError, match="no labels 'mood': it has colour, entailment, objects, size"):
        probe(example.store, "mood", out=tmp_path / "out")
    with pytest.raises(StoreError, match="does not exist"):
        probe(tmp_path / "absent.zarr", "size")
    assert not (tmp_path / "out").exists()


def test_an_activation_that_is_not_finite_is_an_error_that_names_layer_and_row(make_store: Any, tmp_path: Path) -> None:
    n = 40
    groups, split = [f"g{i}" for i in range(n)], ["test"] * 10 + ["train"] * 30
    for row in (3, 20):
        x = np.random.default_rng(0).normal(size=(1, n, 4)).astype(np.float32)
        x[0, row, 2] = np.inf
        path = tmp_path / f"{row}.zarr"
        store = make_store(path, {"resid_post/last": x}, {"resid_post": (7,)}, groups, split=split)
        store.write_labels(Labels.from_column("sign", [i % 2 for i in range(n)]))
        with pytest.raises(InputError, match=rf"layer 7 of resid_post/last: .*row {row}\b"):
            probe(store, "sign", n_draws=2)
