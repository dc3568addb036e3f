"""The entailment task: does a caption hold of the image, or not."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from sonde.engine.coco import Coco, CocoCaption, CocoImage
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

from .drawing import drawn
from .edit import Editor
from .nearest import Nearest
from .prompts import fill, load_prompt

Pair = tuple[CocoCaption, CocoCaption]
"""A caption that holds of an image, and one that does not."""

Pairing = Callable[[CocoImage, random.Random], Pair | None]
"""Finds a pair for an image, or None if the image has none; draws from its own stream of random numbers."""


def entailment(
    coco: Coco,
    *,
    negatives: str = "swap",
    cue: bool | str = False,
    limit: int | None = None,
    seed: int = 0,
    prompt: int = 0,
    balance: bool = False,
    prompts: Path | None = None,
) -> Dataset:
    """Two samples per image: one with a caption that holds (``entailment`` is 1), one with one that does not (0).

    The group is the image, so that a pair never straddles a split. The id is ``<image>-<caption>-<1 or 0>``, with
    the id of the annotation that the caption, or the one it was made from, has in its file. The caption is the span
    ``caption`` of the prompt.

    Parameters
    ----------
    coco
        Annotated images.
    negatives
        Where the caption that does not hold is from. ``swap``: from ``negatives_<name>.json`` if there is one, paired
        with the true caption that it was made from; else the true caption with one word exchanged (see `Editor`), and
        images whose captions cannot be edited are left out. ``random``: a caption of another image.
        ``shared-category``: a caption of the image whose set of categories is most alike (largest Jaccard index
        |A ∩ B| / |A ∪ B|; ties are drawn). ``nearest``: the caption of another image that reads most like the true one
        (see `Nearest`). A caption of another image is not checked against the image beyond differing from all of its
        own.
    cue
        Whether the prompt names all categories: the vocabulary, never which are present.
    limit
        At most this many samples, of images drawn by `seed`; None for all.
    seed
        Draws images and captions. What is drawn for an image depends on nothing but the seed and the image's id.
    prompt
        Which paraphrase of the prompt, from 0.
    balance
        Whether images of rare categories are drawn first; see `drawn`.
    prompts
        A file of the user's own prompts; see `load_prompts`.

    Raises
    ------
    InputError
        If an option is out of range, no image has a pair, or an image file is missing.
    """
    if limit is not None and limit < 2:
        raise InputError(f"limit {limit} is less than one pair of captions: give at least 2, or leave it out for all")
    template = load_prompt("entailment", cue=_checked_cue(cue), index=prompt, file=prompts)
    pairs = draw_pairs(coco, negatives, None if limit is None else limit // 2, seed, balance=balance)
    images = [image for image in coco.images if image.id in pairs]
    vocabulary = vocabulary_of(coco)
    samples = [
        sample
        for image, path in zip(images, coco.paths(images), strict=True)
        for sample in ask(image, path, pairs[image.id], template, vocabulary)
    ]
    return Dataset(tuple(samples), root=coco.images_folder, derived_spans=True)


def _checked_cue(cue: bool | str) -> bool:
    if not isinstance(cue, bool):
        raise InputError(f"the task 'entailment' has no cue {cue!r}: say true or false")
    return cue


def vocabulary_of(coco: Coco) -> str:
    """All categories by name, as a cue says them."""
    return ", ".join(category.name for category in coco.categories)


def ask(image: CocoImage, path: Path, pair: Pair, template: str, vocabulary: str) -> Iterator[Sample]:
    """The samples of one image: with its caption that holds, and with the other."""
    for label, caption in zip((1, 0), pair, strict=True):
        text, places = fill(template, {"caption": caption.text, "categories": vocabulary})
        yield Sample(
            id=f"{image.id}-{caption.id}-{label}",
            prompt=text,
            images=(path,),
            group=str(image.id),
            labels={"entailment": label},
            spans={"caption": places["caption"]} if caption.text else {},
        )


def draw_pairs(
    coco: Coco, negatives: str, n_images: int | None, seed: int, *, balance: bool = False
) -> dict[int, Pair]:
    """Pairs by image id: of all images that have one, or of as many drawn ones as are wanted.

    Raises
    ------
    InputError
        If there are no such negatives, or no image has a pair.
    """
    if negatives not in NEGATIVES:
        raise InputError(f"unknown negatives {negatives!r}: there are {', '.join(NEGATIVES)}")
    pairing = NEGATIVES[negatives](coco)
    pairs: dict[int, Pair] = {}
    for image in coco.images if n_images is None else drawn(coco, seed, balance=balance):
        if n_images is not None and len(pairs) >= n_images:
            break
        pair = pairing(image, random.Random(f"{seed}-{image.id}")) if coco.captions[image.id] else None
        if pair is not None:
            pairs[image.id] = pair
    if not pairs:
        raise InputError(
            f"no image of {coco.name!r} has a caption that holds and, by negatives={negatives!r}, one that does not: "
            f"try another of {', '.join(NEGATIVES)}"
        )
    return pairs


def _swap(coco: Coco) -> Pairing:
    return _written(coco) if coco.negatives else _edited(coco)


def _written(coco: Coco) -> Pairing:
    """Negatives that came with the data."""

    def pairing(image: CocoImage, rng: random.Random) -> Pair | None:
        candidates = coco.negatives.get(image.id, ())
        if not candidates:
            return None
        false = rng.choice(candidates)
        captions = coco.captions[image.id]
        sources = [caption for caption in captions if caption.id == false.source]
        return rng.choice(sources or captions), false

    return pairing


def _edited(coco: Coco) -> Pairing:
    """True captions with one word exchanged."""
    names = {category.id: category.name for category in coco.categories}
    counts = Counter(category for present in coco.objects.values() for category in present)
    editor = Editor.for_categories({name: counts[category] for category, name in names.items()})

    def pairing(image: CocoImage, rng: random.Random) -> Pair | None:
        captions = coco.captions[image.id]
        present = [names[category] for category in coco.objects[image.id]]
        for true in rng.sample(captions, len(captions)):
            false = editor.falsify(true, captions, present, rng)
            if false is not None:
                return true, false
        return None

    return pairing


def _random(coco: Coco) -> Pairing:
    """Captions of any other image."""
    pool = [image.id for image in coco.images if coco.captions[image.id]]

    def pairing(image: CocoImage, rng: random.Random) -> Pair | None:
        return _with_foreign(coco, image, pool, rng)

    return pairing


def _shared_category(coco: Coco) -> Pairing:
    """Captions of the images whose categories are most alike."""
    pools: dict[tuple[int, ...], list[int]] = {}
    for image in coco.images:
        if coco.captions[image.id]:
            pools.setdefault(coco.objects[image.id], []).append(image.id)
    sets = list(pools)
    rows = {present: row for row, present in enumerate(sets)}
    columns = {category.id: column for column, category in enumerate(coco.categories)}
    # Sets as bits, 64 categories to a word: comparing one with all others takes few passes over little memory.
    words = len(columns) // 64 + 1
    present_SC = np.zeros((len(sets), 64 * words), dtype=bool)
    for row, present in enumerate(sets):
        present_SC[row, [columns[category] for category in present]] = True
    bits_WS = np.ascontiguousarray(np.packbits(present_SC, axis=1).view(np.uint64).T)
    sizes_S = present_SC.sum(axis=1)

    def pairing(image: CocoImage, rng: random.Random) -> Pair | None:
        own = coco.objects[image.id]
        pair = _with_foreign(coco, image, pools[own], rng)
        if pair is not None or len(sets) == 1:
            return pair
        row = rows[own]
        shared_S = np.bitwise_count(bits_WS & bits_WS[:, row, None]).sum(axis=0, dtype=np.int64)
        # No union is empty but that of the empty set with itself, and its own index is overwritten.
        jaccard_S = shared_S / np.maximum(sizes_S + sizes_S[row] - shared_S, 1)
        jaccard_S[row] = -1
        nearest = np.flatnonzero(jaccard_S == jaccard_S.max())
        return _with_foreign(coco, image, [other for index in nearest for other in pools[sets[index]]], rng)

    return pairing


def _nearest(coco: Coco) -> Pairing:
    """The caption of another image that reads most like the true one."""
    nearest = Nearest(coco.captions)

    def pairing(image: CocoImage, rng: random.Random) -> Pair | None:
        captions = coco.captions[image.id]
        own = {caption.text.casefold() for caption in captions}
        true = rng.choice(captions)
        false = nearest(true, lambda caption: caption.text.casefold() not in own)
        return None if false is None else (true, false)

    return pairing


def _with_foreign(coco: Coco, image: CocoImage, pool: Sequence[int], rng: random.Random) -> Pair | None:
    """A caption of the image and one of another image in `pool` that is none of the image's own."""
    captions = coco.captions[image.id]
    own = {caption.text.casefold() for caption in captions}
    if pool == [image.id]:
        return None
    # Drawing again is rare (captions differ, pools are large), so that a bound suffices where nothing can be found.
    for _ in range(100):
        other = rng.choice(pool)
        false = rng.choice(coco.captions[other])
        if other != image.id and false.text.casefold() not in own:
            return rng.choice(captions), false
    return None


NEGATIVES: dict[str, Callable[[Coco], Pairing]] = {
    "swap": _swap,
    "random": _random,
    "shared-category": _shared_category,
    "nearest": _nearest,
}
"""Sources of captions that do not hold, by name."""
