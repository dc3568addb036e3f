"""Names of token selectors: which there are, and what the parts of a name say."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sonde.errors import InputError
from sonde.store import ALL_IMAGE, ALL_TEXT, RAGGED

POSITIONS = ("last", "first")
MEANS = ("mean", "image_mean", "text_mean")
MAX = "max"
SELECTORS = (*POSITIONS, *MEANS, MAX, *RAGGED)
FORMS = ("index:n", "span:NAME", "image:r,c", "image:r,c:RxC")
"""Selectors with parts of their own, as a message shows them."""
# What is kept of a picture's patches: they have no last one that has seen the others.
VISION_TOKENS = ("mean", "image_mean", MAX)

_INDEX = re.compile(r"index:(-?[0-9]{1,9})")
_SPAN = "span:"
_REGION = re.compile(r"image:(-?[0-9]{1,4}),(-?[0-9]{1,4})(?::([0-9]{1,4})x([0-9]{1,4}))?")
# The name becomes that of a folder in the store.
_MAX_NAME_BYTES = 120


@dataclass(frozen=True, slots=True)
class Region:
    """Where in a picture: one of its tokens, or one cell of its grid of tokens cut into equal cells.

    Attributes
    ----------
    row, column
        From the top left, or, negative, from the bottom right.
    cells
        (rows, columns) that the grid is cut into; None if a single token is meant.
    """

    row: int
    column: int
    cells: tuple[int, int] | None = None


def index_of(tokens: str) -> int | None:
    """The n of ``index:n``; None of other selectors."""
    match = _INDEX.fullmatch(tokens)
    return int(match[1]) if match else None


def span_of(tokens: str) -> str | None:
    """The NAME of ``span:NAME``; None of other selectors."""
    return tokens.removeprefix(_SPAN) if tokens.startswith(_SPAN) else None


def region_of(tokens: str) -> Region | None:
    """The place of ``image:r,c`` or ``image:r,c:RxC``; None of other selectors."""
    match = _REGION.fullmatch(tokens)
    if not match:
        return None
    row, column, rows, columns = match.groups()
    return Region(int(row), int(column), (int(rows), int(columns)) if rows else None)


def is_mark(tokens: str) -> bool:
    """Whether a selector's positions are the sample's own to say: ``span:…`` and ``image:…``."""
    return span_of(tokens) is not None or region_of(tokens) is not None


def has_positions(tokens: str, *, in_image: bool) -> bool:
    """Whether a selector can have positions among those of the image alone, or, if not ``in_image``, among all."""
    return not in_image or (tokens not in ("text_mean", ALL_TEXT) and span_of(tokens) is None)


def needs_image(tokens: str) -> bool:
    """Whether a sample without an image has nothing for a selector."""
    return tokens in ("image_mean", ALL_IMAGE) or region_of(tokens) is not None


def needs_text(tokens: str) -> bool:
    """Whether a sample of image positions alone has nothing for a selector."""
    return tokens in ("text_mean", ALL_TEXT)


def check_tokens(tokens: tuple[str, ...]) -> None:
    """Raise InputError if a token selector is unknown or given twice."""
    for name in tokens:
        _check(name)
        if tokens.count(name) > 1:
            raise InputError(f"tokens {name!r} stand twice in capture.tokens")


def _check(tokens: str) -> None:
    if tokens in SELECTORS or index_of(tokens) is not None:
        return
    span, region = span_of(tokens), region_of(tokens)
    if span is not None:
        if not span.strip() or not span.isprintable() or "/" in span or len(span.encode()) > _MAX_NAME_BYTES:
            raise InputError(
                f"tokens {tokens!r} in capture.tokens: the name of a span becomes one of a folder in the store, so it "
                f"is 1 to {_MAX_NAME_BYTES} bytes of printable text without '/'; give the span another name"
            )
    elif region is not None:
        if region.cells and not _inside(region, *region.cells):
            raise InputError(
                f"tokens {tokens!r} in capture.tokens: there is no cell {region.row},{region.column} among "
                f"{region.cells[0]} x {region.cells[1]}; rows and columns count from 0"
            )
    else:
        raise InputError(f"unknown tokens {tokens!r} in capture.tokens; there are {', '.join((*SELECTORS, *FORMS))}")


def _inside(region: Region, rows: int, columns: int) -> bool:
    return -rows <= region.row < rows and -columns <= region.column < columns
