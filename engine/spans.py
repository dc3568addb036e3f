"""Named spans of a prompt: in characters, as a sample has them, and where a chat template puts them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sonde.errors import InputError

SpanValue = tuple[int, int] | str
"""Where a span is: (start, stop) in characters of the prompt, or a text that stands there once."""

Turns = Sequence[Mapping[str, Any]]
Place = tuple[int, int, int]
"""Number of a text, and the characters from start to stop, exclusive, in it."""

# Unicode gives these planes to nobody: characters of one that the texts do not use mark the ends of spans.
_PRIVATE_PLANES = (0xF0000, 0x100000)


def check_spans(spans: object, prompt: str | None, messages: Turns) -> Mapping[str, SpanValue]:
    """Hold the spans of a sample against its prompt, or its messages.

    Returns
    -------
    mapping
        Of a prompt: name -> (start, stop). Of messages: name -> the span's text.

    Raises
    ------
    InputError
        If a name is empty, a span is out of range, blank, or a text that is not there exactly once.
    """
    if not isinstance(spans, Mapping):
        raise InputError(f"spans is a {type(spans).__name__}: give a mapping of names to [start, stop] or text")
    items = []
    for name, value in spans.items():
        if not isinstance(name, str) or not name:
            raise InputError(f"span {name!r} has no name: name it by a string")
        pair = isinstance(value, list | tuple) and [type(end) for end in value] == [int, int]
        if not pair and not isinstance(value, str):
            raise InputError(
                f"span {name!r} is {value!r}: give [start, stop] in characters of the prompt, or the span's text"
            )
        if pair and prompt is None:
            raise InputError(f"span {name!r} is {value!r}, but the sample has messages: give the span's text")
        items.append((name, value if isinstance(value, str) else (value[0], value[1])))
    if not items:
        return {}
    texts = (prompt,) if prompt is not None else tuple(texts_of(messages))
    found = _locate(texts, tuple(items))
    return found if prompt is not None else {name: str(value) for name, value in items}


# Samples of one prompt share their spans: those of 80 categories would take gigabytes over a large data set.
@lru_cache(maxsize=64)
def _locate(texts: tuple[str, ...], items: tuple[tuple[str, SpanValue], ...]) -> Mapping[str, tuple[int, int]]:
    return {name: place_of(texts, name, value)[1:] for name, value in items}


def place_of(texts: Sequence[str], name: str, value: SpanValue) -> Place:
    """Find a span in a prompt, or in the texts of messages.

    Raises
    ------
    InputError
        If it is out of range or blank, or a text that is not there exactly once.
    """
    if isinstance(value, str):
        number, start, stop = _find(texts, name, value)
    else:
        (start, stop), number = value, 0
        if not 0 <= start < stop <= len(texts[0]):
            raise InputError(
                f"span {name!r} is characters {start} to {stop}, but the prompt has {len(texts[0])}: give "
                "0 <= start < stop <= its length"
            )
    if not texts[number][start:stop].strip():
        raise InputError(f"span {name!r} is blank, {texts[number][start:stop]!r}: give one that has text")
    return number, start, stop


def _find(texts: Sequence[str], name: str, wanted: str) -> Place:
    there = [(number, text) for number, text in enumerate(texts) if wanted in text]
    if not wanted or not there:
        raise InputError(f"span {name!r} is the text {wanted!r}, which the prompt does not have")
    number, text = there[0]
    start = text.find(wanted)
    if len(there) > 1 or text.rfind(wanted) != start:
        raise InputError(
            f"span {name!r} is the text {wanted!r}, which the prompt has more than once: give a longer text, or "
            "[start, stop] in characters of the prompt"
        )
    return number, start, start + len(wanted)


def texts_of(messages: Turns) -> list[str]:
    """Texts of messages, in their order."""
    texts: list[str] = []

    def take(text: str) -> str:
        texts.append(text)
        return text

    map_texts(messages, take)
    return texts


def map_texts(messages: Turns, change: Callable[[str], str]) -> tuple[Mapping[str, Any], ...]:
    """Messages with each text, in their order, put through a function."""

    def of(content: Any) -> Any:
        if isinstance(content, str):
            return change(content)
        if isinstance(content, list | tuple):
            return [of_part(part) for part in content]
        return of_part(content)

    def of_part(part: Any) -> Any:
        if isinstance(part, Mapping) and part.get("type") != "image" and isinstance(part.get("text"), str):
            return {**part, "text": change(part["text"])}
        return part

    return tuple({**turn, "content": of(turn["content"])} for turn in messages)


def narrow(text: str, start: int, stop: int) -> tuple[int, int]:
    """A span without the white space at its ends, which belongs to no word and which templates take away."""
    inside = text[start:stop]
    return start + len(inside) - len(inside.lstrip()), stop - len(inside) + len(inside.rstrip())


def through_template(
    messages: Turns, places: Mapping[str, Place], rendered: str, render: Callable[[Turns], str]
) -> dict[str, tuple[int, int]]:
    """Find where a chat template puts spans, by letting it render the messages once more with their ends marked.

    Parameters
    ----------
    messages
        A chat.
    places
        Name -> place in its texts.
    rendered
        What the template made of it.
    render
        The template.

    Returns
    -------
    dict
        Name -> (start, stop) in ``rendered``, without the white space at the ends.

    Raises
    ------
    InputError
        If the template leaves a span out, says it twice, or makes something else of it.
    """
    texts = texts_of(messages)
    first = next((p for p in _PRIVATE_PLANES if not _marks(p, len(places)).search("".join(texts))), None)
    if first is None:
        raise InputError("its messages use both private planes of Unicode, so that no span can be marked in them")
    ends: list[list[tuple[int, str]]] = [[] for _ in texts]
    for i, (number, start, stop) in enumerate(places.values()):
        start, stop = narrow(texts[number], start, stop)
        ends[number] += [(start, chr(first + 2 * i)), (stop, chr(first + 2 * i + 1))]
    remaining = iter(ends)
    marked = render(map_texts(messages, lambda text: _insert(text, next(remaining))))
    marks = _marks(first, len(places))
    if marks.sub("", marked) != rendered:
        raise InputError(
            "the model's chat template makes another text of its messages when spans are marked in them: give a prompt"
        )
    found: dict[str, list[int]] = {}
    for passed, match in enumerate(marks.finditer(marked)):
        found.setdefault(match[0], []).append(match.start() - passed)
    out = {}
    for i, name in enumerate(places):
        starts, stops = (found.get(chr(first + 2 * i + end), []) for end in (0, 1))
        if (len(starts), len(stops)) != (1, 1):
            how = "leaves out" if not starts else "repeats"
            raise InputError(f"the model's chat template {how} span {name!r}: give a prompt, or leave the span out")
        out[name] = (starts[0], stops[0])
    return out


def _marks(first: int, n_spans: int) -> re.Pattern[str]:
    return re.compile(f"[{chr(first)}-{chr(first + 2 * n_spans)}]")


def _insert(text: str, ends: Iterable[tuple[int, str]]) -> str:
    for place, mark in sorted(ends, reverse=True):
        text = text[:place] + mark + text[place:]
    return text
