"""The text baseline is what a scikit-learn pipeline says of the words, on the folds of the layers."""

from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss, mean_squared_error
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline, make_union

from sonde.errors import InputError
from sonde.probes import Problem
from sonde.probes.baseline import text_baseline
from sonde.probes.bootstrap import cluster_weights
from sonde.probes.evaluate import evaluate

ALPHAS = (0.01, 1.0, 100.0)
FILLER = ["the", "picture", "shows", "a", "small", "thing", "near", "another", "one", "on", "some", "table"]
Floats = np.ndarray[Any, Any]


def tell(truth: Floats) -> np.ndarray[Any, Any]:
    """Write a sentence for every sample that often names what is in it; no two are the same."""
    rng = np.random.default_rng(0)
    names = [["ball!", "cup?", "hat"][: truth.shape[1]] for _ in truth]
    texts = []
    for number, (row, name) in enumerate(zip(truth > 0, names, strict=True)):
        said = [word for word, there in zip(name, row, strict=True) if there == (rng.random() < 0.85)]
        texts.append(" ".join(rng.permutation([*rng.choice(FILLER, 5), *said, str(number)])))
    return np.array(texts, dtype=object)


def reference(texts: Floats, problem: Problem) -> Floats:
    """Scores ``[sample, target]`` of pipelines, each with the penalty that is best on held-out folds."""
    training, test = problem.split.folds >= 0, problem.split.test
    folds = PredefinedSplit(problem.split.folds[training])
    numbers, joint = problem.kind == "regression", problem.kind == "multiclass"
    scores = np.full(problem.y.shape, np.nan)
    for columns in [slice(None)] if joint else [slice(t, t + 1) for t in range(problem.y.shape[1])]:
        y = problem.y.argmax(axis=1) if joint else problem.y[:, columns.start]
        best = None
        for alpha in sorted(ALPHAS, reverse=True):
            model = make_pipeline(
                make_union(
                    TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True),
                    TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True),
                ),
                Ridge(alpha) if numbers else LogisticRegression(C=1 / alpha, solver="newton-cg", tol=1e-8),
            )
            method = "predict" if numbers else "predict_proba"
            held_out = cross_val_predict(model, texts[training], y[training], cv=folds, method=method)
            error = (mean_squared_error if numbers else log_loss)(y[training], held_out)
            if best is None or error < best[0]:
                best = error, model, held_out, method
        assert best is not None
        _, model, held_out, method = best
        tested = getattr(model.fit(texts[training], y[training]), method)(texts[test])
        for part, found in ((training, held_out), (test, tested)):
            scores[part, columns] = found if joint else found.reshape(part.sum(), -1)[:, -1:]
    return scores


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects", "size"])
def test_scores_are_those_of_scikit_learn_pipelines_on_the_same_folds(labels: str, example: Any) -> None:
    problem = Problem.of(example.store, labels, n_folds=3)
    texts = tell(example.truth[labels])
    scores = text_baseline(texts.tolist(), problem, alphas=ALPHAS)
    np.testing.assert_allclose(scores, reference(texts, problem), atol=1e-3)
    assert np.isnan(scores[~example.used]).all()


@pytest.mark.parametrize("labels", ["entailment", "colour", "objects", "size"])
def test_a_text_counts_as_often_as_it_is_there(labels: str, example: Any) -> None:
    problem = Problem.of(example.store, labels)
    texts = np.random.default_rng(2).choice(tell(example.truth[labels])[:12], len(problem.y))
    training, test = problem.split.folds >= 0, problem.split.test
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", sublinear_tf=True)
    characters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True)
    features = make_union(words, characters).fit(np.unique(texts[training]))
    x, x_test = features.transform(texts[training]), features.transform(texts[test])
    scores = text_baseline(texts, problem, alphas=[1.0])[test]
    for t in range(1 if problem.kind == "multiclass" else len(problem.targets)):
        y = problem.truth(training).reshape(training.sum(), -1)[:, t]
        if problem.kind == "regression":
            expected = Ridge(1.0).fit(x, y).predict(x_test)[:, None]
        else:
            expected = LogisticRegression(solver="newton-cg", tol=1e-8).fit(x, y).predict_proba(x_test)
        columns = slice(None) if problem.kind == "multiclass" else slice(t, t + 1)
        np.testing.assert_allclose(scores[:, columns], expected[:, -scores[:, columns].shape[1] :], atol=1e-3)


def test_words_that_tell_the_answer_score_and_others_do_not(example: Any) -> None:
    problem = Problem.of(example.store, "objects")
    draws = cluster_weights(problem.groups[problem.split.test].tolist(), 100, 0)

    def auroc(texts: Any) -> dict[str, float]:
        records = evaluate(problem, text_baseline(texts, problem), draws, probabilities=True).records
        return {r["split"]: r["value"] for r in records if (r["metric"], r["target"]) == ("auroc", "all")}

    telling = auroc(tell(example.truth["objects"]))
    assert min(telling.values()) > 0.75
    silent = auroc(tell(np.random.default_rng(1).permutation(example.truth["objects"])))
    assert max(silent.values()) < 0.65
    assert auroc(["the same for all"] * len(problem.y)) == {"test": 0.5, "cv": pytest.approx(0.5, abs=0.2)}


def test_texts_of_test_rows_change_nothing_that_is_learned(example: Any) -> None:
    problem = Problem.of(example.store, "entailment")
    texts = tell(example.truth["entailment"])
    one = text_baseline(texts, problem, alphas=[1.0])
    texts[np.flatnonzero(problem.split.test)[1:]] = "ball! " * 50 + "unheard of"
    other = text_baseline(texts, problem, alphas=[1.0])
    kept = problem.split.folds >= 0
    kept[np.flatnonzero(problem.split.test)[0]] = True
    np.testing.assert_array_equal(other[kept], one[kept])


def test_texts_that_cannot_be_used_are_errors_with_the_way_out(example: Any) -> None:
    problem = Problem.of(example.store, "entailment")
    for texts, text in (
        (["a"], "1 texts for 240 samples: give one per sample"),
        ([" "] * 240, "all texts of a training part are empty: give the samples' prompts"),
    ):
        with pytest.raises(InputError, match=text):
            text_baseline(texts, problem)
    assert np.isfinite(text_baseline(["?"] * 240, problem, alphas=[1.0])[example.used]).all()
