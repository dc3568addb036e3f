"""Categories that are asked for one at a time: some that an image shows, and as many that it does not."""

import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from sonde.engine.coco import Coco, CocoCategory, CocoImage

_ROUNDS = 100
_CLOSE = 1e-3
_LEAST = 1e-9


class Asked:
    """Draws the categories that each image is asked for.

    Of those that the image shows up to ``per_image / 2`` are drawn evenly, and as many of the others. A category is to
    be asked for as often where it is absent as where it is present, so that its name alone does not tell the answer:
    that needs weights w, for which over all images i, of n_i absent ones asked for,

        sum over i without c of  n_i w_c / (sum over c' not in i of w_c')  =  how often c is asked for where present.

    They are found by proportional fitting (Deming and Stephan, 1940). Of a category that nearly every image shows they
    cannot be: its name tells.

    Parameters
    ----------
    coco
        Annotated images.
    per_image
        Categories of one image, an even number.
    seed
        What is drawn for an image depends on nothing but the seed, the weights, and the image's id.
    images
        Those over which the name alone is not to tell.
    """

    def __init__(self, coco: Coco, per_image: int, seed: int, images: Iterable[CocoImage]) -> None:
        self._coco, self._half, self._seed = coco, per_image // 2, seed
        self._places = {category.id: place for place, category in enumerate(coco.categories)}
        sets = Counter(objects for image in images if (objects := coco.objects[image.id]))
        present_SC = np.zeros((len(sets), len(self._places)), dtype=bool)
        for row, objects in enumerate(sets):
            present_SC[row, [self._places[category] for category in objects]] = True
        self._weights = _fit(present_SC, np.array(list(sets.values())), self._half)

    def __call__(self, image: CocoImage) -> list[tuple[CocoCategory, int]]:
        """Categories and whether the image shows them, first those that it does.

        Of an image that shows none, or all that any image shows, there are none.
        """
        there = [self._places[category] for category in self._coco.objects[image.id]]
        weights = self._weights.copy()
        weights[there] = 0
        rng = random.Random(f"{self._seed}-asked-{image.id}")
        present = rng.sample(there, min(self._half, len(there), int((weights > 0).sum())))
        absent = []
        for _ in present:
            absent += rng.choices(range(len(weights)), weights.tolist())
            weights[absent] = 0
        return [
            (self._coco.categories[place], answer) for answer, places in ((1, present), (0, absent)) for place in places
        ]


def _fit(present_SC: NDArray[np.bool_], images_S: NDArray[np.int64], half: int) -> NDArray[np.float64]:
    """Find the weights of absent categories.

    Parameters
    ----------
    present_SC
        Which sets of categories that images show have which category, bool ``[set, category]``.
    images_S
        How many images show just these, int64 ``[set]``.
    half
        At most this many of each are asked for.

    Returns
    -------
    float64 ``[category]``; zero for those that no image shows.
    """
    absent_SC, shown_S = (~present_SC).astype(np.float64), present_SC.sum(axis=1)
    asked_S = images_S * np.minimum(half, np.minimum(shown_S, (present_SC.any(axis=0) & ~present_SC).sum(axis=1)))
    wanted_C = (asked_S / shown_S) @ present_SC
    weight_C: NDArray[np.float64] = wanted_C.copy()
    for _ in range(_ROUNDS):
        sums_S = absent_SC @ weight_C
        expected_C = weight_C * (np.divide(asked_S, sums_S, out=np.zeros(len(sums_S)), where=sums_S > 0) @ absent_SC)
        if np.abs(expected_C - wanted_C).max(initial=0) <= _CLOSE * wanted_C.max(initial=0):
            break
        # A category that all images show is absent from none, whatever its weight.
        weight_C *= np.divide(wanted_C, expected_C, out=np.ones(len(wanted_C)), where=expected_C > 0)
        # Where there is no solution some weights grow without end: the others remain more than nothing.
        weight_C = np.maximum(weight_C / weight_C.max(), _LEAST) * (wanted_C > 0)
    return weight_C
