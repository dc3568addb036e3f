"""Data sets of Hugging Face: columns, classes and images as they are stored, read by the real package, offline."""

import io
import logging
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sonde.engine import Dataset, ImageUrl, Sample, extract
from sonde.engine.config import DataSection
from sonde.engine.dataset import load_dataset
from sonde.engine.hugging_face import read_hugging_face
from sonde.engine.picture import ImageSource, Picture
from sonde.engine.pixels import open_image
from sonde.errors import InputError

from .runs import configuration, values

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (24, 24), (40 * number, 90, 200)).save(file, "PNG")
    return file.getvalue()


def content(image: Picture) -> bytes:
    assert isinstance(image, ImageSource), "a path, not bytes of the data set"
    return image.read()


def columns(n: int = 4) -> dict[str, Any]:
    """Columns with an image in a cell, and their features."""
    return {
        "question": ([f"what is {i}" for i in range(n)], datasets.Value("string")),
        "image": ([{"bytes": png(i), "path": None} for i in range(n)], datasets.Image()),
        "answer": ([i % 2 for i in range(n)], datasets.ClassLabel(names=["no", "yes"])),
    }


def write(folder: Path, split: str = "", **given: Any) -> str:
    """Save a data set of some columns."""
    table = datasets.Dataset.from_dict(
        {name: values for name, (values, _) in given.items()},
        features=datasets.Features({name: feature for name, (_, feature) in given.items()}),
        split=split or None,
    )
    table.save_to_disk(folder)
    return str(folder)


QUESTION = {"prompt": "question"}


def test_a_saved_data_set_has_prompts_images_and_classes_by_name(tmp_path: Path) -> None:
    name = write(tmp_path / "vqa", "train", **columns())
    data = load_dataset(DataSection(hf_dataset=name, columns={"prompt": "question"}))
    assert [(s.id, s.prompt, s.group, s.split) for s in data.samples] == [
        (f"train/{i}", f"what is {i}", f"train/{i}", "") for i in range(4)
    ]
    assert data.column("answer") == ["no", "yes", "no", "yes"]
    assert data.classes == {"answer": ("no", "yes")}
    assert data.labels == ("answer",)
    for i, sample in enumerate(data.samples):
        [image] = sample.images
        assert open_image(image).getpixel((0, 0)) == (40 * i, 90, 200)


def test_columns_take_the_place_of_those_of_a_manifest(tmp_path: Path) -> None:
    given = columns(2) | {
        "image_id": ([7, 7], datasets.Value("int64")),
        "qid": ([11, 12], datasets.Value("int32")),
        "part": ([1, 0], datasets.ClassLabel(names=["train", "test"])),
        "id": (["x", "y"], datasets.Value("string")),
    }
    mapping = QUESTION | {"id": "qid", "group": "image_id", "split": "part"}
    data = read_hugging_face(write(tmp_path / "d", **given), columns=mapping)
    assert [(s.id, s.group, s.split) for s in data.samples] == [("11", "7", "test"), ("12", "7", "train")]
    assert data.labels == ("answer",)


def test_labels_are_of_every_type_that_a_label_can_have_and_the_rest_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value, many = datasets.Value, datasets.Sequence
    given = {
        "prompt": (["a", "b"], value("string")),
        "text": (["u", None], value("string")),
        "whole": ([3, 4], value("uint8")),
        "half": ([0.5, None], value("float16")),
        "sure": ([True, False], value("bool")),
        "class": ([1, -1], datasets.ClassLabel(names=["cat", "dog"])),
        "tags": ([["u", "v"], []], many(value("string"))),
        "things": ([[1], [0, 1]], many(datasets.ClassLabel(names=["cup", "hat"]))),
        "vector": ([[0.5], [1.5]], many(value("float32"))),
        "when": ([None, None], value("timestamp[s]")),
        "box": ([{"x": 1}, {"x": 2}], {"x": value("int8")}),
        "photo": ([None, None], datasets.Image()),
        "untold": ([-1, -1], datasets.ClassLabel(names=["cat", "dog"])),
    }
    with caplog.at_level(logging.WARNING):
        data = read_hugging_face(write(tmp_path / "d", **given))
    assert [sample.labels for sample in data.samples] == [
        {
            "text": "u",
            "whole": 3,
            "half": 0.5,
            "sure": True,
            "class": "dog",
            "tags": ("u", "v"),
            "things": ("hat",),
        },
        {"text": None, "whole": 4, "half": None, "sure": False, "class": None, "tags": (), "things": ("cup", "hat")},
    ]
    assert data.classes == {"class": ("cat", "dog"), "things": ("cup", "hat")}
    neither, unusable = caplog.messages
    assert "left out vector, when, box, photo, which are neither labels nor named in data.columns" in neither
    assert "left out labels: labels 'untold': every value is missing" in unusable


def test_images_of_a_row_may_be_several_or_none(tmp_path: Path) -> None:
    images = [[{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}], [], None, [{"bytes": png(3)}]]
    given = {
        "prompt": (list("abcd"), datasets.Value("string")),
        "images": (images, datasets.Sequence(datasets.Image())),
        "raw": ([png(4), None, png(5), png(6)], datasets.Value("binary")),
    }
    name = write(tmp_path / "d", **given)
    data = read_hugging_face(name)
    seen = [[open_image(image).getpixel((0, 0)) for image in s.images] for s in data.samples]
    assert seen == [[(40, 90, 200), (80, 90, 200)], [], [], [(120, 90, 200)]]
    raw = read_hugging_face(name, columns={"image": "raw"})
    assert [[content(image) for image in s.images] for s in raw.samples] == [[png(4)], [], [png(5)], [png(6)]]


def test_paths_are_relative_to_the_images_folder_and_urls_are_let_through_on_demand(tmp_path: Path) -> None:
    text = datasets.Value("string")
    given = {"prompt": (["a", "b"], text), "image": (["x/a.png", None], text)}
    name = write(tmp_path / "d", **given)
    assert read_hugging_face(name).samples[0].images == (tmp_path / "d/x/a.png",)
    elsewhere = load_dataset(DataSection(hf_dataset=name, images=tmp_path / "coco"))
    assert elsewhere.samples[0].images == (tmp_path / "coco/x/a.png",)
    assert elsewhere.fingerprint() == read_hugging_face(name).fingerprint()
    name = write(tmp_path / "e", **given | {"image": (["http://x.org/a.png", None], text)})
    assert read_hugging_face(name, remote_images=True).samples[0].images == (ImageUrl("http://x.org/a.png"),)
    with pytest.raises(InputError, match=r"row 0 of 'image': image 'http://.*set data\.remote_images = true"):
        read_hugging_face(name)


def test_a_folder_of_data_files_is_read_by_its_splits(tmp_path: Path) -> None:
    for split, n in (("train", 3), ("test", 2)):
        (tmp_path / "d").mkdir(exist_ok=True)
        rows = [f'{{"prompt": "p{i}", "kind": "{split}"}}\n' for i in range(n)]
        (tmp_path / f"d/{split}.jsonl").write_text("".join(rows))
    name = str(tmp_path / "d")
    with pytest.raises(InputError, match=r"it has the splits train, test: name one or several in data\.hf_split"):
        read_hugging_face(name)
    assert [s.id for s in read_hugging_face(name, split="test").samples] == ["test/0", "test/1"]
    part = read_hugging_face(name, split=["train[1:]", "test"])
    assert [(s.id, s.prompt, s.split) for s in part.samples] == [
        ("train[1:]/0", "p1", "train"),
        ("train[1:]/1", "p2", "train"),
        ("test/0", "p0", "test"),
        ("test/1", "p1", "test"),
    ]
    assert len(load_dataset(DataSection(hf_dataset=name, hf_split="train", limit=2))) == 2


def test_images_without_questions_are_asked_those_of_the_configuration(tmp_path: Path) -> None:
    for name in ("cat/a.png", "dog/b.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(png(1))
    section = DataSection(hf_dataset=str(tmp_path / "d"), prompts=("one?", "two?"))
    data = load_dataset(section)
    assert [(s.id, s.prompt, s.group, s.labels["label"]) for s in data.samples] == [
        ("train/0#0", "one?", "train/0", "cat"),
        ("train/0#1", "two?", "train/0", "cat"),
        ("train/1#0", "one?", "train/1", "dog"),
        ("train/1#1", "two?", "train/1", "dog"),
    ]
    assert data.samples[0].images == (tmp_path / "d/cat/a.png",)


def test_the_fingerprint_is_of_the_bytes_and_not_of_the_place(tmp_path: Path) -> None:
    here = write(tmp_path / "here", **columns())
    there = str(shutil.copytree(here, tmp_path / "over/there"))
    prints = {read_hugging_face(name, columns=QUESTION).fingerprint() for name in (here, there)}
    assert len(prints) == 1
    other = columns() | {"image": ([{"bytes": png(5), "path": None}] * 4, datasets.Image())}
    assert read_hugging_face(write(tmp_path / "o", **other), columns=QUESTION).fingerprint() not in prints


def test_pictures_travel_between_processes_by_the_name_of_their_file(tmp_path: Path) -> None:
    big = columns(40)
    big["image"] = ([{"bytes": png(1) + bytes(10_000), "path": None}] * 40, datasets.Image())
    data = read_hugging_face(write(tmp_path / "d", **big), columns=QUESTION)
    packed = pickle.dumps(data)
    assert len(packed) < 40_000
    again: Dataset = pickle.loads(packed)
    assert again == data
    assert content(again.samples[39].images[0]) == png(1) + bytes(10_000)


def test_a_data_set_gives_the_activations_of_its_files(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    given = columns(5)
    stored = [{"bytes": picture.read_bytes(), "path": None} for picture in pictures[:4]]
    given["image"] = ([*stored, {"bytes": b"no picture", "path": None}], datasets.Image())
    data = {"hf_dataset": write(tmp_path / "d", **given), "columns": QUESTION, "prompt_format": "raw"}
    folder = model_folder("llava")
    store = extract(configuration(folder, tmp_path / "run.zarr", data=data, run={"on_error": "skip"}))
    assert store.labels("answer").column() == ["no", "yes", "no", "yes", "no"]
    assert store.skipped == {
        4: "sample '4': the image in row 4 of 'image' cannot be read: it has no format that Pillow knows"
    }
    samples = [Sample(str(i), prompt=f"what is {i}", images=(pictures[i],)) for i in range(4)]
    files = extract(
        configuration(folder, tmp_path / "files.zarr", data={"prompt_format": "raw"}),
        samples=samples,
    )
    for key, x in values(files).items():
        np.testing.assert_array_equal(values(store)[key][:4], x)


def test_what_cannot_be_had_is_an_input_error(tmp_path: Path) -> None:
    saved = write(tmp_path / "d", "train", **columns())
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.csv").write_text("id,prompt\n1,x\n")
    numbers = write(tmp_path / "numbers", prompt=([1], datasets.Value("int8")))
    cases: list[tuple[str, dict[str, Any], str]] = [
        (str(tmp_path / "none"), {}, r"there is no folder '.*none': give one of a data set, or user/name"),
        (str(tmp_path / "a.csv"), {}, r"a\.csv' is a file: give its folder, or say data\.manifest"),
        (str(tmp_path / "empty"), {}, r"cannot be loaded: .*empty"),
        ("nobody/nothing", {}, r"'nobody/nothing' cannot be loaded: .*nobody/nothing"),
        (saved, {"split": "test"}, r"it has no split 'test': there are 'train'"),
        (saved, {"config": "en"}, r"save_to_disk has no configurations or revisions: leave them out"),
        (saved, {}, r"no column 'prompt' or 'messages': it has 'question', .*ask all its images .* data\.prompts"),
        (saved, {"columns": {"prompt": "querstion"}}, r"no column 'querstion' for the prompt: it has 'question',"),
        (saved, {"columns": QUESTION, "prompts": ["?"]}, r"has its own prompt, in the column 'question'"),
        (saved, {"columns": QUESTION | {"image": "answer"}}, r"column 'answer' is no image but int64"),
        (numbers, {}, r"numbers: row 0: prompt of sample '0' is a int: give text"),
    ]
    for name, options, said in cases:
        with pytest.raises(InputError, match=said):
            read_hugging_face(name, **options)


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "d", **columns())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs the package datasets: pip install datasets"):
        read_hugging_face(name)
