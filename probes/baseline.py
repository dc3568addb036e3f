"""What the words alone say: a bag of words and characters in place of the activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .metrics import score_probabilities
from .problem import Problem
from .ridge import alpha_array, best_alpha

ALPHAS = np.logspace(-3, 2, 6)
"""Penalties that are tried unless the user gives others."""


def text_baseline(texts: Sequence[str], problem: Problem, *, alphas: Any = ALPHAS) -> NDArray[np.float64]:
    """Score every sample by the TF-IDF of its text, as `sonde.probes.fit_layer` scores it by its activations.

    Features are TF-IDF of words and pairs of words, and of 2 to 5 characters inside a word, with the vocabulary of
    the training part; probes are scikit-learn's logistic regression, for numbers ridge. The penalty is chosen by
    log-loss, for numbers by squared error, on the held-out folds: for each target, or for all classes of one question.

    Parameters
    ----------
    texts : sequence of str, length N
        Text of each sample, such as its prompt.
    problem
        Targets, test rows and folds.
    alphas
        Penalties to choose from: 1/C of scikit-learn's logistic regression, ``alpha`` of its ridge. Ties go to the
        strongest.

    Returns
    -------
    float64 array of shape [N, T]
        Test rows by the probe of all training rows, training rows by the probe that did not see their fold; NaN
        elsewhere. Probabilities, or for numbers the regression's values.

    Raises
    ------
    InputError
        If there is not one text per sample, all texts of a training part are empty, or a penalty is not positive.
    """
    if len(texts) != len(problem.y):
        raise InputError(f"{len(texts)} texts for {len(problem.y)} samples: give one per sample")
    alphas = alpha_array(alphas)
    corpus = np.asarray(texts, dtype=object)
    folds, n_folds, test = problem.split.folds, problem.split.n_folds, problem.split.test
    training = folds >= 0
    tried = np.full((alphas.size, *problem.y.shape), np.nan)
    for fold in range(n_folds):
        held_out = folds == fold
        x, x_held_out = _features(corpus[training & ~held_out], corpus[held_out])
        for a, alpha in enumerate(alphas.tolist()):
            tried[a, held_out] = _predict(x, problem.y[training & ~held_out], x_held_out, alpha, problem)
    loss = np.stack([_loss(problem, scores, training) for scores in tried])
    alpha_of = np.broadcast_to(best_alpha(alphas, loss), (len(problem.targets),))
    scores = np.full(problem.y.shape, np.nan)
    x, x_test = _features(corpus[training], corpus[test])
    for alpha in np.unique(alpha_of).tolist():
        mine = alpha_of == alpha
        scores[:, mine] = tried[alphas.tolist().index(alpha)][:, mine]
        scores[np.ix_(test, mine)] = _predict(x, problem.y[training][:, mine], x_test, alpha, problem)
    return scores


def _features(training: NDArray[Any], held_out: NDArray[Any]) -> tuple[Any, Any]:
    """Return sparse TF-IDF of both, with the vocabulary and frequencies of the first."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    if not any(text.strip() for text in training):
        raise InputError("all texts of a training part are empty: give the samples' prompts")
    # Marks are words too, and so are single letters: no text but an empty one is without words.
    words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True)
    characters = TfidfVectorizer(ngram_range=(2, 5), analyzer="char_wb", sublinear_tf=True)
    union = make_union(words, characters)
    return union.fit_transform(training), union.transform(held_out)


def _predict(x: Any, y: NDArray[np.float64], x_held_out: Any, alpha: float, problem: Problem) -> NDArray[np.float64]:
    """Return scores ``[row, target]`` of the held-out rows."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if problem.kind == "regression":
        return np.asarray(Ridge(alpha).fit(x, y).predict(x_held_out)).reshape(-1, y.shape[1])
    model = LogisticRegression(C=1 / alpha, max_iter=1000)
    if problem.kind == "multiclass":
        return np.asarray(model.fit(x, y.argmax(axis=1)).predict_proba(x_held_out))
    return np.column_stack([model.fit(x, target).predict_proba(x_held_out)[:, 1] for target in y.T])


def _loss(problem: Problem, scores: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    if problem.kind == "regression":
        return np.asarray(((problem.y[rows] - scores[rows]) ** 2).mean(axis=0))
    return score_probabilities(problem.kind, problem.truth(rows), scores[rows])["log_loss"]
