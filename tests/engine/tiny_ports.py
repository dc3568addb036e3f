"""Tiny checkpoints of the models of ours, in the layout that was published."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .tiny_emu import write_emu
from .tiny_lavit import START, write_lavit
from .tiny_parts import WORDS
from .tiny_qwen_vl import write_qwen_vl

GOLDEN = Path(__file__).parents[1] / "golden"


def _train(begin: tuple[str, ...], special: Mapping[str, int], most: int, *, llama: bool) -> Any:
    """A tokenizer of `WORDS` whose special tokens have these ids; what is between has names of no use."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>" if llama else None, fuse_unk=llama))
    if llama:
        # As LLaMA's was trained: no piece goes over a space.
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        alphabet = [chr(code) for code in range(33, 127)]
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=most, special_tokens=list(begin), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    if llama:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([])
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    for token, number in sorted(special.items(), key=lambda item: item[1]):
        between = range(tokenizer.get_vocab_size(), number)
        tokenizer.add_special_tokens([AddedToken(f"<|unused {i}|>", special=True) for i in between])
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
    return tokenizer


def copy_golden_qwen_vl(folder: Path) -> Path:
    """The golden checkpoint, which has no tokenizer, with one that has its ids."""
    import json

    shutil.copytree(GOLDEN / "qwen-vl", folder)
    start = json.loads((folder / "config.json").read_text())["visual"]["image_start_id"]
    special = {token: start - 1 + i for i, token in enumerate(("<|endoftext|>", "<img>", "</img>", "<imgpad>"))}
    _train((), special, start - 1, llama=False).save(str(folder / "tokenizer.json"))
    return folder


def _lavit(folder: Path) -> Path:
    write_lavit(folder)
    tokenizer = _train(("<unk>", "<s>", "</s>"), {"<|last|>": START - 1}, START - 1, llama=True)
    tokenizer.save(str(folder / "language_model/tokenizer.json"))
    return folder


PORT_WRITERS: dict[str, Callable[[Path], Path]] = {"qwen_vl": write_qwen_vl, "emu": write_emu, "lavit": _lavit}
