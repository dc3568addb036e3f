"""In which order images are drawn where not all are used."""

import heapq
import random
from collections.abc import Iterator, Sequence

from sonde.engine.coco import Coco, CocoImage


def drawn(coco: Coco, seed: int, *, balance: bool = False) -> Iterator[CocoImage]:
    """Draw all images, one after the other.

    Parameters
    ----------
    coco
        Annotated images.
    seed
        Of the order.
    balance
        Whether each is one of the category that the images before it show least often, as long as there are any: the
        first n of them show rare categories as often as can be. Images without objects come last.
    """
    images = list(coco.images)
    random.Random(seed).shuffle(images)
    return _balanced(coco, images) if balance else iter(images)


def _balanced(coco: Coco, images: Sequence[CocoImage]) -> Iterator[CocoImage]:
    waiting: dict[int, list[CocoImage]] = {category.id: [] for category in coco.categories}
    for image in reversed(images):
        for shown in coco.objects[image.id]:
            waiting[shown].append(image)
    seen = dict.fromkeys(waiting, 0)
    # Of categories seen as often the one with fewest images comes first.
    queue = [(0, len(stack), category) for category, stack in waiting.items()]
    heapq.heapify(queue)
    taken: set[int] = set()
    while queue:
        n_seen, n_images, category = heapq.heappop(queue)
        stack = waiting[category]
        while stack and stack[-1].id in taken:
            stack.pop()
        if not stack:
            continue
        if n_seen == seen[category]:
            image = stack.pop()
            taken.add(image.id)
            for shown in coco.objects[image.id]:
                seen[shown] += 1
            yield image
        heapq.heappush(queue, (seen[category], n_images, category))
    yield from (image for image in images if image.id not in taken)
