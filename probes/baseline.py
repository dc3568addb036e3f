"""What the words alone say: a bag of words and characters in place of the activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError

from .metrics import Kind, score_probabilities
from .problem import Problem
from .ridge import alpha_array, best_alpha

ALPHAS = np.logspace(-2, 2, 5)
"""Penalties that are tried unless the user gives others."""


def text_baseline(texts: Sequence[str], problem: Problem, *, alphas: Any = ALPHAS) -> NDArray[np.float64]:
    """Score every sample by the TF-IDF of its text, as `sonde.probes.fit_layer` scores it by its activations.

    Features are TF-IDF of words and pairs of words, and of 2 to 5 characters inside a word, with the vocabulary and
    frequencies of the distinct texts of the training part; probes are scikit-learn's logistic regression, for numbers
    ridge. The penalty is chosen by log-loss, for numbers by squared error, on the held-out folds: for each target, or
    for all classes of one question.

    Parameters
    ----------
    texts : sequence of str, length N
        Text of each sample, such as its prompt. Samples of one text cost no more than one.
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
    folds, training, test = problem.split.folds, problem.split.folds >= 0, problem.split.test
    tried = np.full((alphas.size, *problem.y.shape), np.nan)
    for fold in range(problem.split.n_folds):
        held_out = folds == fold
        tried[:, held_out] = _path(corpus, problem, training & ~held_out, held_out, alphas)
    loss = np.stack([_loss(problem, scores, training) for scores in tried])
    alpha_of = np.broadcast_to(best_alpha(alphas, loss), (len(problem.targets),))
    scores = np.full(problem.y.shape, np.nan)
    for alpha in np.unique(alpha_of):
        mine = alpha_of == alpha
        scores[:, mine] = tried[np.flatnonzero(alphas == alpha)[0]][:, mine]
        asked = replace(problem, y=problem.y[:, mine])
        scores[np.ix_(test, mine)] = _path(corpus, asked, training, test, np.array([alpha]))[0]
    return scores


def _path(
    corpus: NDArray[Any],
    problem: Problem,
    trained: NDArray[np.bool_],
    held_out: NDArray[np.bool_],
    alphas: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return scores ``[alpha, held-out row, target]`` of probes of the rows that are trained on."""
    texts, text_of = np.unique(corpus[trained], return_inverse=True)
    others, other_of = np.unique(corpus[held_out], return_inverse=True)
    x, x_other = _features(texts, others)
    answers = problem.truth(trained).reshape(len(text_of), -1)
    columns = [_answer(problem.kind, x, text_of, answer, x_other, alphas) for answer in answers.T]
    return np.concatenate(columns, axis=2)[:, other_of]


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


def _answer(
    kind: Kind, x: Any, text_of: NDArray[np.intp], y: NDArray[Any], x_other: Any, alphas: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return scores ``[alpha, text, column]`` of one question: a column per class, else one."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "regression":
        weight = np.bincount(text_of)
        ridge, mean = Ridge(), np.bincount(text_of, weights=y) / weight
        values = [ridge.set_params(alpha=a).fit(x, mean, sample_weight=weight).predict(x_other) for a in alphas]
        return np.stack(values)[:, :, None]
    # Rows of one text and answer are one row of their weight.
    count = np.zeros((x.shape[0], int(y.max()) + 1))
    np.add.at(count, (text_of, y.astype(np.intp)), 1)
    text, label = np.nonzero(count)
    x, weight = x[text], count[text, label]
    # At the default tolerance all of its solvers stop early at weak penalties.
    logistic = LogisticRegression(solver="newton-cg", tol=1e-5, warm_start=True)
    found = np.empty((alphas.size, x_other.shape[0], count.shape[1]))
    for i in np.argsort(-alphas):
        found[i] = logistic.set_params(C=1 / alphas[i]).fit(x, label, weight).predict_proba(x_other)
    return found if kind == "multiclass" else found[:, :, 1:]


def _loss(problem: Problem, scores: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
    if problem.kind == "regression":
        return np.asarray(((problem.y[rows] - scores[rows]) ** 2).mean(axis=0))
    return score_probabilities(problem.kind, problem.truth(rows), scores[rows])["log_loss"]
