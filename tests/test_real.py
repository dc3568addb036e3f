"""The main job on a model and text that nobody here made."""

import importlib.util
import re
from pathlib import Path

import pytest

import sonde

EXAMPLE = Path(__file__).parents[1] / "examples" / "docstrings.py"


@pytest.mark.real
@pytest.mark.slow
def test_every_layer_of_a_trained_encoder_tells_the_modules_of_docstrings_apart(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("docstrings", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    report = example.main(tmp_path)

    printed = capsys.readouterr().out
    table = [[float(cell) for cell in line.split()] for line in printed.splitlines() if re.match(r"\s+\d+ ", line)]
    assert [row[0] for row in table] == list(range(6))
    majority = float(re.search(r"majority ([\d.]+)", printed)[1])
    assert 0.15 < majority < 0.35
    for _, ridge, logistic, scikit_learn in table:
        assert ridge > 0.7
        assert logistic > 0.7
        # The same penalty on the same rows: only rows at the boundary may fall differently.
        assert logistic == pytest.approx(scikit_learn, abs=0.005)
    store = sonde.open(tmp_path / "docstrings.zarr")
    assert store.n_samples > 2000
    assert len(store.labels("module").names) == 15
    assert store.verify() == []
    assert report.stat().st_size > 100_000
