"""From characters of a prompt to the tokens that a model's processor makes of it."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """One text that a tokenizer was given, and its `tokenizers.Encoding`."""

    text: str
    encoding: Any


class Listener:
    """A tokenizer that notes what it is given, and is else the one that it stands for."""

    def __init__(self, tokenizer: Any, heard: list[Heard]) -> None:
        self._tokenizer = tokenizer
        self._heard = heard

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Tokenise, and note the texts and their encodings."""
        encoded = self._tokenizer(*args, **options)
        text = args[0] if args else options["text"]
        texts = [text] if isinstance(text, str) else text
        self._heard += [Heard(*pair) for pair in zip(texts, encoded.encodings, strict=True)]
        return encoded

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)


def listening(processor: Any, heard: list[Heard]) -> Any:
    """A processor (or tokenizer) that does as the given one does, and notes what its tokenizer is given.

    A copy, so that other threads' calls of the given one are not noted.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        return Listener(processor, heard)
    processor = copy.copy(processor)
    processor.tokenizer = Listener(tokenizer, heard)
    return processor


class Alignment:
    """Finds the tokens of spans; safe to call from several threads.

    Parameters
    ----------
    tokenizer
        Of the model.
    placeholders
        What stands for an image in a text, besides the tokenizer's own special tokens.

    Raises
    ------
    InputError
        If the tokenizer does not tell from which characters a token is.
    """

    def __init__(self, tokenizer: Any, placeholders: Iterable[str] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"{type(tokenizer).__name__} does not tell which characters its tokens are of, as spans need: take a "
                "model with a fast tokenizer, or leave span:… out of capture.tokens"
            )
        self._added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        self._placeholders = tuple(placeholders)

    def positions(
        self,
        given: str,
        spans: Mapping[str, tuple[int, int]],
        heard: Sequence[Heard],
        ids: torch.Tensor,
        image: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Find the positions of spans.

        Parameters
        ----------
        given
            The text that the processor was given.
        spans
            Name -> (start, stop) in it.
        heard
            What the processor gave its tokenizer.
        ids, image
            int64 and bool ``[position]``: what the processor made of it, and which positions stand for image content.

        Returns
        -------
        dict
            Name -> bool ``[position]``: tokens that have a character in common with the span.

        Raises
        ------
        InputError
            If a span is cut off or has no token, or what the processor did cannot be followed.
        """
        for text in heard:
            # Some processors put an image's tokens in front of the ids, or in the place of others, themselves.
            mine = ids.new_tensor(text.encoding.ids)
            behind = len(ids) - len(mine)
            if behind >= 0 and bool(((mine == ids[behind:]) | image[behind:]).all()):
                places = self._follow(given, text, spans)
                if places is not None:
                    return {name: _tokens_at(name, place, text, behind, image) for name, place in places.items()}
        raise InputError(
            f"the spans {', '.join(map(repr, spans))} cannot be followed through the model's processor, which makes "
            "another text of the prompt: leave them out of capture.tokens"
        )

    def _follow(
        self, given: str, heard: Heard, spans: Mapping[str, tuple[int, int]]
    ) -> Mapping[str, tuple[int, int]] | None:
        """Places of spans in the text that was heard; None if it is not clear where they are.

        Between the tokens that a processor puts in or takes out, a text stays as it was. Its pieces are looked for in
        their order, from the start and from the end: where both find the same, there is no other way.
        """
        if given == heard.text:
            return spans
        there = {self._added[number] for number in set(heard.encoding.ids) & self._added.keys()}
        changed = [token for token in there if given.count(token) != heard.text.count(token)]
        marks = sorted({*self._placeholders, *changed}, key=len, reverse=True)
        apart = re.compile("|".join(map(re.escape, marks)) or "(?!)")
        pieces = [
            (match.start(), match[0]) for match in re.finditer(r"[^\0\s](?:[^\0]*[^\0\s])?", apart.sub(_blank, given))
        ]
        text = apart.sub(_blank, heard.text)
        first, at = [], 0
        for _, piece in pieces:
            first.append(text.find(piece, at))
            at = first[-1] + len(piece)
        last, at = [], len(text)
        for _, piece in reversed(pieces):
            last.append(text.rfind(piece, 0, at))
            at = last[-1]
        if -1 in first:
            return None
        moves = [
            (start, start + len(piece), a - start)
            for (start, piece), a, b in zip(pieces, first, reversed(last), strict=True)
            if a == b
        ]
        places = {}
        for name, (start, stop) in spans.items():
            by = [move for low, high, move in moves if low <= start < high]
            to = [move for low, high, move in moves if low < stop <= high]
            if not by or not to:
                return None
            places[name] = (start + by[0], stop + to[0])
        return places


def _blank(match: re.Match[str]) -> str:
    return "\0" * len(match[0])


def _tokens_at(name: str, place: tuple[int, int], heard: Heard, behind: int, image: torch.Tensor) -> torch.Tensor:
    start, stop = place

    def overlap(offsets: Sequence[tuple[int, int]]) -> list[int]:
        return [i for i, (a, b) in enumerate(offsets) if max(a, start) < min(b, stop)]

    if any(overlap(rest.offsets) for rest in heard.encoding.overflowing):
        raise InputError(f"span {name!r} is cut off by data.truncate: raise it")
    found = overlap(heard.encoding.offsets)
    if not found:
        raise InputError(f"span {name!r} has no token: the tokenizer leaves {heard.text[start:stop]!r} out")
    mask = image.new_zeros(image.shape)
    mask[[behind + i for i in found]] = True
    return mask
