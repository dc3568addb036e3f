import hashlib
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonde.engine.picture import ImageBytes
from sonde.engine.pixels import open_image
from sonde.engine.sample import Dataset, Sample
from sonde.errors import InputError

CHAT = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},)


def dataset(groups: list[str]) -> Dataset:
    return Dataset(tuple(Sample(str(i), prompt=f"text {i}", group=group) for i, group in enumerate(groups)))


def test_a_sample_without_group_is_its_own_group() -> None:
    assert Sample("a", prompt="x").group == "a"
    assert Sample("a", prompt="x", group="g").group == "g"


def test_a_sample_keeps_its_labels_when_the_callers_mapping_changes() -> None:
    labels: dict[str, Any] = {"y": 1}
    sample = Sample("a", prompt="x", labels=labels)
    labels["y"] = 2
    assert sample.labels == {"y": 1}


def test_a_span_is_a_part_of_the_prompt_by_place_or_by_text() -> None:
    sample = Sample("a", prompt="a red car in a cart", spans={"colour": [2, 5], "last": "cart", "all": (0, 19)})  # type: ignore[dict-item]
    assert sample.spans == {"colour": (2, 5), "last": (15, 19), "all": (0, 19)}
    chat = Sample("a", messages=CHAT, spans={"question": "What is"})
    assert chat.spans == {"question": "What is"}


@pytest.mark.parametrize(
    ("spans", "said"),
    [
        ({"x": (2, 20)}, "span 'x' is characters 2 to 20, but the prompt has 19"),
        ({"x": (5, 5)}, "span 'x' is characters 5 to 5"),
        ({"x": (-1, 5)}, "span 'x' is characters -1 to 5"),
        ({"x": (5, 6)}, "span 'x' is blank, ' '"),
        ({"x": (1.0, 2)}, r"span 'x' is \(1.0, 2\): give \[start, stop\]"),
        ({"x": 3}, "span 'x' is 3: give"),
        ({"x": "bus"}, "span 'x' is the text 'bus', which the prompt does not have"),
        ({"x": "car"}, "span 'x' is the text 'car', which the prompt has more than once"),
        ({"": (0, 1)}, "span '' has no name"),
        (["x"], "spans is a list"),
    ],
)
def test_a_span_that_is_not_there_is_refused(spans: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"sample 'a': {said}"):
        Sample("a", prompt="a red car in a cart", spans=spans)


def test_a_span_of_messages_is_a_text_that_stands_in_one_of_them_once() -> None:
    turns = (*CHAT, {"role": "assistant", "content": "It is a car."})
    for spans, said in (
        ({"x": "is"}, "the text 'is', which the prompt has more than once"),
        ({"x": "bus"}, "which the prompt does not have"),
        ({"x": (0, 4)}, "but the sample has messages: give the span's text"),
    ):
        with pytest.raises(InputError, match=said):
            Sample("a", messages=turns, spans=spans)  # type: ignore[arg-type]


def test_spans_enter_the_fingerprint_where_there_are_any_that_do_not_follow_from_the_prompt() -> None:
    plain = Dataset((Sample("a", prompt="a red car", group="g"),))
    # As data sets without spans have it since there are stores.
    line = '{"group":"g","id":"a","images":[],"labels":{},"messages":null,"prompt":"a red car","split":""}\n'
    assert plain.fingerprint() == hashlib.sha256(line.encode()).hexdigest()
    first, second = ((Sample("a", prompt="a red car", group="g", spans={"x": (0, n)}),) for n in (1, 5))
    assert len({plain.fingerprint(), Dataset(first).fingerprint(), Dataset(second).fingerprint()}) == 3
    assert Dataset(first, derived_spans=True).fingerprint() == plain.fingerprint()


def test_samples_of_one_prompt_share_their_spans() -> None:
    first, second = (Sample(name, prompt="a red car", spans={"x": (0, 5)}) for name in "ab")
    assert first.spans is second.spans


def test_samples_travel_between_processes() -> None:
    data = Dataset((Sample("a", messages=CHAT, images=(Path("a.png"),), labels={"y": ("u", "v")}),), {"y": ("u", "v")})
    again = pickle.loads(pickle.dumps(data))
    assert again == data
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "neither of prompt and messages"),
        ({"prompt": "x", "messages": CHAT}, "both of prompt and messages"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": 3}, "prompt of sample 'a' is a int"),
        ({"messages": ()}, "no chat"),
        ({"messages": ({"role": "user"},)}, "no chat"),
        ({"prompt": "x", "images": "a.png"}, "images of sample 'a' is one image, 'a.png'"),
        ({"prompt": "x", "images": ImageBytes(b"x")}, "images of sample 'a' is one image, 'of 1 bytes'"),
        ({"prompt": "x", "images": (b"x",)}, "an image of sample 'a' is a bytes: give a path, ImageBytes or ImageUrl"),
        ({"prompt": "x", "group": 7}, "group 7"),
        ({"prompt": "x", "labels": {"y": ["u"]}}, "label 'y' of sample 'a' is a list"),
        ({"prompt": "x", "labels": {"y": (1, 2)}}, "label 'y' of sample 'a' is a tuple"),
        ({"prompt": "x", "labels": {"": 1}}, "has no name"),
    ],
)
def test_a_sample_that_cannot_be_used_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sample("a", **fields)


def test_an_empty_id_is_refused() -> None:
    with pytest.raises(InputError, match="id of a sample is empty"):
        Sample("", prompt="x")


def test_an_image_alone_is_enough_to_read() -> None:
    assert Sample("a", prompt="", images=(Path("a.png"),)).prompt == ""


def test_bytes_are_an_image_like_the_file_that_they_are_of(pictures: list[Path]) -> None:
    image = ImageBytes(pictures[0].read_bytes())
    assert Sample("a", prompt="x", images=(image,)).images == (image,)
    assert open_image(image).tobytes() == open_image(pictures[0]).tobytes()
    assert pickle.loads(pickle.dumps(image)) == image != ImageBytes(pictures[1].read_bytes())
    with pytest.raises(InputError, match="the image of 5 bytes cannot be read: it has no format that Pillow knows"):
        open_image(ImageBytes(b"hello"))
    with pytest.raises(InputError, match="the data of an image are a str: give the bytes of an image file"):
        ImageBytes("a.png")  # type: ignore[arg-type]


def test_a_data_set_refuses_no_samples_and_repeated_ids() -> None:
    with pytest.raises(InputError, match="no samples"):
        Dataset(())
    with pytest.raises(InputError, match="'twice'"):
        Dataset((Sample("once", prompt="x"), Sample("twice", prompt="x"), Sample("twice", prompt="y")))


def test_a_label_outside_its_columns_classes_is_refused() -> None:
    samples = (Sample("a", prompt="x", labels={"y": ("cat",)}), Sample("b", prompt="x", labels={"y": ("dog", "gnu")}))
    with pytest.raises(InputError, match="'gnu'"):
        Dataset(samples, classes={"y": ("cat", "dog")})


def test_label_columns_are_in_order_of_appearance_and_none_where_absent() -> None:
    data = Dataset((Sample("a", prompt="x", labels={"u": 1}), Sample("b", prompt="x", labels={"v": "w", "u": None})))
    assert len(data) == 2
    assert data.labels == ("u", "v")
    assert data.column("u") == [1, None]
    assert data.column("v") == [None, "w"]
    with pytest.raises(InputError, match="no label column 'w' in the data set: there are u, v"):
        data.column("w")


BASE = Sample("a", prompt="x", images=(Path("i.png"),), group="g", split="s", labels={"y": 1, "z": None})


@pytest.mark.parametrize(
    "change",
    [
        {"id": "b"},
        {"prompt": "y"},
        {"prompt": None, "messages": CHAT},
        {"images": (Path("j.png"),)},
        {"images": (Path("i.png"), Path("i.png"))},
        {"images": (ImageBytes(b"i.png"),)},
        {"group": "h"},
        {"split": "t"},
        {"labels": {"y": 2, "z": None}},
        {"labels": {"y": "1", "z": None}},
        {"labels": {"y": True, "z": None}},
        {"labels": {"y": 1}},
    ],
)
def test_the_fingerprint_changes_with_every_field(change: dict[str, Any]) -> None:
    assert Dataset((replace(BASE, **change),)).fingerprint() != Dataset((BASE,)).fingerprint()


def test_the_fingerprint_knows_the_order_of_samples_but_not_of_label_columns() -> None:
    other = Sample("b", prompt="x")
    assert Dataset((BASE, other)).fingerprint() != Dataset((other, BASE)).fingerprint()
    assert Dataset((replace(BASE, labels={"z": None, "y": 1}),)).fingerprint() == Dataset((BASE,)).fingerprint()


def test_the_fingerprint_does_not_depend_on_where_the_root_lies() -> None:
    here, there = (
        Dataset((Sample("a", prompt="x", images=(Path(root, "sub", "i.png"),)),), root=Path(root))
        for root in ("/here", "/over/there")
    )
    assert here.fingerprint() == there.fingerprint()
    assert here.fingerprint() != replace(here, root=None).fingerprint()


def test_the_fingerprint_is_the_hash_of_one_json_line_per_sample() -> None:
    # Written out by hand: a stored fingerprint must be found again by later versions and on every machine.
    line = (
        '{"group":"g","id":"a","images":["i.png"],"labels":{"y":1,"z":null},"messages":null,"prompt":"x","split":"s"}\n'
    )
    assert Dataset((BASE,)).fingerprint() == hashlib.sha256(line.encode()).hexdigest()


def test_bytes_enter_the_fingerprint_by_their_digest() -> None:
    line = (
        '{"group":"a","id":"a","images":[{"sha256":"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}]'
        ',"labels":{},"messages":null,"prompt":"x","split":""}\n'
    )
    data = Dataset((Sample("a", prompt="x", images=(ImageBytes(b"x"),)),))
    assert data.fingerprint() == hashlib.sha256(line.encode()).hexdigest()


def test_messages_that_are_no_json_have_no_fingerprint() -> None:
    data = Dataset((Sample("a", messages=({"role": "user", "content": Path("x")},)),))
    with pytest.raises(InputError, match="not plain JSON"):
        data.fingerprint()


@given(
    groups=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30),
    limit=st.integers(1, 30),
    seed=st.integers(0, 2**32),
)
def test_a_subset_keeps_groups_whole_and_order_and_size(groups: list[str], limit: int, seed: int) -> None:
    data = dataset(groups)
    if limit < min(groups.count(group) for group in groups):
        with pytest.raises(InputError, match="groups are never split"):
            data.subset(limit, seed)
        return
    part = data.subset(limit, seed)
    assert len(part) <= limit
    assert part == data.subset(limit, seed)
    assert list(part.samples) == [sample for sample in data.samples if sample in part.samples]
    taken = {sample.group for sample in part.samples}
    assert len(part) == sum(groups.count(group) for group in taken)
    # Nothing more would have fitted.
    assert all(len(part) + groups.count(group) > limit for group in set(groups) - taken)


def test_subsets_of_different_seeds_differ_and_no_limit_takes_all() -> None:
    data = dataset([str(i) for i in range(50)])
    assert data.subset(10, 0) != data.subset(10, 1)
    assert data.subset(None) is data
    assert data.subset(50) is data
    with pytest.raises(InputError, match="limit 0"):
        data.subset(0)
