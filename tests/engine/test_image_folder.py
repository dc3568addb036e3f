"""A folder of images as a data set: each image with each prompt, subfolders as classes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sonde.engine import Sample, extract
from sonde.engine.config import DataSection, ExtractConfig
from sonde.engine.dataset import load_dataset
from sonde.engine.image_folder import read_image_folder
from sonde.errors import InputError

from .runs import configuration, values


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_images_lie_anywhere_below_and_come_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ("dog/z.PNG", "dog/deep/er/b.jpeg", "cat/a.webp", "notes.txt", "cat/a.json", ".hidden/a.png", "cat/._a.png")
    data = read_image_folder(touch(tmp_path, *names), ["What is it?"])
    there = ["cat/a.webp", "dog/deep/er/b.jpeg", "dog/z.PNG"]
    assert data.samples == tuple(
        Sample(
            name,
            prompt="What is it?",
            images=(tmp_path / name,),
            group=name,
            labels={"folder": name.partition("/")[0]},
        )
        for name in there
    )
    assert data.classes == {"folder": ("cat", "dog")}


def test_every_image_is_asked_every_prompt_and_is_a_group(tmp_path: Path) -> None:
    data = read_image_folder(touch(tmp_path, "a.png", "b.png"), ["one?", "two?"])
    assert [(s.id, s.prompt, s.group) for s in data.samples] == [
        ("a.png#0", "one?", "a.png"),
        ("a.png#1", "two?", "a.png"),
        ("b.png#0", "one?", "b.png"),
        ("b.png#1", "two?", "b.png"),
    ]
    assert data.labels == ()


def test_an_image_outside_of_the_subfolders_has_no_class(tmp_path: Path) -> None:
    data = read_image_folder(touch(tmp_path, "a.png", "cat/b.png"), ["?"])
    assert data.column("folder") == [None, "cat"]


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere", "a.png")
    touch(tmp_path / "photos", "b.png")
    (tmp_path / "photos/cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/round").symlink_to(tmp_path / "photos")
    assert [s.id for s in read_image_folder(tmp_path / "photos", ["?"]).samples] == ["b.png", "cat/a.png"]


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    here, there = (read_image_folder(touch(tmp_path / name, "cat/a.png"), ["?"]) for name in ("here", "over/there"))
    assert here.fingerprint() == there.fingerprint()


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder .*none: say in data\.image_folder"):
        read_image_folder(tmp_path / "none", ["?"])
    with pytest.raises(InputError, match=r"no images in .*: there must be files with \.bmp"):
        read_image_folder(touch(tmp_path, "a.txt"), ["?"])
    with pytest.raises(InputError, match="no prompt for the images"):
        read_image_folder(touch(tmp_path, "a.png"), [])
    with pytest.raises(InputError, match="image_folder needs prompts: say what is asked"):
        ExtractConfig.load({"model": {"name": "m"}, "data": {"image_folder": tmp_path}})


def test_a_configuration_may_give_one_prompt_as_text(tmp_path: Path) -> None:
    section = DataSection.model_validate({"image_folder": touch(tmp_path, "a.png", "b.png"), "prompts": "What?"})
    data = load_dataset(section)
    assert [(s.id, s.prompt) for s in data.samples] == [("a.png", "What?"), ("b.png", "What?")]
    assert len(load_dataset(section.model_copy(update={"limit": 1}))) == 1


def test_a_folder_is_extracted_with_its_classes(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    for i, picture in enumerate(pictures[:4]):
        place = tmp_path / "photos" / ("even", "odd")[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, place)
    data = {"image_folder": tmp_path / "photos", "prompts": ["a star", "the"], "prompt_format": "raw"}
    store = extract(configuration(model_folder("llava"), tmp_path / "run.zarr", data=data))
    assert store.columns["id"][:3].tolist() == ["even/0.png#0", "even/0.png#1", "even/2.png#0"]
    assert store.labels("folder").column() == ["even"] * 4 + ["odd"] * 4
    samples = [Sample(s, prompt=p, images=(pictures[i],)) for s, p, i in [("a", "a star", 0), ("b", "the", 0)]]
    alone = extract(
        configuration(model_folder("llava"), tmp_path / "alone.zarr", data={"prompt_format": "raw"}), samples=samples
    )
    for key, x in values(alone).items():
        assert abs(values(store)[key][:2] - x).max() <= 1e-5 * abs(x).max()
