"""Three new questions to activations that are there, beside a scikit-learn script that asks the same.

The activations are those of `examples/docstrings.py`: the docstrings of Python's standard library in all layers of
MiniLM, extracted and probed once for their modules; none of that is timed. Then come labels that nobody had thought
of: whether a docstring speaks of returning something, which of six topics it mentions, and how long it is. Both get
the store and the labels, the same split, folds and penalties; both end with scores of every layer on the test rows
and out of fold, sonde's with bootstrap intervals as well. The script fits `RidgeCV` in a pipeline with
`StandardScaler` to every layer and predicts; its penalty is one for all topics.

    uv run python -m benchmarks.reprobe_docstrings [--fast] [--folder DIR]
"""

from __future__ import annotations

import math
import sysconfig
import warnings
from functools import partial
from pathlib import Path

import numpy as np
from examples.docstrings import docstrings, extract

from sonde.probes import ALPHAS, Problem, probe
from sonde.probes.metrics import PRIMARY, score
from sonde.probes.sums import macro
from sonde.store import Labels, Store, as_float32

from .result import conclude, interleave, launch

SITE, TOKENS = "resid_post", "mean"
TOPICS = ("bytes", "error", "file", "list", "message", "string")


def main(folder: Path, size: str) -> None:
    """Ask the new questions and print the answers."""
    store = extract(folder / "docstrings.zarr")
    probe(store, "module")
    new = new_labels(store)
    for labels in new:
        store.write_labels(labels)
    results = []
    for labels in new:
        found: dict[str, float] = {}
        contestants = {
            "sonde": partial(ours, store, labels.name, found),
            "scikit-learn script": partial(script, store, labels.name, found),
        }
        seconds = interleave(contestants, 1 if size == "fast" else 3)
        kind = f"{labels.kind}, {PRIMARY[labels.kind]} of the best layer"
        results += [
            {"what": f"{labels.name} ({kind})", "who": who, "seconds": took, "score": found[who]}
            for who, took in seconds.items()
        ]
    conclude("reprobe_docstrings", results, [], peers=["scikit-learn"])


def new_labels(store: Store) -> list[Labels]:
    """Make one value of each of three kinds for every docstring."""
    prompts = {sample.id: str(sample.prompt) for sample in docstrings(Path(sysconfig.get_path("stdlib")))}
    texts = [prompts[id_].lower() for id_ in store.ids.tolist()]
    return [
        Labels("returns", "binary", np.array(["return" in text for text in texts], dtype=np.int8)),
        Labels("topics", "multilabel", np.array([[t in x for t in TOPICS] for x in texts], dtype=np.int8), TOPICS),
        Labels("length", "regression", np.array([math.log2(len(text.split())) for text in texts])),
    ]


def ours(store: Store, name: str, found: dict[str, float]) -> None:
    """Probe all layers; keep the test score of the layer that cross-validation puts first."""
    found["sonde"] = float(probe(store, name, callbacks=()).best()["value"])


def script(store: Store, name: str, found: dict[str, float]) -> None:
    """Do so by scikit-learn."""
    from sklearn.linear_model import Ridge, RidgeCV
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    problem = Problem.of(store, name)
    train, test = problem.split.folds >= 0, problem.split.test
    folds = PredefinedSplit(problem.split.folds[train])
    scores = []
    for layer in store.array(SITE, TOKENS).layers:
        x = as_float32(store.layer(SITE, TOKENS, layer).numpy())
        model = make_pipeline(StandardScaler(), RidgeCV(ALPHAS["ridge"], cv=folds))
        chosen = make_pipeline(StandardScaler(), Ridge())
        with warnings.catch_warnings(action="ignore"):  # of the weakest penalties
            model.fit(x[train], problem.y[train])
            chosen.set_params(ridge__alpha=model[-1].alpha_)
            out_of_fold = cross_val_predict(chosen, x[train], problem.y[train], cv=folds)
        # Of one target scikit-learn answers without its axis.
        answers = (train, out_of_fold), (test, model.predict(x[test]))
        scores.append(
            [
                float(macro(score(problem.kind, problem.truth(rows), np.c_[answer])[PRIMARY[problem.kind]]))
                for rows, answer in answers
            ]
        )
    # The layer is chosen by its score out of fold, and its test score is told.
    found["scikit-learn script"] = max(scores)[1]


if __name__ == "__main__":
    launch(__doc__, main, {"fast": "one counted run of each"})
