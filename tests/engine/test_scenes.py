import json
import re
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sonde.engine.scenes import draw_scenes, write_scenes
from sonde.errors import InputError

# A painter's own idea of the colours, not the generator's table.
PALETTE = {
    "red": (220, 20, 40),
    "orange": (255, 150, 20),
    "yellow": (255, 220, 50),
    "green": (40, 140, 70),
    "blue": (30, 90, 230),
    "purple": (130, 50, 180),
    "pink": (255, 130, 190),
    "black": (20, 20, 20),
}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4}


@dataclass(frozen=True)
class Seen:
    """A shape as seen in the picture and its annotation, the centre being that of its box."""

    colour: str
    category: str
    x: float
    y: float


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), n_images=400, seed=3)


def read(folder: Path, kind: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "annotations" / f"{kind}_scenes.json").read_text())
    return content


def mask_of(polygon: list[float], size: int, share: float = 0.5) -> np.ndarray:
    """Pixels of a polygon, each counted if more than a share of it is inside."""
    image = Image.new("L", (4 * size, 4 * size))
    ImageDraw.Draw(image).polygon([4 * value for value in polygon], fill=255)
    return np.asarray(image.reduce(4)) > 255 * share


def look(folder: Path) -> dict[int, list[Seen]]:
    """Every image's shapes, their colours read off the pixels."""
    instances = read(folder, "instances")
    names = {category["id"]: category["name"] for category in instances["categories"]}
    pixels = {i["id"]: np.asarray(Image.open(folder / "images" / i["file_name"])) for i in instances["images"]}
    seen: dict[int, list[Seen]] = {image: [] for image in pixels}
    for entry in instances["annotations"]:
        image = pixels[entry["image_id"]]
        colour = np.median(image[mask_of(entry["segmentation"][0], len(image))], axis=0)
        name = min(PALETTE, key=lambda name: float(np.abs(colour - np.array(PALETTE[name])).sum()))
        left, top, width, height = entry["bbox"]
        seen[entry["image_id"]].append(Seen(name, names[entry["category_id"]], left + width / 2, top + height / 2))
    return seen


def holds(caption: str, scene: list[Seen], size: int = 96) -> bool:
    """Whether a caption is true of a scene: all its nouns are there, in the number and the relation it says."""
    text = caption.lower().rstrip(".")
    things = re.findall(rf"\ban? ({'|'.join(PALETTE)}) (\w+)", text)
    assert things, caption
    found = [[shape for shape in scene if (shape.colour, shape.category) == thing] for thing in things]
    if not all(found):
        return False
    number = re.search(r"(one|two|three|four) shapes?", text)
    if number:
        complete = "among them" in text or len(things) == len(scene)
        return NUMBERS[number[1]] == len(scene) and complete
    first = found[0][0]
    x, y = (size / 2, size / 2) if len(things) == 1 else (found[1][0].x, found[1][0].y)
    tests = {
        r"left of": first.x < x - 3,
        r"right of": first.x > x + 3,
        r"above|at the top of": first.y < y - 3,
        r"below|at the bottom of": first.y > y + 3,
    }
    said = [true for pattern, true in tests.items() if re.search(pattern, text)]
    assert len(said) == 1, caption
    return said[0]


def test_captions_hold_and_negatives_do_not(scenes: Path) -> None:
    seen = look(scenes)
    captions, negatives = read(scenes, "captions")["annotations"], read(scenes, "negatives")["annotations"]
    assert [entry["caption"] for entry in captions if not holds(entry["caption"], seen[entry["image_id"]])] == []
    assert [entry["caption"] for entry in negatives if holds(entry["caption"], seen[entry["image_id"]])] == []


def test_every_image_has_captions_and_a_negative_of_each(scenes: Path) -> None:
    captions, negatives = read(scenes, "captions")["annotations"], read(scenes, "negatives")["annotations"]
    per_image = Counter(entry["image_id"] for entry in captions)
    assert set(per_image) == set(range(1, 401))
    assert min(per_image.values()) >= 2
    texts = [(entry["image_id"], entry["caption"]) for entry in captions]
    assert len(set(texts)) == len(texts)
    images = {entry["id"]: entry["image_id"] for entry in captions}
    assert {entry["caption_id"]: entry["image_id"] for entry in negatives} == images
    assert {entry["type"] for entry in negatives} == {"attribute", "relation", "object"}
    assert min(Counter(entry["type"] for entry in negatives).values()) > len(negatives) / 10


def test_annotations_are_coco_and_agree_with_the_pixels(scenes: Path) -> None:
    instances = read(scenes, "instances")
    assert instances.keys() == {"info", "licenses", "images", "annotations", "categories"}
    assert len(instances["categories"]) >= 12
    covered, touched = (
        {image["id"]: np.zeros((96, 96), dtype=bool) for image in instances["images"]} for _ in range(2)
    )
    for entry in instances["annotations"]:
        mask = mask_of(entry["segmentation"][0], 96)
        assert not (covered[entry["image_id"]] & mask).any(), "two shapes overlap"
        covered[entry["image_id"]] |= mask
        touches = mask_of(entry["segmentation"][0], 96, share=0)
        touched[entry["image_id"]] |= touches
        rows, columns = np.nonzero(touches)
        left, top, width, height = entry["bbox"]
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.allclose(box, (left, top, left + width, top + height), atol=1.5)
        assert min(left, top) >= 0
        assert max(left + width, top + height) <= 96
        assert entry["area"] == pytest.approx(mask.sum(), rel=0.12)
        assert entry["iscrowd"] == 0
    for image in instances["images"][:100]:
        pixels = np.asarray(Image.open(scenes / "images" / image["file_name"])).astype(int)
        assert pixels.shape == (image["height"], image["width"], 3) == (96, 96, 3)
        ground = pixels[0, 0]
        assert ground.min() > 200
        # What is mostly covered is painted; what is not touched is ground. As annotated outlines are rounded, an edge
        # may fall into the next row of subpixels, four to a pixel: a quarter of the full contrast, rarely.
        painted = np.abs(pixels - ground).sum(axis=2)
        assert painted[~touched[image["id"]]].max() < 3 * 255 / 4
        assert (painted[~touched[image["id"]]] > 30).mean() < 0.005
        assert painted[covered[image["id"]]].min() > 30


def test_every_category_has_enough_positives(tmp_path: Path) -> None:
    for seed in range(2):
        folder = write_scenes(tmp_path / str(seed), n_images=240, seed=seed, size=32)
        instances = read(folder, "instances")
        images = {(entry["category_id"], entry["image_id"]) for entry in instances["annotations"]}
        counts = Counter(category for category, _ in images)
        assert len(counts) == len(instances["categories"])
        assert min(counts.values()) >= 20


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def contents(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    first, again, other = (
        contents(write_scenes(tmp_path / name, n_images=12, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert len(first) == 12 + 3
    assert first == again
    assert all(first[name] != other[name] for name in first)


def test_no_scene_that_is_asked_about_could_be_trained_on(scenes: Path) -> None:
    def contents(training: bool, *seeds: int) -> tuple[set[frozenset[tuple[str, str]]], set[tuple[str, str, int, int]]]:
        """The sets of several shapes, and the single shapes with their places in eighths of the picture."""
        several, single = set(), set()
        for seed in seeds:
            for scene in islice(draw_scenes(seed, training=training), 2000):
                first, *others = scene.shapes
                if others:
                    several.add(frozenset((shape.colour, shape.category) for shape in scene.shapes))
                else:
                    single.add((first.colour, first.category, int(first.x // 12), int(first.y // 12)))
        return several, single

    # The same seed on both sides, and others.
    trained, asked = contents(True, 0, 1, 2), contents(False, 0, 3)
    for trained_on, asked_about in zip(trained, asked, strict=True):
        assert min(len(trained_on), len(asked_about)) > 400
        assert not trained_on & asked_about
    written = {frozenset((s.colour, s.category) for s in shapes) for shapes in look(scenes).values() if len(shapes) > 1}
    assert not written & trained[0]
    assert written <= contents(False, 3)[0]


@pytest.mark.parametrize("ngrams", [(1, 1), (1, 3)])
def test_text_alone_does_not_tell_captions_from_negatives(scenes: Path, ngrams: tuple[int, int]) -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score

    entries = [
        (entry, label)
        for label, kind in enumerate(("negatives", "captions"))
        for entry in read(scenes, kind)["annotations"]
    ]
    words = CountVectorizer(ngram_range=ngrams).fit_transform([entry["caption"] for entry, _ in entries])
    labels = [label for _, label in entries]
    groups = [entry["image_id"] for entry, _ in entries]
    scores = cross_val_score(LogisticRegression(max_iter=2000), words, labels, groups=groups, cv=GroupKFold(5))
    assert scores.mean() <= 0.6


def test_scenes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="0 scenes"):
        write_scenes(tmp_path, n_images=0)
    with pytest.raises(InputError, match="16 pixels"):
        write_scenes(tmp_path, size=16)
