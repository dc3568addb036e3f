"""Spans of a prompt are followed to exactly the tokens that were made of them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.engine import Sample
from sonde.engine.alignment import Alignment
from sonde.engine.capture import Capture
from sonde.engine.config import ModelSection
from sonde.engine.families import FAMILIES, Family
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model, load_model
from sonde.errors import InputError

from .tiny_parts import CHAT

SUPPORTED = [family for family in FAMILIES if family.supported]
TRIMMING = CHAT.replace("p['text']", "p['text'] | trim").replace("m['content'] }}", "m['content'] | trim }}")

pytestmark = [pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")]


def encode(model: Model, sample: Sample, *names: str, prompt_format: Any = "auto", truncate: int | None = None) -> Any:
    capture = Capture.plan(("embed",), tuple(f"span:{name}" for name in names) or ("last",), "all", 3)
    return Encoder(model, capture, prompt_format, truncate)(0, sample)


def said(model: Model, encoded: Any, name: str) -> str:
    """What the tokens of a span say, without the white space that a tokenizer puts to them."""
    tokenizer = getattr(model.processor, "tokenizer", model.processor)
    ids = encoded.sequence["input_ids"][0][encoded.marks[f"span:{name}"]]
    return str(tokenizer.decode(ids)).strip()


PROMPT = "a red circle left of a star and a red circle"
SPANS = {"first": (0, 1), "colour": (2, 5), "thing": (2, 12), "again": (34, 44), "end": (38, 44), "all": (0, 44)}


@pytest.mark.parametrize("family", SUPPORTED, ids=lambda family: family.model_type)
def test_the_tokens_of_a_span_say_what_it_says_in_every_family(
    family: Family, load: Callable[[str], Model], pictures: list[Path]
) -> None:
    model = load(family.model_type)
    least, most = 1 if "with" in family.takes else 0, 0 if family.takes == "text" else 1 if "one" in family.takes else 2
    formats = ("raw", "chat") if most and getattr(model.processor, "chat_template", None) else ("raw",)
    for n_images in range(least, most + 1):
        sample = Sample("a", prompt=PROMPT, images=tuple(pictures[:n_images]), spans=SPANS)
        for prompt_format in formats:
            encoded = encode(model, sample, *SPANS, prompt_format=prompt_format)
            assert {name: said(model, encoded, name) for name in SPANS} == {
                name: PROMPT[start:stop] for name, (start, stop) in SPANS.items()
            }
            assert not (encoded.marks["span:all"] & encoded.image).any()
            # The first of the same words is told from the second.
            places = [encoded.marks[f"span:{name}"].nonzero()[:, 0] for name in ("thing", "again")]
            assert places[0].max() < places[1].min()
            plain = encode(model, sample, prompt_format=prompt_format)
            assert encoded.sequence.keys() == plain.sequence.keys()
            assert all(encoded.sequence[key].equal(plain.sequence[key]) for key in plain.sequence)


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl", "kosmos-2"])
def test_a_span_has_every_token_that_shares_a_character_with_it(
    model_type: str, load: Callable[[str], Model], pictures: list[Path]
) -> None:
    model = load(model_type)
    images = () if model_type == "llama" else (pictures[0],)
    # Several tokens to a character, and several characters to a token.
    prompt = "Grüße 👩‍🚀 a circle"
    spans = {"emoji": (6, 9), "half": (14, 16), "umlaut": (2, 3)}
    encoded = encode(model, Sample("a", prompt=prompt, images=images, spans=spans), *spans)
    if model_type != "kosmos-2":
        assert said(model, encoded, "emoji") == "👩‍🚀"
        assert said(model, encoded, "umlaut") == "ü"
        assert encoded.marks["span:emoji"].sum() > 3
    assert said(model, encoded, "half") == ("rc" if model_type == "kosmos-2" else "circle")


def test_a_prompt_of_nothing_but_a_word_that_marks_of_images_hold_is_followed(
    load: Callable[[str], Model], pictures: list[Path]
) -> None:
    for model_type, word in (("kosmos-2", "image"), ("paligemma", "image"), ("gemma3", "start"), ("idefics3", "row")):
        model = load(model_type)
        sample = Sample("a", prompt=word, images=(pictures[0],), spans={"word": word})
        assert said(model, encode(model, sample, "word", prompt_format="raw"), "word") == word


def test_spans_between_images_are_followed(load: Callable[[str], Model], pictures: list[Path]) -> None:
    image = {"type": "image"}
    content = ["a star", image, "a red star", image, "a star that is blue"]
    parts = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in content]
    spans = {"between": "red star", "behind": "that is"}
    sample = Sample("a", messages=({"role": "user", "content": parts},), images=tuple(pictures[:2]), spans=spans)
    for model_type in ("llava", "qwen2_5_vl", "idefics3", "gemma3"):
        encoded = encode(load(model_type), sample, *spans)
        assert {name: said(load(model_type), encoded, name) for name in spans} == spans
        [where] = encoded.marks["span:between"].nonzero()[:1, 0].tolist()
        assert encoded.image[:where].any()
        assert encoded.image[where:].any()


@pytest.fixture(scope="module")
def trimming(model_folder: Callable[[str], Path], scratch: Path) -> dict[str, Model]:
    """A text model and an image-text model with a chat template that trims what it is given."""
    import transformers as hf

    models = {}
    for model_type, auto in (("llama", hf.AutoTokenizer), ("llava", hf.AutoProcessor)):
        folder = scratch / f"trimming-{model_type}"
        shutil.copytree(model_folder(model_type), folder)
        processor = auto.from_pretrained(folder)
        processor.chat_template = TRIMMING.replace("IMAGE", "<image>")
        processor.save_pretrained(folder)
        models[model_type] = load_model(ModelSection(name=str(folder), dtype="float32"))
    return models


@pytest.mark.parametrize("model_type", ["llama", "llava"])
def test_a_template_that_trims_its_text_moves_no_span(model_type: str, trimming: dict[str, Model]) -> None:
    model = trimming[model_type]
    prompt = " \n a red star  "
    spans = {"all": (0, len(prompt)), "end": (9, 15), "role": (2, 4)}
    encoded = encode(model, Sample("a", prompt=prompt, spans=spans), *spans, prompt_format="chat")
    assert {name: said(model, encoded, name) for name in spans} == {"all": "a red star", "end": "star", "role": "a"}
    turns = ({"role": "user", "content": "what? "}, {"role": "assistant", "content": " a red star "})
    encoded = encode(model, Sample("a", messages=turns, spans={"answer": "red star "}), "answer")
    assert said(model, encoded, "answer") == "red star"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] }} {{ messages[0]['content'] }}", "chat template repeats span 'colour'"),
        ("{{ messages[-1]['content'] }}", "chat template leaves out span 'colour'"),
        ("{{ messages[0]['content'] | length }}", "another text of its messages when spans are marked"),
    ],
)
def test_a_template_that_spans_cannot_be_followed_through_is_refused(
    template: str, message: str, trimming: dict[str, Model]
) -> None:
    turns = ({"role": "user", "content": "a red star"}, {"role": "assistant", "content": "a"})
    sample = Sample("s0", messages=turns, spans={"colour": "red"})
    tokenizer = trimming["llama"].processor
    before, tokenizer.chat_template = tokenizer.chat_template, template
    try:
        with pytest.raises(InputError, match=f"sample 's0': .*{message}"):
            encode(trimming["llama"], sample, "colour")
    finally:
        tokenizer.chat_template = before


def test_a_span_that_is_cut_off_is_named(load: Callable[[str], Model]) -> None:
    sample = Sample("s0", prompt="a red star above a circle", spans={"early": "red", "late": "above a circle"})
    for model_type in ("llama", "llava", "roberta"):
        model = load(model_type)
        encoded = encode(model, sample, "early", prompt_format="raw", truncate=6)
        assert (encoded.length, said(model, encoded, "early")) == (6, "red")
        with pytest.raises(InputError, match=r"sample 's0': span 'late' is cut off by data\.truncate"):
            encode(model, sample, "early", "late", prompt_format="raw", truncate=6)


def test_a_sample_without_the_span_and_a_tokenizer_without_places_are_refused(load: Callable[[str], Model]) -> None:
    sample = Sample("s0", prompt="a red star", spans={"colour": "red"})
    with pytest.raises(
        InputError, match="sample 's0': tokens span:thing: it has no span 'thing'; its spans are 'colour'"
    ):
        encode(load("llama"), sample, "thing")

    import transformers as hf

    with pytest.raises(InputError, match="CanineTokenizer does not tell which characters its tokens are of"):
        Alignment(hf.CanineTokenizer())
