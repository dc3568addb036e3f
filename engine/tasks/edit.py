"""Captions made false by one word: a category, a colour, a number or a relation is exchanged for another."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sonde.engine.coco import CocoCaption

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "gray")
NUMBERS = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
OPPOSITES = {
    "left of": "right of",
    "right of": "left of",
    "to the left": "to the right",
    "to the right": "to the left",
    "on the left": "on the right",
    "on the right": "on the left",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
    "on top of": "underneath",
    "underneath": "on top of",
}
_PLURALS = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep", "broccoli": "broccoli"}
_SPELLINGS = {"grey": "gray"}


@dataclass(frozen=True, slots=True)
class _Edit:
    """One way to make a caption false: put one of `words` in the place of ``text[start:end]``."""

    start: int
    end: int
    kind: str
    words: Sequence[str]
    weights: Sequence[float]


@dataclass(frozen=True, slots=True)
class Editor:
    """Makes captions false by exchanging one word.

    Attributes
    ----------
    prevalence
        How many images show a category, by its name. A category is put in as often as it is seen, so that a false
        caption does not give itself away by naming rare things.
    plurals
        Plural of each category's name.
    noun, colour, number, relation
        What finds the words of each kind.
    """

    prevalence: Mapping[str, int]
    plurals: Mapping[str, str]
    noun: re.Pattern[str]
    colour: re.Pattern[str]
    number: re.Pattern[str]
    relation: re.Pattern[str]

    @classmethod
    def for_categories(cls, prevalence: Mapping[str, int]) -> "Editor":
        """Editor for categories given by name, with the number of images that show each."""
        # "orange" is a colour and one of COCO's fruits: what may mean either is left alone.
        ambiguous = {name for name in prevalence if name.lower() in COLOURS}
        plurals = {name: plural(name) for name in prevalence if name not in ambiguous}
        return cls(
            prevalence=prevalence,
            plurals=plurals,
            noun=_any_of([*plurals, *plurals.values()]),
            colour=_any_of([c for c in (*COLOURS, *_SPELLINGS) if c not in {name.lower() for name in ambiguous}]),
            number=_any_of(NUMBERS),
            relation=_any_of(OPPOSITES),
        )

    def falsify(
        self, caption: CocoCaption, captions: Iterable[CocoCaption], present: Iterable[str], rng: random.Random
    ) -> CocoCaption | None:
        """The caption with one word exchanged, or None if it has no word that can be.

        A word that comes in is named by no caption of the image, and as a category it is not present in the image.

        Parameters
        ----------
        caption
            A true caption.
        captions
            All captions of the image.
        present
            Names of the categories that the image holds.
        rng
            Draws the word that goes, evenly, and the one that comes.
        """
        said = " . ".join(other.text for other in captions).lower()
        edits = [*self._nouns(caption.text, said, set(present)), *self._attributes(caption.text, said)]
        edits += self._relations(caption.text, said)
        if not edits:
            return None
        edit = rng.choice(edits)
        word = rng.choices(edit.words, edit.weights)[0]
        text = _exchange(caption.text, edit.start, edit.end, word)
        return CocoCaption(caption.id, caption.image_id, text, kind=edit.kind, source=caption.id)

    def _nouns(self, text: str, said: str, present: set[str]) -> list[_Edit]:
        mentioned = {match.group().lower() for match in self.noun.finditer(said)}
        free = [
            name
            for name, many in self.plurals.items()
            if name not in present and not {name.lower(), many.lower()} & mentioned
        ]
        plurals = {many.lower() for many in self.plurals.values()}
        edits = []
        for match in self.noun.finditer(text):
            is_plural = match.group().lower() in plurals
            # Words that are their own plural ("scissors") fit only where a plural stood: "a scissors" betrays itself.
            names = free if is_plural else [name for name in free if self.plurals[name] != name]
            words = [self.plurals[name] if is_plural else name for name in names]
            edits.append(_Edit(*match.span(), "object", words, [self.prevalence[name] for name in names]))
        return [edit for edit in edits if sum(edit.weights) > 0]

    def _attributes(self, text: str, said: str) -> list[_Edit]:
        # Small numbers are by far the most common in true captions, hence the falling weights.
        rarity = {number: 1 / (2 + rank) ** 2 for rank, number in enumerate(NUMBERS)}
        edits = []
        for pattern, weight in ((self.colour, dict.fromkeys(COLOURS, 1.0)), (self.number, rarity)):
            mentioned = {_SPELLINGS.get(match.group(), match.group()) for match in pattern.finditer(said)}
            words = [word for word in weight if word not in mentioned and pattern.fullmatch(word)]
            if words:
                weights = [weight[word] for word in words]
                edits += [_Edit(*match.span(), "attribute", words, weights) for match in pattern.finditer(text)]
        return edits

    def _relations(self, text: str, said: str) -> list[_Edit]:
        mentioned = {match.group() for match in self.relation.finditer(said)}
        return [
            _Edit(*match.span(), "relation", [opposite], [1.0])
            for match in self.relation.finditer(text)
            if (opposite := OPPOSITES[match.group().lower()]) not in mentioned
        ]


def plural(name: str) -> str:
    """Plural of a category's name: ``wine glass`` -> ``wine glasses``, ``scissors`` -> ``scissors``."""
    head, _, last = name.rpartition(" ")
    if last in _PLURALS:
        last = _PLURALS[last]
    elif re.search(r"([^su]s)$", last):
        pass
    elif re.search(r"(s|x|ch|sh)$", last):
        last += "es"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{head} {last}" if head else last


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Pattern of whole words, the longest first, so that "hot dog" is no "dog"."""
    ordered = sorted(set(words), key=lambda word: (-len(word), word))
    # Without words the pattern must match nothing, not the empty string everywhere.
    body = "|".join(map(re.escape, ordered)) or r"(?!)"
    return re.compile(rf"\b(?:{body})\b", re.IGNORECASE)


def _exchange(text: str, start: int, end: int, word: str) -> str:
    """Put `word` in the place of ``text[start:end]``, with the old capital and the right article before it."""
    before, old, after = text[:start], text[start:end], text[end:]
    article = re.search(r"\b(a|an)(\s+)$", before, re.IGNORECASE)
    if article:
        right = "an" if word[0].lower() in "aeiou" else "a"
        if article[1][0].isupper():
            right = right.capitalize()
        before = before[: article.start()] + right + article[2]
    if old[0].isupper():
        word = word[0].upper() + word[1:]
    return before + word + after
