"""In a Jupyter kernel: bars while a run goes on, cards of what came of it, figures, and nothing of tqdm's."""

from typing import Any

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.slow

CELLS = (
    "import sonde\n"
    "config = sonde.ExtractConfig.load({config!r}, ['run.out=notebook.zarr'])\n"
    "store = sonde.extract(config)",
    "results = sonde.probe(store, 'topic', tokens=['mean'], alphas=[1.0], n_draws=20)",
    "silent = sonde.probe(store, 'topic', tokens=['mean'], alphas=[1.0], n_draws=20, callbacks=())",
    "store",
    "results",
    "axes = results.plot()",
    "results.to_pandas().head()",
)


@pytest.fixture(scope="module")
def outputs(study: Any, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What each cell left in the notebook."""
    cells = [nbformat.v4.new_code_cell(cell.format(config=str(study.config))) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    return [cell.outputs for cell in notebook.cells]


def test_a_run_is_one_bar_that_ends_full(outputs: list[list[Any]]) -> None:
    for cell, said in zip(outputs[:2], (("extract", "192/192", "samples/s"), ("probe", "3/3", "layers")), strict=True):
        [bar] = cell
        assert bar["output_type"] == "display_data"
        assert all(word in bar["data"]["text/html"] for word in said)


def test_a_bar_can_be_left_out(outputs: list[list[Any]]) -> None:
    assert outputs[2] == []


def test_a_store_and_results_show_themselves(outputs: list[list[Any]]) -> None:
    [store], [results] = outputs[3:5]
    assert "<strong>Store</strong>" in store["data"]["text/html"]
    page = results["data"]["text/html"]
    assert "<strong>Results</strong>" in page
    assert "best layer" in page
    assert "data:image/svg+xml;base64," in page


def test_results_are_figures_and_tables(outputs: list[list[Any]]) -> None:
    [figure], [table] = outputs[5:]
    assert "image/png" in figure["data"]
    assert "<th>metric</th>" in table["data"]["text/html"]
