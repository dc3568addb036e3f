"""Published tokenizers of other kinds as fast ones, which tell which characters their tokens are of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.errors import ModelError


def read_tokenizer(folder: Path, **options: Any) -> Any:
    """Read ``tokenizer.json``.

    Parameters
    ----------
    options
        Of `transformers.PreTrainedTokenizerFast`, such as ``pad_token``.

    Raises
    ------
    ModelError
        If it is not there or cannot be read.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"the folder {folder} has no tokenizer: there is no {path.name}")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises nothing narrower.
        raise ModelError(f"the tokenizer {path} cannot be read: {error}") from error
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def read_tiktoken(path: Path, parts: str, special: Sequence[str], **options: Any) -> Any:
    """Read a file of tiktoken: a line for each token, its bytes in base 64 and its rank.

    Parameters
    ----------
    parts
        Regular expression of the parts of a text inside of which bytes are joined.
    special
        Special tokens, whose ids go on from the last rank.
    options
        Of `transformers.PreTrainedTokenizerFast`.

    Raises
    ------
    ModelError
        If it is not there or cannot be read.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    try:
        lines = path.read_bytes().split(b"\n")
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    except FileNotFoundError:
        raise ModelError(
            f"the folder {path.parent} has no tokenizer: there is neither {path.name} nor tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer {path} cannot be read: {error}") from error
    letters = _letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    model = models.BPE(vocab=vocabulary, merges=_merges(ranks, letters), ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(parts), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _letters() -> dict[int, str]:
    """A printable character for every byte, as byte-level tokenizers write them (Radford et al. 2019)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges(ranks: Mapping[bytes, int], letters: Mapping[int, str]) -> list[tuple[str, str]]:
    """The two tokens that each token is joined of, by rank: those that joining its bytes by rank ends with."""
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            pair = _join(token, ranks)
            if len(pair) == 2:
                merges.append(("".join(letters[b] for b in pair[0]), "".join(letters[b] for b in pair[1])))
    return merges


def _join(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Join the bytes of a token by rank, all but the last time."""
    pieces = [bytes([byte]) for byte in token]
    while len(pieces) > 2:
        joined = [ranks.get(pieces[i] + pieces[i + 1], len(ranks)) for i in range(len(pieces) - 1)]
        least = min(range(len(joined)), key=joined.__getitem__)
        if joined[least] == len(ranks):
            break
        pieces[least : least + 2] = [pieces[least] + pieces[least + 1]]
    return pieces
