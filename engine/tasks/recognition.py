"""The recognition task: which categories of objects an image shows."""

import random
from collections.abc import Sequence

from sonde.engine.coco import Coco
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

from .prompts import fill, load_prompt

_SEPARATOR = ", "


def recognition(coco: Coco, *, cue: bool = False, limit: int | None = None, seed: int = 0, prompt: int = 0) -> Dataset:
    """One sample per image, with the names of the categories present as its label.

    The multi-label column ``objects`` holds the names in order of the categories' ids; the data set's classes are
    all categories in that order, so that 80 categories make 80 binary targets. With the cue each category's name is a
    span of the prompt by that name.

    Parameters
    ----------
    coco
        Annotated images.
    cue
        Whether the prompt names all categories: the vocabulary, never which are present.
    limit
        At most this many samples, drawn at random by `seed`; None for all.
    seed
        Draws the images.
    prompt
        Which paraphrase of the prompt, from 0.

    Raises
    ------
    InputError
        If an option is out of range or an image file is missing.
    """
    names = {category.id: category.name for category in coco.categories}
    template = load_prompt("recognition", cue=cue, index=prompt)
    text, places = fill(template, {"categories": _SEPARATOR.join(names.values())})
    spans = _name_spans(tuple(names.values()), places["categories"][0]) if cue else {}
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} leaves no samples: give a positive number, or leave it out for all")
    images = list(coco.images)
    if limit is not None and limit < len(images):
        # Places are drawn, not images, so that the order of the file is kept.
        drawn = random.Random(seed).sample(range(len(images)), limit)
        images = [images[place] for place in sorted(drawn)]
    return Dataset(
        samples=tuple(
            Sample(
                id=str(image.id),
                prompt=text,
                images=(path,),
                group=str(image.id),
                labels={"objects": tuple(names[category] for category in coco.objects[image.id])},
                spans=spans,
            )
            for image, path in zip(images, coco.paths(images), strict=True)
        ),
        classes={"objects": tuple(names.values())},
        root=coco.images_folder,
        derived_spans=True,
    )


def _name_spans(names: Sequence[str], start: int) -> dict[str, tuple[int, int]]:
    """Where each name stands, if the first begins at ``start``."""
    spans = {}
    for name in names:
        if name.strip():
            spans[name] = (start, start + len(name))
        start += len(name) + len(_SEPARATOR)
    return spans
