"""Qwen-VL's prompts and token ids are those of the published code."""

from __future__ import annotations

import base64
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sonde.engine import Sample
from sonde.engine.capture import Capture
from sonde.engine.config import ModelSection
from sonde.engine.encoded import Encoded
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model, load_model
from sonde.engine.models.tokenizer import read_tiktoken
from sonde.errors import InputError, ModelError

from .tiny_qwen_vl import write_chat, write_qwen_vl

# As tokenization_qwen.py of the published checkpoints has them.
PARTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
SPECIAL = [*TEXT_SPECIAL, "<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]


class Tiktoken:
    """What tiktoken does: of the pairs in a part of a text, the one of the lowest rank is joined, again and again."""

    def __init__(self, path: Path) -> None:
        lines = (line.split() for line in path.read_bytes().splitlines())
        self.ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
        self.special = {token: len(self.ranks) + i for i, token in enumerate(SPECIAL)}
        self._apart = regex.compile("(" + "|".join(map(regex.escape, SPECIAL)) + ")")

    def __call__(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in self._apart.split(unicodedata.normalize("NFC", text)):
            if piece in self.special:
                ids.append(self.special[piece])
            else:
                ids += [self.ranks[token] for part in regex.findall(PARTS, piece) for token in self._join(part)]
        return ids

    def _join(self, part: str) -> list[bytes]:
        tokens = [bytes([byte]) for byte in part.encode()]
        while True:
            joined = [self.ranks.get(tokens[i] + tokens[i + 1]) for i in range(len(tokens) - 1)]
            pairs = [(rank, i) for i, rank in enumerate(joined) if rank is not None]
            if not pairs:
                return tokens
            _, i = min(pairs)
            tokens[i : i + 2] = [tokens[i] + tokens[i + 1]]


@pytest.fixture(scope="module")
def base(scratch: Path) -> Path:
    return write_qwen_vl(scratch / "qwen-vl of prompts")


@pytest.fixture(scope="module")
def chat(scratch: Path) -> Path:
    return write_chat(write_qwen_vl(scratch / "qwen-vl-chat of prompts"))


@pytest.fixture(scope="module")
def reference(base: Path) -> Tiktoken:
    return Tiktoken(base / "qwen.tiktoken")


def load(folder: Path) -> Model:
    return load_model(ModelSection(name=str(folder), dtype="float32", device="cpu"))


def encode(folder: Path, sample: Sample, prompt_format: Any = "auto") -> Encoded:
    model = load(folder)
    return Encoder(model, Capture.plan(("embed",), ("last",), "all", model.n_layers), prompt_format)(0, sample)


Asked = tuple[list[int], list[bool]]


def asked(encoded: Encoded) -> Asked:
    """Token ids, and which of them stand for images."""
    return encoded.sequence["input_ids"][0].tolist(), encoded.image.tolist()


@pytest.fixture
def written(reference: Tiktoken, base: Path) -> Callable[[str], Asked]:
    """Gives the same of a text in which each image is written out as `IMAGE`, by tiktoken."""
    n = json.loads((base / "config.json").read_text())["visual"]["n_queries"]

    def ids_of(text: str) -> Asked:
        ids = reference(text.replace("IMAGE", "<img>" + "<imgpad>" * n + "</img>"))
        return ids, [number == reference.special["<imgpad>"] for number in ids]

    return ids_of


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    return load(base).processor.tokenizer


PIECES = st.sampled_from([*SPECIAL[:4], *SPECIAL[-4:], " the", "red", "'S", "\n", "  "])


@given(st.lists(PIECES | st.text()).map("".join))
def test_ids_are_those_of_tiktoken(tokenizer: Any, reference: Tiktoken, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == reference(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_tokens_that_no_two_others_make_are_found_whole(tmp_path: Path) -> None:
    # tiktoken looks for the whole of a part before it joins bytes.
    ranks = [bytes([i]) for i in range(256)] + [b"abc", b"xy", b"xyz", b"yz"]
    path = tmp_path / "a.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(ranks)))
    tokenizer = read_tiktoken(path, PARTS, SPECIAL)
    assert tokenizer.encode("abc").ids == [256]
    assert tokenizer.encode("abcd").ids == [97, 98, 99, 100]
    assert tokenizer.encode("xyz").ids == [258]
    assert tokenizer.encode("xyzyz").ids == [258, 259]


def test_special_tokens_go_on_from_the_last_rank(tokenizer: Any, reference: Tiktoken) -> None:
    assert tokenizer.convert_tokens_to_ids(SPECIAL) == [len(reference.ranks) + i for i in range(len(SPECIAL))]
    # Of the published files: 151,643 ranks, and image_start_id 151857.
    assert 151_643 + SPECIAL.index("<img>") == 151_857


def test_the_base_model_is_asked_as_in_its_evaluation(
    base: Path, pictures: list[Path], written: Callable[[str], Asked]
) -> None:
    one, two = tuple(pictures[:1]), tuple(pictures[:2])
    assert asked(encode(base, Sample("a", prompt="what is there?", images=one))) == written(
        "IMAGEwhat is there? Answer:"
    )
    assert asked(encode(base, Sample("a", prompt="left or right:", images=two))) == written("IMAGEIMAGEleft or right:")
    assert asked(encode(base, Sample("a", prompt="the red star"))) == written("the red star Answer:")
    parts = [{"type": "text", "text": "a "}, {"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}]
    messages = ({"role": "user", "content": parts},)
    assert asked(encode(base, Sample("a", messages=messages, images=two))) == written("a IMAGE and IMAGE Answer:")


def test_the_chat_model_is_asked_in_chatml_with_numbered_pictures(
    chat: Path, pictures: list[Path], written: Callable[[str], Asked]
) -> None:
    begin = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    answer = "<|im_end|>\n<|im_start|>assistant\n"
    encoded = encode(chat, Sample("a", prompt="what is there?", images=tuple(pictures[:2])))
    assert asked(encoded) == written(f"{begin}Picture 1: IMAGE\nPicture 2: IMAGE\nwhat is there?{answer}")
    assert asked(encode(chat, Sample("a", prompt="the red star"))) == written(f"{begin}the red star{answer}")
    picture = {"type": "image"}
    messages = (
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [picture, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": [picture, {"type": "text", "text": "and this?"}]},
    )
    assert asked(encode(chat, Sample("a", messages=messages, images=tuple(pictures[:2])))) == written(
        f"<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nPicture 1: IMAGE\nwhat?{answer}a star<|im_end|>\n"
        f"<|im_start|>user\nPicture 2: IMAGE\nand this?{answer}"
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"chat_format": "raw"}'])
def test_a_folder_that_does_not_say_chatml_is_the_base_models(
    content: str, base: Path, chat: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    (folder / "generation_config.json").write_text(content)
    templates = [load(x).processor.chat_template for x in (folder, base, chat)]
    assert templates[0] == templates[1] != templates[2]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("the red star", "IMAGEIMAGEthe red star"),
        ("<imgpad>the <imgpad>red star", "IMAGEthe IMAGEred star"),
        ("a <img><imgpad></img> and <imgpad> star", "a IMAGE and IMAGE star"),
        ("the red <imgpad>star", "IMAGEthe red IMAGEstar"),
    ],
)
def test_images_of_a_raw_prompt_stand_where_it_says(
    prompt: str, text: str, base: Path, pictures: list[Path], written: Callable[[str], Asked]
) -> None:
    encoded = encode(base, Sample("a", prompt=prompt, images=tuple(pictures[:2])), "raw")
    assert asked(encoded) == written(text)
    model = load(base).module
    assert model.image_places(encoded.sequence["input_ids"])[0].equal(encoded.image)


def test_spans_are_found_behind_images_that_a_prompt_places(base: Path, pictures: list[Path]) -> None:
    model = load(base)
    encoder = Encoder(model, Capture.plan(("embed",), ("span:thing",), "all", model.n_layers), "raw")
    prompt = "<imgpad>the green circle and <img><imgpad></img> the red star is there"
    spans = {"thing": " red star"}
    encoded = encoder(0, Sample("a", prompt=prompt, images=tuple(pictures[:2]), spans=spans))
    found = encoded.sequence["input_ids"][0][encoded.marks["span:thing"]]
    assert found.tolist() == model.processor.tokenizer(" red star")["input_ids"]


@pytest.mark.parametrize("prompt", ["<img>a.jpg</img>what?", "a </img> b", "a <img> b"])
@pytest.mark.parametrize("n_images", [0, 1])
def test_marks_without_an_image_are_refused(prompt: str, n_images: int, base: Path, pictures: list[Path]) -> None:
    sample = Sample("a", prompt=prompt, images=tuple(pictures[:n_images]))
    with pytest.raises(InputError, match=r"'a'.* has </?img> without an image: write <img><imgpad></img> where an"):
        encode(base, sample, "raw")


def test_pictures_are_squeezed_to_a_square(base: Path, pictures: list[Path]) -> None:
    encoded = encode(base, Sample("a", prompt="the", images=(pictures[1],)))
    size = json.loads((base / "config.json").read_text())["visual"]["image_size"]
    with Image.open(pictures[1]) as image:
        assert image.width != image.height
        square = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    values = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).reshape(size, size, 3) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    want = ((values - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(encoded.other["pixel_values"][0], want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"has no tokenizer: there is neither qwen\.tiktoken nor tokenizer\.json"),
        ("no ranks", r"qwen\.tiktoken cannot be read"),
        ("IQ== 0\n", r"has <img> at 215, and the configuration says \d+: give the files of one model"),
    ],
)
def test_a_tokenizer_that_is_missing_or_of_another_model_is_refused(
    content: str | None, message: str, base: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    (folder / "qwen.tiktoken").unlink()
    if content is not None:
        (folder / "qwen.tiktoken").write_text(content)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_tokenizer_json_wins(base: Path, tmp_path: Path, tokenizer: Any) -> None:
    folder = Path(shutil.copytree(base, tmp_path / "model"))
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "qwen.tiktoken").write_text("no ranks")
    assert load(folder).processor.tokenizer("the red star")["input_ids"] == tokenizer("the red star")["input_ids"]
