"""Tasks, cues and paraphrases about the same images; one asked category; nearest captions; balance; own prompts."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics.pairwise import linear_kernel
from sklearn.model_selection import GroupKFold, cross_val_score

from sonde.engine.coco import Coco, CocoCaption, CocoCategory, CocoImage, load_coco
from sonde.engine.config import DataSection
from sonde.engine.dataset import load_dataset
from sonde.engine.scenes import write_scenes
from sonde.engine.tasks import build, entailment, recognition, together
from sonde.engine.tasks.drawing import drawn
from sonde.engine.tasks.prompts import load_prompts
from sonde.errors import InputError
from sonde.store import Labels

BOTH = ("entailment", "recognition")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), n_images=200, size=32)


@pytest.fixture(scope="module")
def scenes(folder: Path) -> Coco:
    return load_coco(folder / "annotations", folder / "images")


def made(folder: Path, n_images: int, n_categories: int = 20, seed: int = 0) -> Coco:
    """Images that show few of many categories, some rare; captions of words that go with them."""
    draw = random.Random(seed)
    categories = tuple(CocoCategory(i + 1, f"thing{i}") for i in range(n_categories))
    weights = [1 / (i + 1) for i in range(n_categories)]
    objects, captions = {}, {}
    for image in range(1, n_images + 1):
        present = sorted(set(draw.choices(range(1, n_categories + 1), weights, k=draw.randint(0, 4))))
        objects[image] = tuple(present)
        words = [f"thing{i - 1}" for i in present] + draw.choices([f"word{k}" for k in range(300)], k=5)
        captions[image] = tuple(
            CocoCaption(10 * image + k, image, " ".join(draw.sample(words, len(words) - 1))) for k in range(3)
        )
        (folder / f"{image}.jpg").touch()
    images = tuple(CocoImage(i, f"{i}.jpg") for i in objects)
    return Coco("made", folder, images, categories, captions, objects, {})


def test_all_questions_about_an_image_stand_together_and_are_those_of_the_tasks_alone(scenes: Coco) -> None:
    data = together(scenes, BOTH, cues=(False, True), limit=30, seed=4)
    groups = [sample.group for sample in data.samples]
    assert len(set(groups)) == 30
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)
    found = {
        (s.group, *(s.labels[name] for name in ("task", "cue", "prompt", "entailment", "objects") if name in s.labels))
        for s in data.samples
    }
    assert len(found) == len(data)
    n = len(load_prompts("entailment", False))
    assert Counter((s.labels["task"], s.labels["cue"]) for s in data.samples) == {
        ("entailment", "no-cue"): 60 * n,
        ("entailment", "cue"): 60 * n,
        ("recognition", "no-cue"): 30 * n,
        ("recognition", "cue"): 30 * n,
    }
    alone = {s.id: s for s in entailment(scenes, cue=True, prompt=2, seed=4).samples}
    alone |= {s.id: s for s in recognition(scenes, cue=True, prompt=2).samples}
    third = [s for s in data.samples if (s.labels["cue"], s.labels["prompt"]) == ("cue", "p2")]
    assert len(third) == 90
    for sample in third:
        same = alone[sample.id.removesuffix(f"-{sample.labels['task']}-cue-p2")]
        assert (sample.prompt, sample.images, sample.spans) == (same.prompt, same.images, same.spans)
        assert same.labels.items() <= sample.labels.items()


def test_labels_of_another_task_are_missing_and_describing_ones_are_classes(scenes: Coco) -> None:
    data = together(scenes, BOTH, cues=(False, "asked"), prompts=(0, 1), limit=20)
    assert data.labels == ("task", "cue", "prompt", "entailment", "objects", "present", "asked")
    kinds = {}
    for name in data.labels:
        labels = Labels.from_column(name, data.column(name), classes=data.classes.get(name))
        kinds[name] = labels.kind
        asked = [name in sample.labels for sample in data.samples]
        assert labels.present.tolist() == asked
    assert kinds == {
        "task": "multiclass",
        "cue": "multiclass",
        "prompt": "multiclass",
        "entailment": "binary",
        "objects": "multilabel",
        "present": "binary",
        "asked": "multiclass",
    }


def test_a_configuration_asks_several(folder: Path, scenes: Coco) -> None:
    section = DataSection(
        task=BOTH,
        annotations=folder / "annotations",
        images=folder / "images",
        cue="both",
        prompt="all",
        limit=9,
        seed=2,
    )
    assert load_dataset(section) == together(scenes, BOTH, cues=(False, True), limit=9, seed=2)
    one = section.model_copy(update={"task": ("recognition",), "cue": "asked", "prompt": (1,), "balance": True})
    wanted = together(scenes, ("recognition",), cues=("asked",), prompts=(1,), limit=9, seed=2, balance=True)
    assert load_dataset(one) == wanted


def test_together_refuses_what_it_does_not_have(scenes: Coco) -> None:
    with pytest.raises(InputError, match="unknown task 'counting': there are entailment, recognition"):
        together(scenes, ("counting",))
    with pytest.raises(InputError, match="limit 0 leaves no images"):
        together(scenes, BOTH, limit=0)
    with pytest.raises(InputError, match="'asked' is of recognition alone"):
        together(scenes, ("entailment",), cues=("asked",))
    with pytest.raises(InputError, match="prompt 9 of task 'recognition'"):
        together(scenes, ("recognition",), prompts=(9,))
    with pytest.raises(InputError, match="the task 'entailment' has no cue 'asked'"):
        entailment(scenes, cue="asked")


@pytest.mark.parametrize("per_image", [2, 4])
def test_asked_categories_are_present_as_often_as_not(tmp_path: Path, per_image: int) -> None:
    data = made(tmp_path, 600)
    asked = recognition(data, cue="asked", seed=1, asked_per_image=per_image)
    names = {category.name: category.id for category in data.categories}
    by_image: dict[int, list[tuple[int, int]]] = {}
    for sample in asked.samples:
        image, category = int(sample.group), names[str(sample.labels["asked"])]
        assert sample.labels["present"] == (category in data.objects[image])
        assert sample.id == f"{image}-{category}-{sample.labels['present']}"
        start, stop = sample.spans["category"]
        assert str(sample.prompt)[start:stop] == sample.labels["asked"]  # type: ignore[misc]
        by_image.setdefault(image, []).append((category, int(sample.labels["present"])))
    assert by_image.keys() == {image for image, present in data.objects.items() if present}
    for image, found in by_image.items():
        half = min(per_image // 2, len(data.objects[image]))
        assert Counter(present for _, present in found) == {1: half, 0: half}
        assert len({category for category, _ in found}) == 2 * half
    part = recognition(data, cue="asked", seed=1, asked_per_image=per_image, limit=7)
    assert {sample.id for sample in part.samples} < {sample.id for sample in asked.samples}
    assert all(sample.labels.keys() == {"present", "asked"} for sample in part.samples)


def test_how_many_are_asked_is_even(scenes: Coco, folder: Path) -> None:
    for n in (0, 3, -2):
        with pytest.raises(InputError, match=f"asked_per_image {n} cannot be half present"):
            recognition(scenes, cue="asked", asked_per_image=n, limit=9)
    section = {"task": "recognition", "annotations": folder / "annotations", "images": folder / "images"}
    found = load_dataset(DataSection.model_validate(section | {"cue": "asked", "asked_per_image": 4}))
    assert found == recognition(scenes, cue="asked", asked_per_image=4)
    several = DataSection.model_validate(section | {"task": ["recognition"], "cue": ["asked"], "asked_per_image": 4})
    assert {s.id for s in load_dataset(several).samples} == {f"{s.id}-recognition-asked-p0" for s in found.samples}


def test_an_image_that_shows_all_is_asked_for_none(tmp_path: Path) -> None:
    data = made(tmp_path, 40, n_categories=3)
    data.objects[5] = (1, 2, 3)  # type: ignore[index]
    assert "5" not in {sample.group for sample in recognition(data, cue="asked").samples}


@pytest.mark.parametrize("n_images", [60, 1500])
def test_nearest_captions_are_the_most_alike_of_other_images(tmp_path: Path, n_images: int) -> None:
    data = made(tmp_path, n_images)
    chosen = entailment(data, negatives="nearest", seed=3, limit=80)
    texts = [caption.text for captions in data.captions.values() for caption in captions]
    owners = np.array([image for image, captions in data.captions.items() for _ in captions])
    limit = 0.05 if len(texts) > 2000 else 1.0
    vectors = TfidfVectorizer(max_df=limit, token_pattern=r"\w+").fit_transform(texts)
    said = {s.group: {} for s in chosen.samples}
    for sample in chosen.samples:
        start, stop = sample.spans["caption"]
        said[sample.group][sample.labels["entailment"]] = str(sample.prompt)[start:stop]
    for group, pair in said.items():
        own = {caption.text.casefold() for caption in data.captions[int(group)]}
        assert pair[1].casefold() in own
        assert pair[0].casefold() not in own
        similar = linear_kernel(vectors[texts.index(pair[1])], vectors)[0]
        allowed = [i for i, text in enumerate(texts) if owners[i] != int(group) and text.casefold() not in own]
        assert similar[texts.index(pair[0])] == pytest.approx(similar[allowed].max(), abs=1e-5)


def test_nearest_captions_do_not_tell_by_their_words_alone(tmp_path: Path) -> None:
    data = entailment(made(tmp_path, 1500), negatives="nearest")
    texts = [str(s.prompt)[slice(*s.spans["caption"])] for s in data.samples]
    truth = [s.labels["entailment"] for s in data.samples]
    groups = [s.group for s in data.samples]
    counts = CountVectorizer().fit_transform(texts)
    score = cross_val_score(LogisticRegression(max_iter=500), counts, truth, groups=groups, cv=GroupKFold(5)).mean()
    assert 0.4 < score < 0.6


def test_captions_without_words_of_their_own_cannot_be_compared(tmp_path: Path) -> None:
    data = made(tmp_path, 8)
    alike = {image: (CocoCaption(image, image, "!"),) for image in data.captions}
    with pytest.raises(InputError, match="cannot be compared by their words"):
        entailment(replace(data, captions=alike), negatives="nearest")


def test_a_caption_like_no_other_has_no_nearest_and_its_image_is_left_out(tmp_path: Path) -> None:
    data = made(tmp_path, 20)
    data.captions[7] = (CocoCaption(70, 7, "unheard of"),)  # type: ignore[index]
    groups = {sample.group for sample in entailment(data, negatives="nearest").samples}
    assert len(groups) > 10
    assert "7" not in groups


def test_balanced_images_show_rare_categories_as_often_as_can_be(tmp_path: Path) -> None:
    data = made(tmp_path, 2000)
    balanced, plain = ([i.id for i in drawn(data, 5, balance=balance)] for balance in (True, False))
    assert sorted(balanced) == sorted(plain) == sorted(data.objects)
    assert balanced == [i.id for i in drawn(data, 5, balance=True)]
    assert balanced != [i.id for i in drawn(data, 6, balance=True)]

    def rarest(chosen: list[int]) -> int:
        counts = Counter(category for image in chosen for category in data.objects[image])
        return min(counts[category.id] for category in data.categories)

    there = rarest(balanced)
    assert rarest(balanced[:400]) == min(there, rarest(balanced[:400]))
    assert rarest(balanced[:400]) > 2 * rarest(plain[:400])
    chosen = {sample.group for sample in recognition(data, limit=400, seed=5, balance=True).samples}
    assert chosen == {str(image) for image in balanced[:400]}
    captions = {
        sample.group for sample in entailment(data, negatives="random", limit=200, seed=5, balance=True).samples
    }
    assert captions == {str(image) for image in balanced[:100]}


def test_prompts_of_the_users_own(scenes: Coco, tmp_path: Path) -> None:
    file = tmp_path / "prompts.toml"
    file.write_text('[entailment]\nplain = ["Q: {caption} {{yes}}?"]\n[recognition]\nplain = ["What?", "Which?"]\n')
    data = together(scenes, BOTH, limit=3, file=file)
    assert {s.labels["prompt"] for s in data.samples if s.labels["task"] == "recognition"} == {"p0", "p1"}
    assert all("{yes}?" in str(s.prompt) for s in data.samples if s.labels["task"] == "entailment")
    for text, message in (
        (
            "[entailment]\nplain = []",
            r"no list of prompts 'plain' of the task 'entailment': write \[entailment\] plain",
        ),
        ('[entailment]\nplain = ["no field"]', r"'no field' of entailment \(plain\) must have \{caption\} once"),
        ('[entailment]\nplain = ["{caption} {colour}"]', "must have {caption} once, and no other"),
        ('[entailment]\nplain = ["{caption"]', "cannot be read .*write {{ for a brace"),
        ("not toml", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=message):
            together(scenes, ("entailment",), limit=3, file=file)
    with pytest.raises(InputError, match="there is no file of prompts"):
        entailment(scenes, prompts=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("task", "options", "fingerprint"),
    [
        ("entailment", {"seed": 0}, "79c5bcb5bcca1e03"),
        ("entailment", {"negatives": "random", "cue": True, "prompt": 1, "seed": 3}, "0885b2b8f357d478"),
        ("entailment", {"negatives": "shared-category", "limit": 17, "seed": 1}, "f16ed44d028be596"),
        ("recognition", {"seed": 0}, "68f7aa3587c49f49"),
        ("recognition", {"cue": True, "limit": 11, "seed": 2, "prompt": 3}, "0b3d4c123d4d45a5"),
    ],
)
def test_one_task_alone_asks_what_it_always_asked(
    tmp_path: Path, task: str, options: dict[str, Any], fingerprint: str
) -> None:
    """Stores that were begun earlier are gone on with: their data sets have these fingerprints."""
    folder = write_scenes(tmp_path, n_images=30, size=32)
    scenes = load_coco(folder / "annotations", folder / "images")
    assert build(task, scenes, **options).fingerprint().startswith(fingerprint)
