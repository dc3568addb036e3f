"""Annotation files of COCO's format and sizes, with words and objects as unevenly spread as in photographs.

Nothing in them is COCO's but the names and ids of its categories and the sizes of its files: captions are made of words
that follow Zipf's law, short and typical ones beside long and odd ones, and name some of the objects.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from pathlib import Path
from typing import Any

_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave oven toaster sink "
    "refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)
# COCO has 91 kinds of objects and annotated 80 of them.
_GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
_IDS = [i for i in range(1, 92) if i not in _GAPS]
_CATEGORIES = dict(zip(_IDS, [name.replace("_", " ") for name in _NAMES.split()], strict=True))
_PEOPLE = ("man", "woman", "person", "boy", "girl", "people")
_WORDS = 12_000
_OUTLINES = 2_000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is in a pair of files."""

    name: str
    images: int
    captions: int
    objects: int


VAL2017 = Scale("val2017", 5_000, 25_014, 36_781)
TRAIN2017 = Scale("train2017", 118_287, 591_753, 860_001)


def write_annotations(folder: Path, scale: Scale, seed: int = 0) -> None:
    """Write ``annotations/{captions,instances}_<name>.json`` and the empty folder ``<name>`` of the images."""
    draw = random.Random(seed)
    (folder / scale.name).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    prefix = f"COCO_{scale.name}_" if scale.name.endswith("2014") else ""
    ids = draw.sample(range(1, 5 * scale.images + 1), scale.images)
    images = [_image(scale.name, f"{prefix}{i:012}.jpg", i) for i in ids]
    shown = _shown(scale, draw)
    captions = [
        {"image_id": ids[place], "id": number, "caption": text}
        for number, (place, text) in enumerate(_captions(scale, shown, draw), start=1)
    ]
    head = {"info": {"year": 2017}, "licenses": [{"id": 1, "name": "none", "url": "http://localhost"}]}
    whole = head | {"images": images, "annotations": captions}
    (folder / "annotations" / f"captions_{scale.name}.json").write_text(json.dumps(whole), encoding="utf-8")
    categories = [{"supercategory": "thing", "id": i, "name": name} for i, name in _CATEGORIES.items()]
    with (folder / "annotations" / f"instances_{scale.name}.json").open("w", encoding="utf-8") as file:
        # Written piece by piece: as one text it would take more memory than reading it.
        file.write(json.dumps(head | {"images": images, "categories": categories})[:-1] + ', "annotations": [')
        file.writelines(_objects(scale, ids, shown, draw))
        file.write("]}")


def _image(name: str, file_name: str, number: int) -> dict[str, Any]:
    address = f"http://images.cocodataset.org/{name}/{file_name}"
    return {
        "license": 1,
        "file_name": file_name,
        "coco_url": address,
        "height": 480,
        "width": 640,
        "date_captured": "2013-11-14 11:18:45",
        "flickr_url": f"http://localhost/{number}_4e622c8349_z.jpg",
        "id": number,
    }


def _shown(scale: Scale, draw: random.Random) -> list[list[int]]:
    """Categories of each image: a person in half of them, the others ever rarer; one image in a hundred has none."""
    others = _IDS[1:]
    rarity = draw.sample(range(len(others)), len(others))
    weights = list(accumulate(1 / (rank + 4) for rank in rarity))
    shown = []
    for _ in range(scale.images):
        n_others = draw.choices((0, 1, 2, 3, 4, 6), (15, 30, 25, 15, 10, 5))[0]
        found = {*draw.choices(others, cum_weights=weights, k=n_others)} | ({1} if draw.random() < 0.54 else set())
        shown.append(sorted(found) if draw.random() > 0.01 else [])
    return shown


def _captions(scale: Scale, shown: Sequence[Sequence[int]], draw: random.Random) -> Iterator[tuple[int, str]]:
    """Place of an image, and a caption of it."""
    syllables = ["".join(pair) for pair in product("bdfklmnprst", "aeiou")]
    words = ["".join(parts) for parts in product(syllables, repeat=3)]
    words = draw.sample(words, _WORDS)
    often = list(accumulate(1 / (rank + 3) for rank in range(_WORDS)))

    def word() -> str:
        return draw.choices(words, cum_weights=often)[0]

    for number in range(scale.captions):
        place = number % scale.images
        things = [draw.choice(_PEOPLE) if i == 1 else _CATEGORIES[i] for i in shown[place]]
        # Some say little, and that in usual words: others say the same.
        things += [word() for _ in range(draw.choices((0, 1, 2, 3), (1, 4, 3, 1))[0])]
        said = []
        for thing in draw.sample(things, len(things))[: draw.choice((2, 2, 3, 3, 4))] or [word()]:
            said += [draw.choice(("on", "in", "with", "of", "next to", "and")), draw.choice(("a", "a", "the"))]
            said += [*([word()] if draw.random() < 0.35 else []), thing]
        yield place, " ".join(said[1:]).capitalize() + draw.choice((".", ".", " .", "", ". "))


def _objects(scale: Scale, ids: Sequence[int], shown: Sequence[Sequence[int]], draw: random.Random) -> Iterator[str]:
    """Annotations as text, with outlines that are as long as COCO's on average."""
    outlines = []
    for _ in range(_OUTLINES):
        n_numbers = 2 * max(3, round(draw.lognormvariate(3.0, 0.55)))
        outlines.append(f"[[{','.join(f'{draw.uniform(0, 640):.2f}' for _ in range(n_numbers))}]]")
    crowd = json.dumps({"counts": [draw.randint(1, 900) for _ in range(300)], "size": [480, 640]})
    # Every category that an image shows once, then the rest among the images that show any.
    pairs = [(place, category) for place, found in enumerate(shown) for category in found][: scale.objects]
    full = [place for place, found in enumerate(shown) if found]
    pairs += [(p := draw.choice(full), draw.choice(shown[p])) for _ in range(scale.objects - len(pairs))]
    for number, (place, category) in enumerate(pairs, start=1):
        crowded = number % 100 == 0
        box = ",".join(f"{draw.uniform(0, 320):.2f}" for _ in range(4))
        yield (
            f'{", " if number > 1 else ""}{{"segmentation": {crowd if crowded else draw.choice(outlines)}, '
            f'"area": {draw.uniform(9, 90_000):.4f}, "iscrowd": {int(crowded)}, "image_id": {ids[place]}, '
            f'"bbox": [{box}], "category_id": {category}, "id": {number}}}'
        )
