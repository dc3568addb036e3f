import json
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
    annotations, images = write(tmp_path, instances=None)
    with pytest.raises(InputError, match=r"no file instances_val2017\.json in .*cocodataset\.org"):
        load_coco(annotations, images)


def test_missing_images_are_counted_when_they_are_used(tmp_path: Path) -> None:
    annotations, images = write(tmp_path)
    coco = load_coco(annotations, images)
    (images / "000042.jpg").touch()
    assert coco.paths(coco.images[:1]) == [images / "000042.jpg"]
    with pytest.raises(InputError, match=r"2 of 3 images are missing, the first is .*000007\.jpg"):
        coco.paths(coco.images)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"captions": []}, r"captions_val2017\.json is not in COCO's format, it holds a list"),
        ({"captions": {"images": IMAGES}}, r"captions_val2017\.json .* no list 'annotations'"),
        ({"captions": {"images": [], "annotations": []}}, "no images in"),
        ({"captions": {**CAPTIONS, "images": [{"id": 1}]}}, r"'images' is malformed \(KeyError\('file_name'\)\)"),
        ({"captions": {**CAPTIONS, "annotations": [{"id": 1, "image_id": 7}]}}, "'annotations' is malformed"),
        ({"captions": {**CAPTIONS, "annotations": ["x"]}}, "'annotations' is malformed"),
        (
            {"captions": {**CAPTIONS, "annotations": [{"id": 1, "image_id": 8, "caption": "x"}]}},
            "annotates image 8, which it does not list",
        ),
        ({"instances": {**INSTANCES, "categories": INSTANCES["categories"][1:]}}, "annotates category 90"),
        ({"instances": {**INSTANCES, "categories": INSTANCES["categories"][:1] * 2}}, "two categories with one id"),
        ({"instances": {k: v for k, v in INSTANCES.items() if k != "categories"}}, "no list 'categories'"),
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
