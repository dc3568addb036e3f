"""The recognition task: which categories of objects an image shows."""

import random

from sonde.engine.coco import Coco
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

from .prompts import load_prompt


def recognition(coco: Coco, *, cue: bool = False, limit: int | None = None, seed: int = 0, prompt: int = 0) -> Dataset:
    """One sample per image, with the names of the categories present as its label.

    The multi-label column ``objects`` holds the names in order of the categories' ids; the data set's classes are
    all categories in that order, so that 80 categories make 80 binary targets.

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
    text = load_prompt("recognition", cue=cue, index=prompt).format(categories=", ".join(names.values()))
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
            )
            for image, path in zip(images, coco.paths(images), strict=True)
        ),
        classes={"objects": tuple(names.values())},
        root=coco.images_folder,
    )
