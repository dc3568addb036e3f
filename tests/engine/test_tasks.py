import random
import re
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sonde.engine.tasks
from sonde.engine.coco import Coco, CocoCaption, CocoCategory, CocoImage, load_coco
from sonde.engine.scenes import write_scenes
from sonde.engine.tasks import TASKS, build, entailment, recognition
from sonde.engine.tasks.edit import Editor, plural
from sonde.errors import InputError

NAMES = ("person", "cat", "dog", "hot dog", "orange", "scissors", "umbrella")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Coco:
    folder = write_scenes(tmp_path_factory.mktemp("scenes"), n_images=30, size=32)
    return load_coco(folder / "annotations", folder / "images")


def coco(folder: Path, images: dict[int, tuple[tuple[str, ...], list[str]]], **changes: Any) -> Coco:
    """Annotations from category names and captions per image id."""
    ids = {name: i for i, name in enumerate(NAMES, start=1)}
    for image in images:
        (folder / f"{image}.png").touch()
    return Coco(
        name="made",
        images_folder=folder,
        images=tuple(CocoImage(image, f"{image}.png") for image in images),
        categories=tuple(CocoCategory(i, name) for name, i in ids.items()),
        captions={
            image: tuple(CocoCaption(10 * image + i, image, text) for i, text in enumerate(texts))
            for image, (_, texts) in images.items()
        },
        objects={image: tuple(sorted(ids[name] for name in names)) for image, (names, _) in images.items()},
        negatives={},
    )


def captions_of(data: Any, label: int, template: str = "{caption}") -> dict[str, str]:
    """The captions in a data set's prompts by group, found again by the words around them."""
    before, after = re.split(r"\{caption\}", template)
    return {
        sample.group: sample.prompt[len(before) : len(sample.prompt) - len(after)]
        for sample in data.samples
        if sample.labels["entailment"] == label
    }


def template_of(task: str, kind: str = "plain", index: int = 0) -> str:
    folder = Path(sonde.engine.tasks.__file__).parent
    return str(tomllib.loads((folder / "prompts" / f"{task}.toml").read_text())[kind][index])


@pytest.mark.parametrize("negatives", ["swap", "random", "shared-category"])
def test_entailment_is_balanced_by_image(scenes: Coco, negatives: str) -> None:
    data = entailment(scenes, negatives=negatives)
    assert data.labels == ("entailment",)
    assert len(data) == 2 * len(scenes.images)
    by_group = Counter((sample.group, sample.labels["entailment"]) for sample in data.samples)
    assert by_group == {(str(image.id), label): 1 for image in scenes.images for label in (0, 1)}
    for sample in data.samples:
        assert sample.images == (scenes.images_folder / f"scenes_{int(sample.group):06d}.png",)
        assert re.fullmatch(rf"{sample.group}-\d+-{sample.labels['entailment']}", sample.id)
    true = captions_of(data, 1, template_of("entailment"))
    false = captions_of(data, 0, template_of("entailment"))
    for image in scenes.images:
        own = {caption.text for caption in scenes.captions[image.id]}
        assert true[str(image.id)] in own
        assert false[str(image.id)] not in own


def test_swap_takes_the_written_negative_of_the_very_caption(scenes: Coco) -> None:
    data = entailment(scenes, negatives="swap")
    true, false = (captions_of(data, label, template_of("entailment")) for label in (1, 0))
    for image in scenes.images:
        sources = {caption.id: caption.text for caption in scenes.captions[image.id]}
        pairs = {(sources[negative.source or 0], negative.text) for negative in scenes.negatives[image.id]}
        assert (true[str(image.id)], false[str(image.id)]) in pairs


@pytest.mark.parametrize("task", ["entailment", "recognition"])
def test_a_task_depends_on_its_seed_alone(scenes: Coco, task: str) -> None:
    first, again, other = (build(task, scenes, limit=16, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()
    assert len(first) == 16
    order = [image.file_name for image in scenes.images]
    places = [order.index(sample.images[0].name) for sample in first.samples]
    assert places == sorted(places)
    everything = {sample.id: sample for sample in build(task, scenes, seed=0).samples}
    assert all(everything[sample.id] == sample for sample in first.samples)


def test_recognition_names_the_categories_present(scenes: Coco) -> None:
    data = recognition(scenes)
    names = {category.id: category.name for category in scenes.categories}
    assert data.classes == {"objects": tuple(names[i] for i in sorted(names))}
    assert [sample.id for sample in data.samples] == [str(image.id) for image in scenes.images]
    assert data.column("objects") == [
        tuple(names[category] for category in scenes.objects[image.id]) for image in scenes.images
    ]
    assert all(len(sample.images) == 1 and sample.group == sample.id for sample in data.samples)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_cue_names_the_whole_vocabulary_and_no_more(scenes: Coco, task: str) -> None:
    plain, cued = (build(task, scenes, cue=cue) for cue in (False, True))
    vocabulary = ", ".join(category.name for category in scenes.categories)
    assert all(vocabulary in (sample.prompt or "") for sample in cued.samples)
    assert not any(vocabulary in (sample.prompt or "") for sample in plain.samples)
    # With and without cue, the same is asked about the same images.
    assert [(s.id, s.labels) for s in plain.samples] == [(s.id, s.labels) for s in cued.samples]
    if task == "recognition":
        assert len({sample.prompt for sample in cued.samples}) == 1


@pytest.mark.parametrize("kind", ["plain", "cue"])
@pytest.mark.parametrize("index", range(4))
def test_the_caption_is_a_span_of_the_prompt(kind: str, index: int, tmp_path: Path) -> None:
    # Captions that stand in the prompt a second time, or hold what looks like a field.
    texts = {1: "Image", 2: "A dog {categories} and a cat.", 3: "a"}
    data = coco(tmp_path, {image: ((), [text]) for image, text in texts.items()})
    for sample in entailment(data, negatives="random", cue=kind == "cue", prompt=index).samples:
        assert sample.prompt is not None
        before, after = (
            template_of("entailment", kind, index).replace("{categories}", ", ".join(NAMES)).split("{caption}")
        )
        assert sample.spans == {"caption": (len(before), len(sample.prompt) - len(after))}


@pytest.mark.parametrize("index", range(4))
def test_each_category_of_a_cue_is_a_span(index: int, tmp_path: Path) -> None:
    data = coco(tmp_path, {1: ((), ["A bus."]), 2: ((), ["A bus."])})
    cued = recognition(data, cue=True, prompt=index)
    before = template_of("recognition", "cue", index).split("{")[0]
    for sample in cued.samples:
        assert {name: (sample.prompt or "")[slice(*place)] for name, place in sample.spans.items()} == {  # type: ignore[arg-type]
            name: name for name in NAMES
        }
        # "dog" is not the one of "hot dog".
        assert sample.spans["dog"] == (len(f"{before}person, cat, "), len(f"{before}person, cat, dog"))
    assert not recognition(data, prompt=index).samples[0].spans


@pytest.mark.parametrize("task", sorted(TASKS))
def test_spans_of_a_task_leave_its_fingerprint_as_it_was(scenes: Coco, task: str) -> None:
    data = build(task, scenes, cue=True)
    bare = replace(data, samples=tuple(replace(sample, spans={}) for sample in data.samples), derived_spans=False)
    assert data.fingerprint() == bare.fingerprint()


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("kind", ["plain", "cue"])
def test_prompts_have_the_fields_of_their_kind_and_differ(scenes: Coco, task: str, kind: str) -> None:
    folder = Path(sonde.engine.tasks.__file__).parent
    templates = tomllib.loads((folder / "prompts" / f"{task}.toml").read_text())[kind]
    fields = {"entailment": {"caption"}, "recognition": set()}[task] | ({"categories"} if kind == "cue" else set())
    assert len(templates) >= 3
    for index, template in enumerate(templates):
        assert set(re.findall(r"\{(\w+)\}", template)) == fields
        prompt = build(task, scenes, cue=kind == "cue", prompt=index).samples[0].prompt or ""
        assert prompt.startswith(template.split("{")[0])
    first = {build(task, scenes, cue=kind == "cue", prompt=index).samples[0].prompt for index in range(len(templates))}
    assert len(first) == len(templates)
    with pytest.raises(InputError, match=rf"prompt {len(templates)} .* there are {len(templates)}, numbered 0 to"):
        build(task, scenes, cue=kind == "cue", prompt=len(templates))


def test_unknown_names_are_refused_with_those_there_are(scenes: Coco) -> None:
    with pytest.raises(InputError, match="unknown task 'counting': there are entailment, recognition"):
        build("counting", scenes)
    with pytest.raises(InputError, match="no option 'negatives': it has cue, limit, seed, prompt"):
        build("recognition", scenes, negatives="swap")
    with pytest.raises(InputError, match="unknown negatives 'hard': there are swap, random, shared-category"):
        build("entailment", scenes, negatives="hard")


def test_limits_that_leave_nothing_are_refused_and_odd_ones_rounded_down(scenes: Coco) -> None:
    assert len(entailment(scenes, limit=7)) == 6
    with pytest.raises(InputError, match="limit 1"):
        entailment(scenes, limit=1)
    with pytest.raises(InputError, match="limit 0"):
        recognition(scenes, limit=0)


def test_only_the_images_that_are_used_must_exist(tmp_path: Path) -> None:
    data = coco(tmp_path, {1: ((), ["A red bus."]), 2: ((), ["Nothing to exchange."])})
    (tmp_path / "2.png").unlink()
    assert len(entailment(data)) == 2
    with pytest.raises(InputError, match=r"1 of 2 images are missing, the first is .*2\.png"):
        recognition(data)


def test_images_whose_captions_cannot_be_edited_are_left_out(tmp_path: Path) -> None:
    data = coco(tmp_path, {1: ((), ["It rains.", "A red bus."]), 2: ((), ["It rains."])})
    assert {sample.group for sample in entailment(data).samples} == {"1"}
    only = coco(tmp_path, {2: ((), ["It rains."])})
    with pytest.raises(InputError, match="no image of 'made' has a caption"):
        entailment(only)
    with pytest.raises(InputError, match="no image of 'made' has a caption"):
        entailment(only, negatives="random")


def test_shared_category_takes_the_caption_of_the_nearest_set_by_jaccard(tmp_path: Path) -> None:
    rng = random.Random(0)
    images = {i: (tuple(n for n in NAMES if rng.random() < 0.4), [f"Number {i}."]) for i in range(40)}
    data = entailment(coco(tmp_path, images), negatives="shared-category")
    false = captions_of(data, 0, template_of("entailment"))

    def jaccard(a: int, b: int) -> float:
        u, v = set(images[a][0]), set(images[b][0])
        return len(u & v) / len(u | v) if u | v else 1.0

    for image in images:
        other = int(re.findall(r"\d+", false[str(image)])[0])
        assert other != image
        assert jaccard(image, other) == max(jaccard(image, i) for i in images if i != image)


def test_random_negatives_differ_from_every_caption_of_the_image(tmp_path: Path) -> None:
    images: dict[int, tuple[tuple[str, ...], list[str]]] = {
        i: ((), ["A photo.", "a PHOTO.", f"Number {i}."]) for i in range(12)
    }
    false = captions_of(entailment(coco(tmp_path, images), negatives="random"), 0, template_of("entailment"))
    assert all(text.startswith("Number") and text != f"Number {group}." for group, text in false.items())


def falsified(text: str, present: tuple[str, ...] = (), others: tuple[str, ...] = ()) -> set[tuple[str, str]]:
    """All that a caption can become, by drawing often."""
    editor = Editor.for_categories(dict.fromkeys(NAMES, 1))
    captions = [CocoCaption(i, 1, caption) for i, caption in enumerate((text, *others))]
    rng = random.Random(0)
    drawn = [editor.falsify(captions[0], captions, present, rng) for _ in range(400)]
    return {(caption.kind, caption.text) for caption in drawn if caption is not None}


def test_a_noun_becomes_a_category_that_is_neither_present_nor_named() -> None:
    assert falsified("A dog sleeps.", present=("dog", "person"), others=("Some cats.",)) == {
        ("object", "A hot dog sleeps."),
        ("object", "An umbrella sleeps."),
    }
    assert falsified("Dogs sleep.", present=("dog", "person", "cat")) == {
        ("object", "Hot dogs sleep."),
        ("object", "Scissors sleep."),
        ("object", "Umbrellas sleep."),
    }
    # The longest name counts, and words within words do not.
    assert not any("hot" in text for _, text in falsified("A hot dog.", present=("hot dog",)))
    assert falsified("A catalogue of dogmas.") == set()


def test_a_colour_or_a_number_becomes_one_that_no_caption_names() -> None:
    colours = {text for _, text in falsified("A grey wall.", others=("Red and gray bricks, green and blue doors.",))}
    assert colours == {f"A {c} wall." for c in ("yellow", "purple", "pink", "brown", "black", "white")}
    numbers = falsified("Two walls.", others=("Three or four.", "five six seven eight"))
    assert numbers == {("attribute", "Nine walls."), ("attribute", "Ten walls.")}
    # "orange" may be the fruit.
    assert falsified("An orange wall.") == set()


@pytest.mark.parametrize(
    ("text", "opposite"),
    [
        ("A wall left of a tree.", "A wall right of a tree."),
        ("A wall to the right of a tree.", "A wall to the left of a tree."),
        ("A lamp above a tree.", "A lamp below a tree."),
        ("A wall in front of a tree.", "A wall behind a tree."),
        ("On the left is a tree.", "On the right is a tree."),
    ],
)
def test_a_relation_becomes_its_opposite(text: str, opposite: str) -> None:
    assert falsified(text) == {("relation", opposite)}
    assert falsified(text, others=(opposite,)) == set()


def test_a_verb_is_no_relation() -> None:
    assert falsified("A bag left on a bench.") == set()


def test_common_categories_come_in_more_often() -> None:
    editor = Editor.for_categories({"person": 90, "cat": 9, "dog": 1, "umbrella": 0})
    rng = random.Random(0)
    caption = CocoCaption(1, 1, "A dog.")
    drawn = [editor.falsify(caption, [caption], ["dog"], rng) for _ in range(500)]
    counts = Counter(edited.text for edited in drawn if edited is not None)
    assert counts.keys() == {"A person.", "A cat."}
    assert counts["A person."] > 5 * counts["A cat."]


@pytest.mark.parametrize(
    ("name", "many"),
    [
        ("dog", "dogs"),
        ("bus", "buses"),
        ("wine glass", "wine glasses"),
        ("toothbrush", "toothbrushes"),
        ("person", "people"),
        ("scissors", "scissors"),
        ("cherry", "cherries"),
        ("toy", "toys"),
    ],
)
def test_plurals(name: str, many: str) -> None:
    assert plural(name) == many
