"""The demo's data: scenes of coloured shapes in COCO's format, with captions that hold and hard ones that do not.

A caption that does not hold is one that does, with an attribute, a relation or an object exchanged. It is false by
construction, since no scene has two shapes of one category or of one colour; and as categories, colours and relations
are drawn evenly for both, the text of a caption alone does not tell whether it holds.
"""

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from PIL import Image

from sonde.errors import InputError

from .shapes import COLOURS, SHAPES, Shape, area, render

# Leftwards, rightwards, upwards, downwards.
_RELATIONS = ("left of", "right of", "above", "below")
_PLACES = ("on the left", "on the right", "at the top", "at the bottom")
_OPPOSITES = {words[i]: words[i ^ 1] for words in (_RELATIONS, _PLACES) for i in range(4)}
_NUMBERS = ("no", "one", "two", "three", "four")
_WORDINGS = 3
# As a share of the picture's side: what is nearer along both axes has no clear relation.
_CLEAR = 0.15


@dataclass(frozen=True, slots=True)
class Statement:
    """What a caption says.

    Attributes
    ----------
    things
        One or two shapes as (colour, category).
    relation
        The place of the one in the picture, or of the first to the second; empty if the shapes are only counted.
    count
        How many shapes the scene has; said if there is no relation.
    wording
        Which of the forms of words is used.
    """

    things: tuple[tuple[str, str], ...]
    relation: str = ""
    count: int = 0
    wording: int = 0

    def text(self) -> str:
        """The caption."""
        nouns = [f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {category}" for colour, category in self.things]
        listed = " and ".join(nouns)
        if self.relation and len(nouns) == 1:
            place = f"{self.relation} of the picture"
            forms = (f"{listed} {place}", f"there is {listed} {place}", f"{place} is {listed}")
        elif self.relation:
            first, second = nouns
            verbless = f"{first} {self.relation} {second}"
            forms = (verbless, f"there is {verbless}", f"{first} is {self.relation} {second}")
        else:
            among = "" if self.count == len(nouns) else "among them "
            shapes = f"{_NUMBERS[self.count]} shape{'s' * (self.count > 1)}, {among}{listed}"
            verb = "are" if self.count > 1 else "is"
            forms = (shapes, f"there {verb} {shapes}", f"a picture of {shapes}")
        form = forms[self.wording]
        return f"{form[0].upper()}{form[1:]}."


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture, what it shows, and what can be said of it.

    Attributes
    ----------
    shapes
        One to four, of different categories and colours.
    image
        The picture, RGB.
    captions
        True statements, each with one made from it that is false, and what was exchanged.
    """

    shapes: tuple[Shape, ...]
    image: Image.Image
    captions: tuple[tuple[Statement, Statement, str], ...]


def draw_scenes(seed: int | str, *, size: int = 96, training: bool = False) -> Iterator[Scene]:
    """Draw scenes without end.

    What a scene shows decides by a hash on which side it is: a set of two or more coloured shapes, or a single one at
    its place, is either trained on or asked about, whatever the seeds.

    Parameters
    ----------
    seed
        Draws everything.
    size
        Side of the square images in pixels.
    training
        Whether the scenes are those that the demo's model may be trained on; else those that it is asked about.
    """
    rng = random.Random(seed)
    used = dict.fromkeys(SHAPES, 0)
    while True:
        shapes = _shapes(rng, size, used)
        if is_for_training(shapes, size) != training:
            continue
        for shape in shapes:
            used[shape.category] += 1
        image = render(shapes, size, rng)
        statements = _statements(shapes, size, rng)
        captions = [(statement, *_falsify(statement, shapes, rng)) for statement in statements]
        yield Scene(shapes, image, tuple(captions))


def is_for_training(shapes: Sequence[Shape], size: int) -> bool:
    """On which of the two sides a scene is; the order of its shapes does not matter."""
    what = sorted(f"{shape.colour} {shape.category}" for shape in shapes)
    if len(shapes) == 1:
        # Without its place, the words of a caption would tell whether the scene can be: there are few such scenes.
        what.append(f"{int(8 * shapes[0].x / size)} {int(8 * shapes[0].y / size)}")
    return sha256("|".join(what).encode()).digest()[0] % 2 == 1


def write_scenes(
    folder: str | Path, *, n_images: int = 240, seed: int = 0, size: int = 96, name: str = "scenes"
) -> Path:
    """Render scenes of coloured shapes and write them in COCO's format.

    The scenes are such as the demo's model was not trained on; see `draw_scenes`. Makes ``images/*.png`` and
    ``annotations/{captions,instances,negatives}_<name>.json``. The negatives have the captions' layout, and besides
    ``type`` (what was exchanged: ``attribute``, ``relation`` or ``object``) and ``caption_id`` (the true caption that
    it was made from). The same arguments give the same bytes.

    Parameters
    ----------
    folder
        Where to write; made if need be.
    n_images
        How many scenes, each of one to four shapes; every category is in about a fifth of them.
    seed
        Draws everything.
    size
        Side of the square images in pixels, at least 32.
    name
        Name of the data set, as in the names of its files.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    InputError
        If there would be no image, or images too small to tell shapes apart.
    """
    if n_images < 1:
        raise InputError(f"{n_images} scenes are no data set: make at least one")
    if size < 32:
        raise InputError(f"shapes cannot be told apart in {size} pixels: make scenes at least 32 pixels wide")
    folder = Path(folder)
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    negatives: list[dict[str, Any]] = []
    for image_id, scene in enumerate(islice(draw_scenes(seed, size=size), n_images), start=1):
        file_name = f"{name}_{image_id:06d}.png"
        scene.image.save(folder / "images" / file_name)
        images.append({"id": image_id, "file_name": file_name, "width": size, "height": size})
        for shape in scene.shapes:
            objects.append({"id": len(objects) + 1, "image_id": image_id, **_instance(shape)})
        for statement, untrue, kind in scene.captions:
            entry = {"id": len(captions) + 1, "image_id": image_id}
            captions.append({**entry, "caption": statement.text()})
            negatives.append({**entry, "caption": untrue.text(), "type": kind, "caption_id": entry["id"]})
    head: dict[str, Any] = {
        "info": {"description": f"scenes of coloured shapes, rendered by sonde, seed {seed}", "version": "1"},
        "licenses": [],
        "images": images,
    }
    categories = [{"id": i, "name": shape, "supercategory": "shape"} for i, shape in enumerate(SHAPES, start=1)]
    contents: dict[str, dict[str, Any]] = {
        "captions": {"annotations": captions},
        "instances": {"annotations": objects, "categories": categories},
        "negatives": {"annotations": negatives},
    }
    for kind, content in contents.items():
        (folder / "annotations" / f"{kind}_{name}.json").write_text(json.dumps(head | content), encoding="utf-8")
    return folder


def _shapes(rng: random.Random, size: int, used: dict[str, int]) -> tuple[Shape, ...]:
    """Draw one to four shapes that differ in category and colour and do not touch, first of categories little used."""
    n_shapes = rng.choices((1, 2, 3, 4), weights=(3, 6, 6, 5))[0]
    # The least used first, so that every category is seen equally often however few the scenes are.
    categories = sorted(SHAPES, key=lambda category: (used[category], rng.random()))[:n_shapes]
    rng.shuffle(categories)
    colours = rng.sample(list(COLOURS), n_shapes)
    largest = 0.21 if n_shapes <= 2 else 0.175
    while True:
        shapes = []
        for category, colour in zip(categories, colours, strict=True):
            radius = size * rng.uniform(0.14, largest)
            margin = radius + 0.02 * size
            x, y = rng.uniform(margin, size - margin), rng.uniform(margin, size - margin)
            shapes.append(Shape(category, colour, x, y, radius, rng.uniform(-0.04, 0.04)))
        if _is_clear(shapes, size):
            return tuple(shapes)


def _is_clear(shapes: Sequence[Shape], size: int) -> bool:
    """Whether no two shapes touch and every relation (of a single shape: its place) is beyond doubt."""
    if len(shapes) == 1:
        return max(abs(shapes[0].x - size / 2), abs(shapes[0].y - size / 2)) > _CLEAR * size
    return all(
        math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 0.02 * size
        and max(abs(a.x - b.x), abs(a.y - b.y)) > _CLEAR * size
        for i, a in enumerate(shapes)
        for b in shapes[:i]
    )


def _statements(scene: Sequence[Shape], size: int, rng: random.Random) -> list[Statement]:
    """True statements about a scene: one that counts, and one relation (three or more shapes: two relations)."""

    def say(shapes: Sequence[Shape], relation: str = "") -> Statement:
        things = tuple((shape.colour, shape.category) for shape in shapes)
        return Statement(things, relation, len(scene), rng.randrange(_WORDINGS))

    if len(scene) == 1:
        (shape,) = scene
        place = _along(shape.x - size / 2, shape.y - size / 2, _PLACES)
        return [say(scene), say(scene, place)]
    statements = [say(rng.sample(scene, 2))]
    for pair in rng.sample(list(combinations(scene, 2)), 2 if len(scene) > 2 else 1):
        first, second = rng.sample(pair, 2)
        statements.append(say((first, second), _along(first.x - second.x, first.y - second.y, _RELATIONS)))
    return statements


def _along(right: float, down: float, words: Sequence[str]) -> str:
    """The word for left, right, up or down, whichever way is farther."""
    left_word, right_word, up_word, down_word = words
    if abs(right) > abs(down):
        return right_word if right > 0 else left_word
    return down_word if down > 0 else up_word


def _falsify(statement: Statement, scene: Sequence[Shape], rng: random.Random) -> tuple[Statement, str]:
    """A statement of the same form that is false of the scene, and what was exchanged."""
    kind = rng.choice(("attribute", "object", "relation") if statement.relation else ("attribute", "object"))
    if kind == "relation":
        return replace(statement, relation=_OPPOSITES[statement.relation]), kind
    things = list(statement.things)
    place = rng.randrange(len(things))
    colour, category = things[place]
    if kind == "object":
        absent = [name for name in SHAPES if name not in {shape.category for shape in scene}]
        things[place] = (colour, rng.choice(absent))
    elif len(things) == 2 and rng.random() < 0.5:
        (first_colour, first), (second_colour, second) = things
        things = [(second_colour, first), (first_colour, second)]
    else:
        absent = [name for name in COLOURS if name not in {shape.colour for shape in scene}]
        things[place] = (rng.choice(absent), category)
    return replace(statement, things=tuple(things)), kind


def _instance(shape: Shape) -> dict[str, Any]:
    """A shape as COCO says it: category, outline, area and box in pixels."""
    outline = shape.outline
    left, top = (min(point[axis] for point in outline) for axis in (0, 1))
    right, bottom = (max(point[axis] for point in outline) for axis in (0, 1))
    return {
        "category_id": list(SHAPES).index(shape.category) + 1,
        "segmentation": [[round(value, 2) for point in outline for value in point]],
        "area": round(area(outline), 2),
        "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
        "iscrowd": 0,
    }
