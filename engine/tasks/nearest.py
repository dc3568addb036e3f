"""Captions of other images that read most like a caption."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sonde.engine.coco import CocoCaption
from sonde.errors import InputError

# Words of more captions than this share say little, and would make every caption a candidate.
_COMMON = 0.05


class Nearest:
    """Finds the caption of another image with the largest cosine similarity of TF-IDF vectors.

    Words that a twentieth of all captions have are left out where there are many captions. Salton and Buckley,
    *Term-weighting approaches in automatic text retrieval* (1988).

    Parameters
    ----------
    captions
        By image id.

    Raises
    ------
    InputError
        If the captions have no words but those that most of them have.
    """

    def __init__(self, captions: Mapping[int, Sequence[CocoCaption]]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._captions = [caption for of_image in captions.values() for caption in of_image]
        self._rows = {(caption.image_id, caption.id): row for row, caption in enumerate(self._captions)}
        self._images = np.array([caption.image_id for caption in self._captions])
        texts = [caption.text for caption in self._captions]
        # A word that two captions have is one of them already in a handful.
        common = _COMMON if len(texts) > 100 / _COMMON else 1.0
        vectorizer = TfidfVectorizer(dtype=np.float32, max_df=common, token_pattern=r"\w+")
        try:
            vectors: Any = vectorizer.fit_transform(texts)
        except ValueError as error:
            raise InputError(
                f"the captions cannot be compared by their words ({error}): choose other data.negatives"
            ) from error
        self._vectors, self._by_word = vectors.tocsr(), vectors.T.tocsr()

    def __call__(self, caption: CocoCaption, allowed: Callable[[CocoCaption], bool]) -> CocoCaption | None:
        """The caption most alike of those of other images that are allowed; None if none has a word in common."""
        similar = (self._vectors[self._rows[caption.image_id, caption.id]] @ self._by_word).tocoo()
        others = self._images[similar.col] != caption.image_id
        rows, values = similar.col[others], similar.data[others]
        # Of captions as alike the first: what is found does not depend on how the product was computed.
        for place in np.lexsort((rows, -values)):
            found: CocoCaption = self._captions[rows[place]]
            if allowed(found):
                return found
        return None
