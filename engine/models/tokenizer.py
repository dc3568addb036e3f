"""Published tokenizers of other kinds as fast ones, which tell which characters their tokens are of."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sonde.errors import ModelError


def read_llama(folder: Path, special: Mapping[str, int], *, begins: bool) -> Any:
    """Read a tokenizer of LLaMA, ``tokenizer.json`` if there is one, else ``tokenizer.model`` of SentencePiece.

    A space is put in front of every piece of text between special tokens, and spaces around these are taken away, as
    the published models' tokenizers do (``legacy`` in transformers).

    Parameters
    ----------
    special
        Tokens that the model adds, and their ids.
    begins
        Whether ``<s>`` is put in front of a text.

    Raises
    ------
    ModelError
        If there is none, it cannot be read, or an added token gets another id.
    """
    from tokenizers import AddedToken, processors

    tokenizer = _json(folder) if (folder / "tokenizer.json").is_file() else _sentencepiece(folder)
    added = [
        AddedToken(token, special=True, normalized=False, lstrip=True, rstrip=True)
        for token, _ in sorted(special.items(), key=lambda item: item[1])
    ]
    tokenizer.add_special_tokens(added)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    single = "<s> $A" if begins else "$A"
    tokenizer.post_processor = processors.TemplateProcessing(single, special_tokens=[start] if begins else [])
    return wrapped(tokenizer, folder, special, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def read_json(folder: Path, special: Mapping[str, int], **options: Any) -> Any:
    """Read ``tokenizer.json``, which must give the special tokens these ids; errors as of `read_llama`."""
    return wrapped(_json(folder), folder, special, **options)


def wrapped(tokenizer: Any, folder: Path, special: Mapping[str, int], **options: Any) -> Any:
    """A tokenizer as transformers has it; ModelError if it has other ids for special tokens."""
    from transformers import PreTrainedTokenizerFast

    for token, number in special.items():
        there = tokenizer.token_to_id(token)
        if there != number:
            raise ModelError(
                f"the tokenizer in {folder} has {token} at {there}, and the configuration says {number}: give the "
                "files of one model"
            )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def _json(folder: Path) -> Any:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises nothing narrower.
        raise ModelError(f"the tokenizer {path} cannot be read ({error}): fetch it again") from error


def _sentencepiece(folder: Path) -> Any:
    """Joins of pairs by the score of what they make (Kudo and Richardson 2018), as a fast tokenizer."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

    path = folder / "tokenizer.model"
    if not path.is_file():
        raise ModelError(
            f"the folder {folder} has no tokenizer: there is neither {path.name} nor tokenizer.json; fetch one"
        )
    try:
        pieces = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise ModelError(f"the tokenizer {path} cannot be read ({error}): fetch it again") from error
    ids = range(pieces.get_piece_size())
    vocabulary = {pieces.id_to_piece(i): i for i in ids}
    control = [pieces.id_to_piece(i) for i in ids if pieces.is_control(i) or pieces.is_unknown(i)]
    joined = [
        (-pieces.get_score(i), piece[:cut], piece[cut:])
        for piece, i in vocabulary.items()
        if not (pieces.is_byte(i) or piece in control)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    merges = [(left, right) for _, left, right in sorted(joined, key=lambda item: item[0])]
    bytes_there = any(pieces.is_byte(i) for i in ids)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=bytes_there)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=True) for token in control])
    return tokenizer


def read_tiktoken(path: Path, parts: str, special: Sequence[str]) -> Any:
    """Read a file of tiktoken: a line for each token, its bytes in base 64 and its rank.

    Parameters
    ----------
    parts
        Regular expression of the parts of a text inside of which bytes are joined.
    special
        Special tokens, whose ids go on from the last rank.

    Returns
    -------
    tokenizers.Tokenizer

    Raises
    ------
    ModelError
        If it is not there or cannot be read.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        lines = path.read_bytes().split(b"\n")
        ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    except FileNotFoundError:
        raise ModelError(
            f"the folder {path.parent} has no tokenizer: there is neither {path.name} nor tokenizer.json; fetch one"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer {path} cannot be read ({error}): fetch it again") from error
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
    return tokenizer


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
