"""What the samples of a store asked: read again from where its configuration says that they came from."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from .engine.config import DataSection
from .engine.dataset import load_dataset
from .engine.picture import ImageUrl, Picture
from .engine.sample import Sample
from .engine.spans import texts_of
from .errors import SondeError
from .probes.report import Question
from .store import Store

log = logging.getLogger(__name__)


def asked(store: str, ids: Sequence[str]) -> Mapping[str, Question]:
    """Look up prompts and first images of samples; images at URLs are not fetched.

    Parameters
    ----------
    store
        Where a store is.
    ids
        Samples of it.

    Returns
    -------
    mapping
        By id. Empty, with a warning, if the store does not say where its samples came from, or what lies there now is
        not what was extracted.
    """
    try:
        schema = Store.open(store).schema
        dataset = load_dataset(DataSection.model_validate(schema.config.get("data", {})))
    except (SondeError, OSError, ValueError) as error:
        log.warning("the samples of %s cannot be shown: %s", store, str(error).partition("\n")[0])
        return {}
    if dataset.fingerprint() not in {part.fingerprint for part in schema.parts}:
        log.warning("the samples of %s cannot be shown: their data set has changed since the extraction", store)
        return {}
    wanted = set(ids)
    return {sample.id: _question(sample) for sample in dataset.samples if sample.id in wanted}


def _question(sample: Sample) -> Question:
    prompt = sample.prompt if sample.prompt is not None else "\n".join(texts_of(sample.messages or ()))
    return Question(prompt, _bytes(sample.images[0]) if sample.images else None)


def _bytes(picture: Picture) -> bytes | None:
    if isinstance(picture, ImageUrl):
        return None
    try:
        return picture.read_bytes() if isinstance(picture, Path) else picture.read()
    except (SondeError, OSError):
        return None
