"""What goes into a model: one sample is one forward pass' worth of input, a data set is an ordered list of them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sonde.errors import InputError

from .picture import ImageSource, Picture, is_url
from .spans import SpanValue, check_spans

LabelValue = str | int | float | bool | None | tuple[str, ...]
"""One cell of a label column: a class, a number, nothing known, or the names that hold (multi-label)."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One forward pass' worth of input.

    Attributes
    ----------
    id
        Name of the sample, unique in its data set.
    prompt
        Plain text, given to the model as it stands. Exactly one of `prompt` and `messages` is set.
    messages
        A chat, one mapping with ``role`` and ``content`` per turn, for the model's chat template.
    images
        The images, in the order in which the prompt or the messages refer to them: paths of files, or `ImageBytes` or
        `ImageUrl` for what is no file.
    group
        Samples of one group (say, of one image) never straddle splits or folds. Empty: the sample's own id.
    split
        Name of a fixed split ("train", "test", ...), or empty.
    labels
        One value per label column; a column that is absent here counts as None.
    spans
        Named parts of the prompt for the selectors ``span:NAME``: (start, stop) in characters, or a text that stands
        in the prompt exactly once, which becomes its (start, stop). Of messages always text.

    Raises
    ------
    InputError
        If a field cannot be used as given.
    """

    id: str
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] | None = field(default=None, hash=False)
    images: tuple[Picture, ...] = ()
    group: str = ""
    split: str = ""
    labels: Mapping[str, LabelValue] = field(default_factory=dict, hash=False)
    spans: Mapping[str, SpanValue] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("id", "group", "split"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise InputError(f"{name} {value!r} of a sample is a {type(value).__name__}: give a string")
        if not self.id:
            raise InputError("the id of a sample is empty: give every sample a name of its own")
        if (self.prompt is None) == (self.messages is None):
            found = "neither" if self.prompt is None else "both"
            raise InputError(f"sample {self.id!r} has {found} of prompt and messages: give exactly one of them")
        if isinstance(self.images, str | Path | ImageSource):
            raise InputError(f"images of sample {self.id!r} is one image, {str(self.images)!r}: give a tuple of them")
        object.__setattr__(self, "images", tuple(self._checked_picture(image) for image in self.images))
        if self.prompt is not None:
            self._check_prompt(self.prompt)
        if self.messages is not None:
            object.__setattr__(self, "messages", self._checked_messages(self.messages))
        for name, value in self.labels.items():
            self._check_label(name, value)
        try:
            object.__setattr__(self, "spans", check_spans(self.spans, self.prompt, self.messages or ()))
        except InputError as error:
            raise InputError(f"sample {self.id!r}: {error}") from error
        # Copies, so that a mapping that the caller changes later does not change a frozen sample.
        object.__setattr__(self, "labels", dict(self.labels))
        object.__setattr__(self, "group", self.group or self.id)

    def _check_prompt(self, prompt: object) -> None:
        if not isinstance(prompt, str):
            raise InputError(f"prompt of sample {self.id!r} is a {type(prompt).__name__}: give text")
        if not prompt and not self.images:
            raise InputError(f"sample {self.id!r} has an empty prompt and no image: give the model something to read")

    def _checked_picture(self, picture: object) -> Picture:
        if isinstance(picture, ImageSource):
            return picture
        if not isinstance(picture, str | os.PathLike):
            raise InputError(
                f"an image of sample {self.id!r} is a {type(picture).__name__}: give a path, ImageBytes or ImageUrl"
            )
        path = os.fspath(picture)
        if is_url(path):
            raise InputError(f"image {path!r} of sample {self.id!r} is a URL, not a path: give ImageUrl(url)")
        return Path(path)

    def _checked_messages(self, messages: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
        turns: object = messages
        whole = isinstance(turns, Sequence) and not isinstance(turns, str) and len(turns) > 0
        if not whole or not all(_is_turn(turn) for turn in messages):
            raise InputError(
                f"messages of sample {self.id!r} are no chat: give a list of turns, each with 'role' and 'content'"
            )
        return tuple(dict(turn) for turn in messages)

    def _check_label(self, name: object, value: object) -> None:
        if not isinstance(name, str) or not name:
            raise InputError(f"label column {name!r} of sample {self.id!r} has no name: name it by a string")
        several = isinstance(value, tuple) and all(isinstance(item, str) for item in value)
        if not several and not isinstance(value, str | int | float | bool | None):
            raise InputError(
                f"label {name!r} of sample {self.id!r} is a {type(value).__name__}, {value!r}: "
                "give a string, a number, a bool, None or a tuple of strings"
            )


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and {"role", "content"} <= turn.keys()


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples in their final order: sample i is row i of the store.

    Attributes
    ----------
    samples
        At least one sample; ids are unique.
    classes
        For label columns whose classes or targets are known beforehand, their names in order: the 80 categories of
        COCO, say, most of which no single sample names.
    root
        Folder that image paths are named relative to in `fingerprint`, so that a data set has one fingerprint
        wherever it lies.
    derived_spans
        Whether the samples' spans follow from their prompts, as a task's do: `fingerprint` leaves such spans out.

    Raises
    ------
    InputError
        If there are no samples, two samples share an id, or a label is none of its column's classes.
    """

    samples: tuple[Sample, ...]
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    root: Path | None = None
    derived_spans: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(self.samples))
        object.__setattr__(self, "classes", {name: tuple(names) for name, names in self.classes.items()})
        if not self.samples:
            raise InputError("no samples in the data set: give at least one")
        seen: set[str] = set()
        for sample in self.samples:
            if sample.id in seen:
                raise InputError(f"id {sample.id!r} is given to more than one sample: ids must be unique")
            seen.add(sample.id)
        for name, classes in self.classes.items():
            self._check_classes(name, frozenset(classes))

    def _check_classes(self, name: str, classes: frozenset[str]) -> None:
        for sample in self.samples:
            value = sample.labels.get(name)
            if value is None:
                continue
            unknown = [item for item in (value if isinstance(value, tuple) else (str(value),)) if item not in classes]
            if unknown:
                raise InputError(
                    f"label {name!r} of sample {sample.id!r} is {unknown[0]!r}, which is none of the column's "
                    f"{len(classes)} classes: correct it or add it to the classes"
                )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label columns, in order of first appearance."""
        return tuple(dict.fromkeys(name for sample in self.samples for name in sample.labels))

    def column(self, name: str) -> list[LabelValue]:
        """Values of one label column, one per sample; None where a sample has no such label.

        Raises
        ------
        InputError
            If no sample has the column.
        """
        if name not in self.labels:
            there = ", ".join(self.labels) or "none"
            raise InputError(f"no label column {name!r} in the data set: there are {there}")
        return [sample.labels.get(name) for sample in self.samples]

    def fingerprint(self) -> str:
        """SHA-256 (hexadecimal) over all that the samples say, in order.

        Covers ids, groups, splits, prompts, messages, labels, spans where there are any, and the names of the image
        files, not their contents. Image files under `root` count by their path below it, in POSIX form; images on the
        web by their address, and images that are bytes by these.

        Raises
        ------
        InputError
            If messages hold something that JSON cannot say.
        """
        digest = hashlib.sha256()
        for sample in self.samples:
            content: dict[str, Any] = {
                "id": sample.id,
                "group": sample.group,
                "split": sample.split,
                "prompt": sample.prompt,
                "messages": sample.messages,
                "images": [_name(image, self.root) for image in sample.images],
                "labels": sample.labels,
            }
            if sample.spans and not self.derived_spans:
                content["spans"] = sample.spans
            try:
                line = json.dumps(content, sort_keys=True, separators=(",", ":"))
            except TypeError as error:
                raise InputError(f"messages of sample {sample.id!r} are not plain JSON: {error}") from error
            digest.update(line.encode("ascii") + b"\n")
        return digest.hexdigest()

    def subset(self, limit: int | None, seed: int = 0) -> "Dataset":
        """At most `limit` samples: whole groups, drawn at random by `seed`, in their old order.

        Groups are taken in a random order, each if it still fits; None takes all.

        Raises
        ------
        InputError
            If `limit` is not positive, or smaller than every group drawn.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise InputError(f"limit {limit} leaves no samples: give a positive number, or leave it out for all")
        sizes: dict[str, int] = {}
        for sample in self.samples:
            sizes[sample.group] = sizes.get(sample.group, 0) + 1
        names = list(sizes)
        taken: set[str] = set()
        room = limit
        for index in np.random.default_rng(seed).permutation(len(names)):
            if sizes[names[index]] <= room:
                taken.add(names[index])
                room -= sizes[names[index]]
        if not taken:
            raise InputError(
                f"limit {limit} is smaller than every group (the smallest has {min(sizes.values())} samples), and "
                "groups are never split: raise the limit"
            )
        return replace(self, samples=tuple(sample for sample in self.samples if sample.group in taken))


def _name(picture: Picture, root: Path | None) -> Any:
    """An image as it enters a fingerprint: a path as text, below `root` if it lies there."""
    if isinstance(picture, ImageSource):
        return dict(picture.identity())
    path = picture
    if root is not None and path.is_relative_to(root):
        path = path.relative_to(root)
    return path.as_posix()
