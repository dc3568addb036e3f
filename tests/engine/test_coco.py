import json
import random
from pathlib import Path
from typing import Any

import pytest

from sonde.engine.coco import Coco, CocoCaption, CocoCategory, CocoImage, load_coco
from sonde.errors import InputError

IMAGES = [
    {"id": 42, "file_name": "000042.jpg", "width": 640, "height": 480, "coco_url": "http://x"},
    {"id": 7, "file_name": "000007.jpg", "width": 320, "height": 240},
    {"id": 9, "file_name": "000009.jpg"},
]
CAPTIONS: dict[str, Any] = {
    "images": IMAGES,
    "annotations": [
        {"id": 3, "image_id": 7, "caption": "A dog\nruns. "},
        {"id": 1, "image_id": 42, "caption": "Two cats."},
        {"id": 2, "image_id": 7, "caption": "A brown dog."},
    ],
}
INSTANCES: dict[str, Any] = {
    "images": IMAGES,
    "annotations": [
        {"id": 1, "image_id": 42, "category_id": 90, "segmentation": [[0, 0, 1, 1, 2, 0]], "iscrowd": 0},
        {"id": 2, "image_id": 42, "category_id": 17, "segmentation": {"counts": [1, 2], "size": [3, 4]}, "iscrowd": 1},
        {"id": 3, "image_id": 42, "category_id": 90, "segmentation": [], "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 18, "segmentation": [], "iscrowd": 0},
    ],
    "categories": [
        {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
        {"id": 17, "name": "cat", "supercategory": "animal"},
        {"id": 18, "name": "dog", "supercategory": "animal"},
    ],
}


def write(folder: Path, name: str = "val2017", images: str = "val2017", **files: Any) -> tuple[Path, Path]:
    """COCO files as given, by kind; captions and instances as above where they are not."""
    annotations = folder / "annotations"
    annotations.mkdir(exist_ok=True)
    (folder / images).mkdir(exist_ok=True)
    for kind, content in ({"captions": CAPTIONS, "instances": INSTANCES} | files).items():
        if content is not None:
            (annotations / f"{kind}_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return annotations, folder / images


def test_captions_and_instances_are_joined(tmp_path: Path) -> None:
    annotations, images = write(tmp_path)
    assert load_coco(annotations, images) == Coco(
        name="val2017",
        images_folder=images,
        images=(
            CocoImage(42, "000042.jpg", 640, 480),
            CocoImage(7, "000007.jpg", 320, 240),
            CocoImage(9, "000009.jpg"),
        ),
        categories=(
            CocoCategory(17, "cat", "animal"),
            CocoCategory(18, "dog", "animal"),
            CocoCategory(90, "toothbrush", "indoor"),
        ),
        captions={
            42: (CocoCaption(1, 42, "Two cats."),),
            7: (CocoCaption(3, 7, "A dog runs."), CocoCaption(2, 7, "A brown dog.")),
            9: (),
        },
        objects={42: (17, 90), 7: (18,), 9: ()},
        negatives={},
    )


def test_negatives_are_read_where_they_are(tmp_path: Path) -> None:
    entry = {"id": 5, "image_id": 7, "caption": "A white dog.", "type": "attribute", "caption_id": 2}
    coco = load_coco(*write(tmp_path, negatives={"annotations": [entry]}))
    assert coco.negatives == {7: (CocoCaption(5, 7, "A white dog.", "attribute", 2),)}


def test_the_pair_is_found_by_name_or_by_the_images_folder(tmp_path: Path) -> None:
    fewer = {**CAPTIONS, "annotations": []}
    annotations, _ = write(tmp_path, "train2014", "train2014", captions=fewer)
    assert load_coco(annotations, tmp_path / "train2014").name == "train2014"
    write(tmp_path, "val2014", "pictures")
    assert load_coco(annotations, tmp_path / "train2014").captions[7] == ()
    assert len(load_coco(annotations, tmp_path / "pictures", name="val2014").captions[7]) == 2
    with pytest.raises(InputError, match=r"several annotations in .*: train2014, val2014; choose one"):
        load_coco(annotations, tmp_path / "pictures")
    with pytest.raises(InputError, match=r"no file captions_test\.json .*train2014, val2014"):
        load_coco(annotations, tmp_path / "pictures", name="test")


def test_missing_files_and_folders_are_named_with_where_they_come_from(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no annotations folder .*nowhere: .*cocodataset\.org"):
        load_coco(tmp_path / "nowhere", tmp_path)
    with pytest.raises(InputError, match=r"no images folder .*nowhere"):
        load_coco(tmp_path, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no file captions_<name>\.json .*cocodataset\.org"):
        load_coco(tmp_path, tmp_path)
    with pytest.raises(InputError, match=r"no images folder .*train2014: .*/zips/train2014\.zip"):
        load_coco(tmp_path, tmp_path / "train2014")
    with pytest.raises(InputError, match=r"no annotations folder .*/annotations/annotations_trainval2014\.zip"):
        load_coco(tmp_path / "nowhere", tmp_path / "train2014")
    annotations, images = write(tmp_path, instances=None)
    with pytest.raises(InputError, match=r"no file instances_val2017\.json in .*/annotations_trainval2017\.zip"):
        load_coco(annotations, images)
    with pytest.raises(InputError, match=r"no file instances_val2017\.json in .*cocodataset\.org"):
        load_coco(annotations, images)


def test_missing_images_are_counted_when_they_are_used(tmp_path: Path) -> None:
    annotations, images = write(tmp_path)
    coco = load_coco(annotations, images)
    (images / "000042.jpg").touch()
    assert coco.paths(coco.images[:1]) == [images / "000042.jpg"]
    with pytest.raises(InputError, match=r"2 of 3 images are missing, the first is .*000007\.jpg.*zips/val2017\.zip"):
        coco.paths(coco.images)


@pytest.mark.parametrize("name", ["train2014", "val2014", "train2017", "val2017"])
def test_every_published_layout_is_read(tmp_path: Path, name: str) -> None:
    prefix = f"COCO_{name}_" if name.endswith("2014") else ""
    files = [f"{prefix}{i:012}.jpg" for i in (9, 25)]
    (tmp_path / "coco" / name).mkdir(parents=True)
    (tmp_path / "coco" / "annotations").mkdir()
    for file in files:
        (tmp_path / "coco" / name / file).touch()
    listed = [{"id": i, "file_name": file} for i, file in zip((9, 25), files, strict=True)]
    for other in ("train2017", name):
        for kind, more in (("captions", {}), ("instances", {"categories": [{"id": 1, "name": "cat"}]})):
            content = {
                "images": listed if other == name else [{"id": 1, "file_name": "1.jpg"}],
                "annotations": [],
                **more,
            }
            (tmp_path / "coco/annotations" / f"{kind}_{other}.json").write_text(json.dumps(content))
    coco = load_coco(tmp_path / "coco/annotations", tmp_path / "coco" / name)
    assert coco.name == name
    assert [path.name for path in coco.paths(coco.images)] == files


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"captions": []}, r"captions_val2017\.json is not in COCO's format: .* got `array`"),
        ({"captions": {"images": IMAGES}}, r"captions_val2017\.json is not in COCO's format: .* `annotations`"),
        ({"captions": {"images": [], "annotations": []}}, "no images in"),
        ({"captions": {**CAPTIONS, "images": [{"id": 1}]}}, r"`file_name` - at `\$\.images\[0\]`"),
        (
            {"captions": {**CAPTIONS, "annotations": [{"id": 1, "image_id": 7}]}},
            r"`caption` - at `\$\.annotations\[0\]`",
        ),
        ({"captions": {**CAPTIONS, "annotations": ["x"]}}, r"got `str` - at `\$\.annotations\[0\]`"),
        (
            {"captions": {**CAPTIONS, "annotations": [{"id": 1, "image_id": 8, "caption": "x"}]}},
            "annotates image 8, which it does not list",
        ),
        ({"instances": {**INSTANCES, "categories": INSTANCES["categories"][1:]}}, "annotates category 90"),
        ({"instances": {**INSTANCES, "categories": INSTANCES["categories"][:1] * 2}}, "two categories with one id"),
        ({"instances": {k: v for k, v in INSTANCES.items() if k != "categories"}}, "`categories`"),
    ],
)
def test_files_in_another_format_are_refused_by_name(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_coco(*write(tmp_path, **files))


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    annotations, images = write(tmp_path)
    (annotations / "captions_val2017.json").write_text('{"images": [', encoding="utf-8")
    with pytest.raises(InputError, match=r"captions_val2017\.json cannot be read as JSON"):
        load_coco(annotations, images)


def test_annotations_at_their_real_scale(tmp_path: Path) -> None:
    """As many captions and objects to an image, and outlines as long, as in the published files."""
    n_images, draw = 22_000, random.Random(0)
    (tmp_path / "images").mkdir()
    images = [{"id": 3 * i, "file_name": f"{i:012}.jpg", "width": 640, "height": 480} for i in range(n_images)]
    captions = [
        {"id": i, "image_id": 3 * (i % n_images), "caption": f"a  caption {i}\n of words"} for i in range(5 * n_images)
    ]
    outlines = [[[round(draw.uniform(0, 640), 2) for _ in range(60)]] for _ in range(50)]
    objects = [
        {
            "id": i,
            "image_id": 3 * draw.randrange(n_images),
            "category_id": draw.randint(1, 80),
            "segmentation": outlines[i % 50],
            "area": 12.5,
            "bbox": [0.5, 1.5, 2.5, 3.5],
            "iscrowd": 0,
        }
        for i in range(7 * n_images)
    ]
    categories = [{"id": i, "name": f"thing {i}", "supercategory": "things"} for i in range(1, 81)]
    (tmp_path / "captions_big.json").write_text(json.dumps({"images": images, "annotations": captions}))
    (tmp_path / "instances_big.json").write_text(
        json.dumps({"images": images, "annotations": objects, "categories": categories})
    )
    coco = load_coco(tmp_path, tmp_path / "images")
    assert sum(map(len, coco.captions.values())) == 5 * n_images > 100_000
    assert [caption.id for caption in coco.captions[3]] == [1 + k * n_images for k in range(5)]
    assert coco.captions[3][0].text == "a caption 1 of words"
    shown: dict[int, set[int]] = {}
    for thing in objects:
        shown.setdefault(thing["image_id"], set()).add(thing["category_id"])
    assert {image: set(found) for image, found in coco.objects.items() if found} == shown
