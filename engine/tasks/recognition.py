"""The recognition task: which categories of objects an image shows."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from sonde.engine.coco import Coco, CocoImage
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

from .asked import Asked
from .drawing import drawn
from .prompts import ASKED, fill, load_prompt

_SEPARATOR = ", "

Asking = Callable[[CocoImage, Path, str], Iterator[Sample]]
"""Makes the samples of one image, of its file and a prompt."""


def recognition(
    coco: Coco,
    *,
    cue: bool | str = False,
    limit: int | None = None,
    seed: int = 0,
    prompt: int = 0,
    balance: bool = False,
    prompts: Path | None = None,
    asked_per_image: int = 2,
) -> Dataset:
    """One sample per image, with the names of the categories present as its label; or some that each ask for one.

    The multi-label column ``objects`` holds the names in order of the categories' ids; the data set's classes are
    all categories in that order, so that 80 categories make 80 binary targets. With the cue each category's name is a
    span of the prompt by that name.

    With the cue ``"asked"`` each prompt names one category, ``asked`` says which (and is the span ``category``), and
    ``present`` whether the image shows it: of each image as many that it shows as that it does not, drawn so that the
    name alone does not tell (see `Asked`). Images without objects are left out. The id is
    ``<image>-<category>-<1 or 0>``, with the category's id in its file.

    Parameters
    ----------
    coco
        Annotated images.
    cue
        Whether the prompt names all categories: the vocabulary, never which are present; ``"asked"``: one of them.
    limit
        At most this many samples, of images drawn by `seed`; None for all.
    seed
        Draws the images, and the categories that are asked for.
    prompt
        Which paraphrase of the prompt, from 0.
    balance
        Whether images of rare categories are drawn first; see `drawn`.
    prompts
        A file of the user's own prompts; see `load_prompts`.
    asked_per_image
        How many categories each image is asked for, an even number. One that shows fewer than half of them is asked
        for fewer.

    Raises
    ------
    InputError
        If an option is out of range or an image file is missing.
    """
    template = load_prompt("recognition", cue=cue, index=prompt, file=prompts)
    per_image = _checked(asked_per_image) if cue == ASKED else 1
    if limit is not None and limit < per_image:
        raise InputError(f"limit {limit} leaves no samples: give {per_image} or more, or leave it out for all")
    n_images = None if limit is None else limit // per_image
    images = [image for image in draw_images(coco, n_images, seed, balance) if cue != ASKED or coco.objects[image.id]]
    if not images:
        raise InputError(f"no image of {coco.name!r} shows an object: there is nothing to ask for")
    # Images that are no random part of all have prevalences of their own.
    ask = asking(coco, cue, seed, asked_per_image, images if balance else None)
    return Dataset(
        samples=tuple(
            sample
            for image, path in zip(images, coco.paths(images), strict=True)
            for sample in ask(image, path, template)
        ),
        classes=classes_of(coco, cue),
        root=coco.images_folder,
        derived_spans=True,
    )


def draw_images(coco: Coco, n_images: int | None, seed: int, balance: bool) -> list[CocoImage]:
    """All images, or some drawn by the seed, in the order of the file."""
    if n_images is None or n_images >= len(coco.images):
        return list(coco.images)
    if balance:
        chosen = {image.id for image in islice(drawn(coco, seed, balance=True), n_images)}
        return [image for image in coco.images if image.id in chosen]
    places = random.Random(seed).sample(range(len(coco.images)), n_images)
    return [coco.images[place] for place in sorted(places)]


def classes_of(coco: Coco, cue: bool | str) -> dict[str, tuple[str, ...]]:
    """The classes of the labels that a cue's samples have."""
    return {"asked" if cue == ASKED else "objects": tuple(category.name for category in coco.categories)}


def asking(
    coco: Coco, cue: bool | str, seed: int, asked_per_image: int = 2, drawn_from: Sequence[CocoImage] | None = None
) -> Asking:
    """What makes the samples of an image for a cue.

    Parameters
    ----------
    drawn_from
        The images over which the name of an asked category alone is not to tell; None: all.

    Raises
    ------
    InputError
        If the number of categories to ask for is odd or none.
    """
    if cue != ASKED:
        return _ask_for_all(coco, bool(cue))
    return _ask_for_some(Asked(coco, _checked(asked_per_image), seed, drawn_from or coco.images))


def _checked(asked_per_image: int) -> int:
    if asked_per_image < 2 or asked_per_image % 2:
        raise InputError(f"asked_per_image {asked_per_image} cannot be half present and half absent: give 2, 4, …")
    return asked_per_image


def _ask_for_all(coco: Coco, cue: bool) -> Asking:
    names = {category.id: category.name for category in coco.categories}
    vocabulary = _SEPARATOR.join(names.values())
    # Samples of one prompt share their spans.
    known: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {}

    def ask(image: CocoImage, path: Path, template: str) -> Iterator[Sample]:
        if template not in known:
            text, places = fill(template, {"categories": vocabulary})
            known[template] = text, _name_spans(tuple(names.values()), places["categories"][0]) if cue else {}
        text, spans = known[template]
        yield Sample(
            id=str(image.id),
            prompt=text,
            images=(path,),
            group=str(image.id),
            labels={"objects": tuple(names[category] for category in coco.objects[image.id])},
            spans=spans,
        )

    return ask


def _ask_for_some(draw: Asked) -> Asking:
    def ask(image: CocoImage, path: Path, template: str) -> Iterator[Sample]:
        for category, present in draw(image):
            text, where = fill(template, {"category": category.name})
            yield Sample(
                id=f"{image.id}-{category.id}-{present}",
                prompt=text,
                images=(path,),
                group=str(image.id),
                labels={"present": present, "asked": category.name},
                spans={"category": where["category"]},
            )

    return ask


def _name_spans(names: Sequence[str], start: int) -> dict[str, tuple[int, int]]:
    """Where each name stands, if the first begins at ``start``."""
    spans = {}
    for name in names:
        if name.strip():
            spans[name] = (start, start + len(name))
        start += len(name) + len(_SEPARATOR)
    return spans
