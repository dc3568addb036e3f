"""Qwen-VL's files: in every form that they may have, and what is refused; its prompts and its tokenizer."""

from __future__ import annotations

import base64
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from sonde.engine.config import ModelSection
from sonde.engine.model import Model, load_model
from sonde.engine.models.checkpoint import find_files, read_tensors
from sonde.engine.models.qwen_vl.processor import _PARTS, _SPECIAL
from sonde.engine.models.tokenizer import read_tiktoken
from sonde.errors import ModelError

from .tiny_parts import TEXT
from .tiny_ports import PORT_WRITERS

QUERY = "transformer.visual.attn_pool.query"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return PORT_WRITERS["qwen_vl"](tmp_path / "model")


def load(folder: Path, **settings: Any) -> Model:
    return load_model(ModelSection(name=str(folder), **({"dtype": "float32"} | settings)))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in read_tensors(find_files(folder)).items()}


def whole(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def shards(folder: Path, kind: str, save: Callable[[Any, Path], None]) -> None:
    """Replace the file by two of its tensors each, with their index."""
    tensors = tensors_of(folder)
    (folder / "pytorch_model.bin").unlink()
    stem = "pytorch_model" if kind == "bin" else "model"
    names = sorted(tensors)
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002.{kind}" for i, name in enumerate(names)}
    for file in set(places.values()):
        save({name: tensors[name] for name in names if places[name] == file}, folder / file)
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize(("kind", "save"), [("bin", torch.save), ("safetensors", save_file)])
def test_shards_are_the_same_as_one_file(folder: Path, kind: str, save: Any) -> None:
    one = load(folder)
    shards(folder, kind, save)
    parts = load(folder)
    assert parts.provenance["fingerprint"] == one.provenance["fingerprint"]
    for (name, mine), (other, its) in zip(one.module.named_parameters(), parts.module.named_parameters(), strict=True):
        assert name == other
        assert mine.equal(its)


def test_a_checkpoint_of_bfloat16_and_one_of_an_older_torch_load(folder: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(folder).items()}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    model = load(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.bfloat16}
    assert model.module.vision.resampler.query.equal(tensors[QUERY])


def test_random_weights_need_none_and_are_seeded(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()
    first, again, other = (load(folder, weights="random", seed=seed) for seed in (1, 1, 2))
    assert first.provenance["fingerprint"] == again.provenance["fingerprint"] != other.provenance["fingerprint"]
    assert all(parameter.isfinite().all() for parameter in first.module.parameters())


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("was-run"),))


def damaged(how: str, folder: Path) -> None:
    tensors, file = tensors_of(folder), folder / "pytorch_model.bin"
    if how == "missing":
        del tensors[QUERY]
    elif how == "unexpected":
        tensors["transformer.visual.more"] = torch.ones(1)
    elif how == "shape":
        tensors[QUERY] = tensors[QUERY][:1]
    elif how == "thirds":
        tensors["transformer.h.0.attn.c_attn.weight"] = torch.ones(5, 7)
    elif how == "nothing":
        tensors = {}
    whole(folder, tensors)
    if how == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif how == "none":
        file.unlink()
    elif how == "code":
        file.write_bytes(pickle.dumps({QUERY: Evil()}, protocol=2))
    elif how == "list":
        torch.save([1, 2], file)
    elif how == "shard":
        shards(folder, "bin", torch.save)
        (folder / "pytorch_model-00002-of-00002.bin").unlink()
    elif how == "index":
        shards(folder, "bin", torch.save)
        (folder / "pytorch_model.bin.index.json").write_text("{}")
    elif how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "other tokenizer":
        config = json.loads((folder / "config.json").read_text())
        config["visual"]["image_start_id"] += 1
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "setting":
        config = json.loads((folder / "config.json").read_text())
        del config["seq_length"]
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", rf"lacks '{re.escape(QUERY)}': give the files as they were published"),
        ("unexpected", r"holds the unexpected 'transformer\.visual\.more'"),
        ("shape", rf"has another shape than the configuration says: '{re.escape(QUERY)}' \(1, \d+\) for "),
        ("thirds", r"has another shape .*'transformer\.h\.0\.attn\.c_attn\.weight' \(5, 7\)"),
        ("nothing", r"lacks .* and \d+ more"),
        ("cut", r"pytorch_model\.bin cannot be read: .*; fetch it again"),
        ("none", "holds no weights: there is no model.safetensors or pytorch_model.bin"),
        ("code", r"pytorch_model\.bin cannot be read"),
        ("list", "holds no state dictionary of tensors"),
        ("shard", r"lacks the file .*pytorch_model-00002-of-00002\.bin"),
        ("index", r"index .*pytorch_model\.bin\.index\.json cannot be read"),
        ("tokenizer", r"there is neither qwen\.tiktoken nor tokenizer\.json"),
        ("other tokenizer", r"has <img> at \d+, and the configuration says \d+"),
        ("setting", r"config\.json lacks the setting 'seq_length'"),
    ],
)
def test_what_is_not_whole_is_an_error_that_names_it(
    folder: Path, how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    damaged(how, folder)
    with pytest.raises(ModelError, match=message):
        load(folder)
    assert not (folder / "was-run").exists()


def test_qwens_own_file_of_ranks_gives_the_ids_of_the_same_merges(tmp_path: Path) -> None:
    """Against the library's own byte-level tokenizer, trained on the spot and written as tiktoken has it."""
    own = Tokenizer(models.BPE())
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    own.pre_tokenizer = parts
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = [*TEXT.split(), *(f" {word}" for word in TEXT.split()), "naïve", " Ünïcode", "你好", "\n\n", "  "] * 9
    own.train_from_iterator(texts, trainer)
    letters = {letter: byte for byte, letter in _byte_letters().items()}
    ranks = {bytes(letters[c] for c in token): rank for token, rank in own.get_vocab().items()}
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for token, rank in ranks.items()]
    (tmp_path / "qwen.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    read = read_tiktoken(tmp_path / "qwen.tiktoken", _PARTS, _SPECIAL)
    for text in (
        "the circle",
        " the red square is",
        "naïve Ünïcode",
        "你好 star 你",
        "3 circles\n\n  and 12!",
        "it's left",
    ):
        pieces = [piece for piece in re.findall(_PIECES, text) if piece]
        assert "".join(pieces) == text
        assert read.encode(text).ids == [i for piece in pieces for i in own.encode(piece).ids]
        assert read.decode(read.encode(text).ids) == text
    specials = [read.token_to_id(token) for token in ("<|endoftext|>", "<img>", "</img>", "<imgpad>")]
    assert specials == [len(ranks) + i for i in (0, 214, 215, 216)]
    assert read.encode("a<img>b").ids[1] == len(ranks) + 214


# The published way to part a text, with Python's classes for those of Unicode.
_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\w]?[^\W\d_]+|\d| ?[^\s\w]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _byte_letters() -> dict[int, str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters: dict[int, str] = bytes_to_unicode()
    return letters


@pytest.mark.parametrize(
    ("chat", "said"),
    [
        (False, "<img><imgpad></img><img><imgpad></img>What? Answer:"),
        (
            True,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nPicture 1: "
            "<img><imgpad></img>\nPicture 2: <img><imgpad></img>\nWhat?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_prompts_are_those_of_the_published_code(folder: Path, chat: bool, said: str) -> None:
    if chat:
        (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    processor = load(folder).processor
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What?"}]
    turns = [{"role": "user", "content": content}]
    assert processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == said
    if not chat:
        turns[0]["content"] = [{"type": "text", "text": "Is it so? Answer:"}]
        assert processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) == "Is it so? Answer:"


def test_images_and_their_places_go_together(folder: Path) -> None:
    model = load(folder)
    image = Image.new("RGB", (30, 50))
    prepared = model.processor(text=["<img><imgpad></img>a"], images=[[image]], return_tensors="pt")
    n = model.module.config.tokens_per_image
    assert int((prepared["input_ids"] == model.image_token_id).sum()) == n
    with pytest.raises(ValueError, match="1 images for 0 places"):
        model.processor(text=["a"], images=[[image]], return_tensors="pt")
