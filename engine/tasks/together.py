"""Several tasks, cues and prompts about the same images, as one data set."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sonde.engine.coco import Coco, CocoImage
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

from .entailment import ask as ask_of_captions
from .entailment import draw_pairs, vocabulary_of
from .prompts import ASKED, cue_name, load_prompt, load_prompts
from .recognition import asking, classes_of, draw_images

TASKS = ("entailment", "recognition")


def together(
    coco: Coco,
    tasks: Sequence[str],
    *,
    cues: Sequence[bool | str] = (False,),
    prompts: Sequence[int] | None = None,
    negatives: str = "swap",
    limit: int | None = None,
    seed: int = 0,
    balance: bool = False,
    file: Path | None = None,
    asked_per_image: int = 2,
) -> Dataset:
    """Ask all tasks, with all cues, in all paraphrases, about the same images.

    The samples of an image stand next to one another, so that an engine computes what they begin with once. Each has
    the labels of its task, as of `entailment` and `recognition`, and says by ``task``, ``cue`` (``no-cue``, ``cue``,
    ``asked``) and ``prompt`` (``p0``, …) which question it is. The same captions and categories are asked for in all
    paraphrases and cues. Its id is that of its task, with these three behind it.

    Parameters
    ----------
    coco
        Annotated images.
    tasks
        Names.
    cues
        False, True and ``"asked"`` (which only recognition has).
    prompts
        Numbers of the paraphrases; None: all.
    negatives, seed, balance
        As of `entailment`.
    limit
        At most this many images, drawn by `seed`; None for all. If captions are asked about, only images that have a
        pair count.
    file
        A file of the user's own prompts; see `load_prompts`.
    asked_per_image
        As of `recognition`.

    Raises
    ------
    InputError
        If an option is out of range, or an image file is missing.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise InputError(
            f"unknown task {unknown[0]!r}: there are {', '.join(TASKS)}" if unknown else "no task is given"
        )
    if limit is not None and limit < 1:
        raise InputError(f"limit {limit} leaves no images: give a positive number, or leave it out for all")
    pairs = {}
    if "entailment" in tasks:
        pairs = draw_pairs(coco, negatives, limit, seed, balance=balance)
        images = [image for image in coco.images if image.id in pairs]
    else:
        images = draw_images(coco, limit, seed, balance)
    questions = [
        (task, cue, number, load_prompt(task, cue=cue, index=number, file=file))
        for task in tasks
        for cue in cues
        if not (task == "entailment" and cue == ASKED)
        for number in (range(len(load_prompts(task, cue, file))) if prompts is None else prompts)
    ]
    if not questions:
        raise InputError("the cue 'asked' is of recognition alone: add that to the tasks, or another cue")
    vocabulary = vocabulary_of(coco)
    cues_of_objects = dict.fromkeys(cue for task, cue, _, _ in questions if task == "recognition")
    among = images if balance else None
    of_objects = {cue: asking(coco, cue, seed, asked_per_image, among) for cue in cues_of_objects}

    def ask(image: CocoImage, path: Path) -> Iterator[Sample]:
        for task, cue, number, template in questions:
            if task == "entailment":
                found = ask_of_captions(image, path, pairs[image.id], template, vocabulary)
            else:
                found = of_objects[cue](image, path, template)
            names = {"task": task, "cue": cue_name(cue), "prompt": f"p{number}"}
            for sample in found:
                name = "-".join((sample.id, *names.values()))
                yield replace(sample, id=name, labels={**names, **sample.labels})

    samples = tuple(s for image, path in zip(images, coco.paths(images), strict=True) for s in ask(image, path))
    classes = {name: of for cue in of_objects for name, of in classes_of(coco, cue).items()}
    return Dataset(samples, classes=classes, root=coco.images_folder, derived_spans=True)
