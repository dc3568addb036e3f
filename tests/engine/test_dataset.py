"""The data set that a configuration names."""

import json
from pathlib import Path

import pytest

from sonde.engine import Dataset, Sample
from sonde.engine.coco import load_coco
from sonde.engine.config import DataSection
from sonde.engine.dataset import load_dataset
from sonde.engine.scenes import write_scenes
from sonde.engine.tasks import entailment, recognition
from sonde.errors import InputError


@pytest.fixture(scope="module")
def scenes(scratch: Path) -> Path:
    return write_scenes(scratch / "scenes", n_images=12, size=32)


def section(folder: Path, **settings: object) -> DataSection:
    return DataSection.model_validate({"annotations": folder / "annotations", "images": folder / "images", **settings})


def test_entailment_is_made_with_the_settings_of_the_configuration(scenes: Path) -> None:
    coco = load_coco(scenes / "annotations", scenes / "images")
    plain = load_dataset(section(scenes, task="entailment"))
    assert plain == entailment(coco)
    assert set(plain.column("entailment")) == {True, False}
    assert all(path.is_file() for sample in plain.samples for path in sample.images)
    settings = {"cue": True, "prompt": 1, "negatives": "random", "limit": 20, "seed": 7}
    other = load_dataset(section(scenes, task="entailment", **settings))
    assert other == entailment(coco, cue=True, prompt=1, negatives="random", limit=20, seed=7)
    assert other != plain
    assert len(other) <= 20


def test_recognition_is_made_with_the_settings_of_the_configuration(scenes: Path) -> None:
    coco = load_coco(scenes / "annotations", scenes / "images")
    plain = load_dataset(section(scenes, task="recognition"))
    assert plain == recognition(coco)
    assert [len(names) for names in plain.classes.values()] == [12]
    settings = {"cue": True, "prompt": 1, "limit": 5, "seed": 3}
    other = load_dataset(section(scenes, task="recognition", **settings))
    assert other == recognition(coco, cue=True, prompt=1, limit=5, seed=3)
    assert other != plain


def test_the_name_picks_among_several_pairs_of_annotations(scenes: Path) -> None:
    named = load_dataset(section(scenes, task="recognition", name="scenes"))
    assert named == load_dataset(section(scenes, task="recognition"))
    with pytest.raises(InputError, match="val2017"):
        load_dataset(section(scenes, task="recognition", name="val2017"))


def test_a_manifest_is_read_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    rows = [{"id": f"s{i}", "prompt": "a", "group": f"g{i // 2}", "kind": "x"} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    whole = load_dataset(DataSection(manifest=path))
    assert [sample.id for sample in whole.samples] == [row["id"] for row in rows]
    assert whole.column("kind") == ["x"] * 8
    part = load_dataset(DataSection(manifest=path, limit=4, seed=1))
    assert part == whole.subset(4, 1)
    assert len(part) == 4


def test_samples_of_ones_own_need_no_source() -> None:
    samples = [Sample("a", prompt="a"), Sample("b", prompt="b")]
    expected = Dataset(tuple(samples))
    for section in (None, DataSection(prompt_format="raw")):
        assert load_dataset(section, samples) == expected
        assert load_dataset(section, expected) is expected


def test_two_sources_are_one_too_many(scenes: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"names .*samples\.jsonl in \[data\], and samples are given too"):
        load_dataset(DataSection(manifest=tmp_path / "samples.jsonl"), [Sample("a", prompt="a")])
    with pytest.raises(InputError, match=r"names recognition in .*leave one out"):
        load_dataset(section(scenes, task="recognition"), [Sample("a", prompt="a")])


@pytest.mark.parametrize("section", [None, DataSection(), DataSection(limit=3)])
def test_no_source_is_one_too_few(section: DataSection | None) -> None:
    with pytest.raises(
        InputError, match=r"name a manifest, a task, an image_folder or an hf_dataset in \[data\], or pass"
    ):
        load_dataset(section)


def test_an_empty_data_set_and_a_missing_manifest_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        load_dataset(None, [])
    with pytest.raises(InputError, match=r"none\.jsonl"):
        load_dataset(DataSection(manifest=tmp_path / "none.jsonl"))
