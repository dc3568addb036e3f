"""The data set that a configuration names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sonde.errors import InputError

from . import tasks
from .coco import load_coco
from .config import DataSection
from .hugging_face import read_hugging_face
from .image_folder import read_image_folder
from .manifest import read_manifest
from .picture import ImageUrl
from .sample import Dataset, Sample


def load_dataset(section: DataSection | None, samples: Dataset | Sequence[Sample] | None = None) -> Dataset:
    """Read the samples of a configuration's ``[data]``, or take those that are given.

    Raises
    ------
    InputError
        If neither or both are there, or the data cannot be used.
    """
    named = None if section is None else section.source
    if samples is not None and named:
        raise InputError(f"the configuration names {named} in [data], and samples are given too: leave one out")
    if samples is not None:
        given = samples if isinstance(samples, Dataset) else Dataset(tuple(samples))
        if section is None or not section.remote_images:
            _refuse_urls(given)
        return given
    if section is None or not named:
        raise InputError(
            "data is missing: name a manifest, a task, an image_folder or an hf_dataset in [data], or pass samples"
        )
    if section.task is None:
        return _read(section).subset(section.limit, section.seed)
    assert section.annotations is not None
    assert section.images is not None
    coco = load_coco(section.annotations, section.images, name=section.name)
    common: dict[str, Any] = {"limit": section.limit, "seed": section.seed, "balance": section.balance}
    if isinstance(section.task, tuple):
        return tasks.together(
            coco,
            section.task,
            cues=_several(section.cue, "both", (False, True)),
            prompts=_several(section.prompt, "all", None),
            negatives=section.negatives,
            file=section.prompts_file,
            asked_per_image=section.asked_per_image,
            **common,
        )
    if section.task == "entailment":
        common["negatives"] = section.negatives
    else:
        common["asked_per_image"] = section.asked_per_image
    return tasks.build(
        section.task, coco, cue=section.cue, prompt=section.prompt, prompts=section.prompts_file, **common
    )


def _several(value: Any, word: str, meaning: Any) -> Any:
    """A list of what may be one, a list, or a word for several."""
    if value == word:
        return meaning
    return value if isinstance(value, tuple) else (value,)


def _read(section: DataSection) -> Dataset:
    if section.manifest is not None:
        return read_manifest(section.manifest, remote_images=section.remote_images)
    if section.image_folder is not None:
        return read_image_folder(section.image_folder, section.prompts or ())
    assert section.hf_dataset is not None
    return read_hugging_face(
        section.hf_dataset,
        config=section.hf_config,
        split=section.hf_split,
        revision=section.hf_revision,
        columns={str(meaning): column for meaning, column in (section.columns or {}).items()},
        prompts=section.prompts or (),
        images=section.images,
        remote_images=section.remote_images,
    )


def _refuse_urls(dataset: Dataset) -> None:
    for sample in dataset.samples:
        for picture in sample.images:
            if isinstance(picture, ImageUrl):
                raise InputError(
                    f"sample {sample.id!r} has an image at {picture}, and those are fetched only where "
                    "data.remote_images = true says so"
                )
