"""From samples to model inputs: what the tokenizer is given, against what transformers itself would give it."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine import Sample
from sonde.engine.capture import Capture
from sonde.engine.config import ModelSection
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model, load_model
from sonde.errors import InputError

from .reference import Reference
from .runs import prompt
from .tiny_parts import CHAT

USER = {"role": "user", "content": [{"type": "text", "text": "a red circle"}]}
BOT = {"role": "assistant", "content": "a star"}
PICKY = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{{ m['role'] + ' ' + m['content'] }} {% endfor %}"
)


def keep(tokens: str) -> Capture:
    return Capture.plan(("embed",), (tokens,), "all", 3)


@pytest.fixture(scope="module")
def chatty(model_folder: Callable[[str], Path], scratch: Path) -> Model:
    """A text model with a chat template that takes text only and refuses system turns."""
    import transformers as hf

    folder = scratch / "chatty"
    shutil.copytree(model_folder("llama"), folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = PICKY
    tokenizer.save_pretrained(folder)
    return load_model(ModelSection(name=str(folder), dtype="float32"))


def ids(model: Model, sample: Sample, prompt_format: Any = "auto", truncate: int | None = None) -> list[int]:
    encoded = Encoder(model, keep("last"), prompt_format, truncate)(0, sample)
    out: list[int] = encoded.sequence["input_ids"][0].tolist()
    return out


def test_a_raw_prompt_is_tokenised_as_it_stands(load: Callable[[str], Model]) -> None:
    model = load("llama")
    expected = model.processor(prompt(0, 9))["input_ids"]
    assert expected[0] == model.processor.bos_token_id
    assert ids(model, Sample("a", prompt=prompt(0, 9))) == expected
    assert ids(model, Sample("a", prompt="<s>" + prompt(0, 9))) == expected, "its own <s> is not doubled"


@pytest.mark.parametrize(
    ("model_type", "mark"), [("llava", "<image>"), ("qwen2_5_vl", "<|vision_start|><|image_pad|><|vision_end|>")]
)
def test_places_for_images_that_a_raw_prompt_lacks_are_put_in_front(
    model_type: str, mark: str, load: Callable[[str], Model], pictures: list[Path]
) -> None:
    model = load(model_type)
    images = tuple(pictures[:2])
    explicit = ids(model, Sample("a", prompt=f"{mark}{mark}a red star", images=images), "raw")
    assert ids(model, Sample("a", prompt="a red star", images=images), "raw") == explicit
    assert ids(model, Sample("a", prompt=f"{mark}a red star", images=images), "raw") == explicit
    apart = ids(model, Sample("a", prompt=f"{mark}a red{mark} star", images=images), "raw")
    assert apart != explicit
    assert sorted(apart) == sorted(explicit)


def test_image_positions_are_those_of_the_image_token(load: Callable[[str], Model], pictures: list[Path]) -> None:
    encoded = Encoder(load("llava"), keep("image_mean"), "raw")(5, Sample("a", prompt="a", images=(pictures[0],)))
    assert encoded.row == 5
    assert encoded.image.sum() == (32 // 8) ** 2
    assert encoded.image.tolist() == (encoded.sequence["input_ids"][0] == load("llava").image_token_id).tolist()
    assert encoded.nbytes > encoded.other["pixel_values"].nbytes == 3 * 32 * 32 * 4


def test_a_place_that_the_connector_lacks_is_refused_though_the_prompt_has_it(
    load: Callable[[str], Model], pictures: list[Path]
) -> None:
    sample = Sample("a", prompt=prompt(0, 60), images=(pictures[0],))
    for sites in (("connector",), ("embed", "connector")):
        encoder = Encoder(load("llava"), Capture.plan(sites, ("index:40",), "all", 3), "raw")
        with pytest.raises(InputError, match="tokens index:40: it has 16 positions at the site connector"):
            encoder(0, sample)


def test_messages_go_through_the_template_of_a_text_model(chatty: Model) -> None:
    turns = [{"role": "user", "content": "a red circle"}, BOT, {"role": "user", "content": "a red circle"}]
    expected = chatty.processor.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert ids(chatty, Sample("a", messages=tuple(turns))) == expected
    assert ids(chatty, Sample("a", messages=(USER, BOT, USER))) == expected, "a list of text parts is one text"


def test_the_format_of_prompts_is_chosen_by_the_model_and_the_user(
    chatty: Model, load: Callable[[str], Model], model_folder: Callable[[str], Path]
) -> None:
    sample = Sample("a", prompt="a red circle")
    assert Encoder(chatty, keep("last")).prompt_format == "raw"
    assert ids(chatty, sample) == ids(chatty, sample, "raw") == chatty.processor("a red circle")["input_ids"]
    through = chatty.processor.apply_chat_template(
        [{"role": "user", "content": "a red circle"}], tokenize=True, return_dict=False
    )
    assert ids(chatty, sample, "chat") == through
    llava = load("llava")
    assert Encoder(llava, keep("last")).prompt_format == "chat"
    reference = Reference(model_folder("llava"), "llava")
    assert ids(llava, sample) == reference.inputs(sample, chat=True)["input_ids"][0].tolist()
    assert ids(llava, sample, "raw") == reference.inputs(sample, chat=False)["input_ids"][0].tolist()
    with pytest.raises(InputError, match="no chat template; say raw"):
        Encoder(load("llama"), keep("last"), "chat")


def test_images_stand_where_the_messages_put_them(load: Callable[[str], Model], pictures: list[Path]) -> None:
    model = load("llava")
    image = {"type": "image"}
    text = {"type": "text", "text": "a red circle"}
    images = tuple(pictures[:2])

    def positions(*contents: Any) -> list[bool]:
        turns = tuple({"role": "user", "content": content} for content in contents)
        image = Encoder(model, keep("last"))(0, Sample("a", messages=turns, images=images)).image
        out: list[bool] = image.tolist()
        return out

    behind = positions([text, image, image])
    assert behind.index(True) > positions([image, image, text]).index(True)
    assert positions([text]) == positions("a red circle") == positions([image, image, text])
    assert positions([text, image]) == positions([image, text, image])
    named = positions([text, {"type": "image", "image": "picture.png"}, {"type": "image", "url": "u"}])
    assert named == behind, "what a part says of its image is the sample's business"


@pytest.mark.parametrize("n", [3, 7, 500])
def test_prompts_without_images_are_cut(n: int, load: Callable[[str], Model]) -> None:
    sample = Sample("a", prompt=prompt(1, 30))
    for model_type in ("llama", "roberta", "llava"):
        model = load(model_type)
        tokenizer = getattr(model.processor, "tokenizer", model.processor)
        expected = tokenizer(sample.prompt, truncation=True, max_length=n)["input_ids"]
        assert ids(model, sample, "raw", n) == expected
    with pytest.raises(InputError, match=r"data\.truncate 2 leaves no room for text: the tokenizer puts 2"):
        Encoder(load("roberta"), keep("last"), truncate=2)


def test_cutting_is_the_same_on_many_threads_and_spares_images(
    load: Callable[[str], Model], pictures: list[Path]
) -> None:
    model = load("llava")
    encoder = Encoder(model, keep("last"), "raw", 6)
    samples = [Sample(f"s{i}", prompt=prompt(i, 30), images=(pictures[0],) * (i % 2)) for i in range(60)]
    with ThreadPoolExecutor(8) as pool:
        lengths = [encoded.length for encoded in pool.map(encoder, range(60), samples)]
    assert set(lengths[::2]) == {6}
    assert lengths[1::2] == [len(ids(model, sample, "raw")) for sample in samples[1::2]]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "opt"])
def test_a_prompt_as_long_as_the_model_has_positions_runs(
    model_type: str, load: Callable[[str], Model], model_folder: Callable[[str], Path]
) -> None:
    import torch

    model = load(model_type)
    assert model.max_length == 256
    n_special = model.processor.num_special_tokens_to_add()
    fits = Encoder(model, keep("last"))(0, Sample("a", prompt="a" + " a" * (255 - n_special)))
    assert fits.length == 256
    with torch.no_grad():
        states = model.module(**fits.sequence).last_hidden_state
    assert np.isfinite(states.numpy()).all()
    with pytest.raises(InputError, match="257 tokens, but the model has positions for 256"):
        Encoder(model, keep("last"))(0, Sample("a", prompt="a" + " a" * (256 - n_special)))


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (({"role": "system", "content": "a"}, USER), "chat template refuses its messages: no system turns"),
        (({"role": "user", "content": [{"type": "image"}]},), "places for 1 images, but it names 0"),
        (({"role": "user", "content": [{"type": "sound"}]},), "its messages hold {'type': 'sound'}"),
        (({"role": "user", "content": None},), "its messages hold None: give a turn's content as text"),
    ],
)
def test_messages_that_the_template_cannot_take_name_the_sample(chatty: Model, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"sample 'a': .*{message}"):
        ids(chatty, Sample("a", messages=messages))


def test_a_template_that_leaves_images_out_names_the_sample(
    model_folder: Callable[[str], Path], scratch: Path, pictures: list[Path]
) -> None:
    import transformers as hf

    folder = scratch / "forgetful"
    shutil.copytree(model_folder("llava"), folder)
    processor = hf.AutoProcessor.from_pretrained(folder)
    processor.chat_template = CHAT.replace("IMAGE", "")
    processor.save_pretrained(folder)
    model = load_model(ModelSection(name=str(folder), dtype="float32"))
    with pytest.raises(InputError, match="sample 'a': its images have no place in its prompt"):
        ids(model, Sample("a", prompt="a", images=(pictures[0],)))
