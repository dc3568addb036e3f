"""The data set that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonde.errors import InputError

from . import tasks
from .coco import load_coco
from .config import DataSection
from .manifest import read_manifest
from .sample import Dataset, Sample


def load_dataset(section: DataSection | None, samples: Dataset | Sequence[Sample] | None = None) -> Dataset:
    """Read the samples of a configuration's ``[data]``, or take those that are given.

    Raises
    ------
    InputError
        If neither or both are there, or the data cannot be used.
    """
    named = section is not None and (section.task or section.manifest)
    if samples is not None and named:
        raise InputError(f"the configuration names {named} in [data], and samples are given too: leave one out")
    if samples is not None:
        return samples if isinstance(samples, Dataset) else Dataset(tuple(samples))
    if section is None or not named:
        raise InputError("data is missing: name a manifest or a task in [data], or pass samples")
    if section.manifest is not None:
        return read_manifest(section.manifest).subset(section.limit, section.seed)
    assert section.annotations is not None
    assert section.images is not None
    coco = load_coco(section.annotations, section.images, name=section.name)
    options: dict[str, Any] = {
        "cue": section.cue,
        "prompt": section.prompt,
        "limit": section.limit,
        "seed": section.seed,
    }
    if section.task == "entailment":
        options["negatives"] = section.negatives
    return tasks.build(str(section.task), coco, **options)
