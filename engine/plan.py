"""What an extraction would take: read from a few ranges of the data set, and a few batches of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.store import ALL, ALL_IMAGE, ALL_TEXT, plan_ranges

from .calibrate import find_token_budget, measure, read_excerpt
from .config import ExtractConfig
from .dataset import load_dataset
from .destination import plan_schema
from .pipeline import WINDOW_BYTES
from .sample import Dataset, Sample
from .session import Session


@dataclass(frozen=True, slots=True)
class Plan:
    """What an extraction would take; numbers with ``estimated`` in their description come from a part of the samples.

    Attributes
    ----------
    samples, ranges, range_size
        Of the data set.
    samples_read
        How many were prepared to estimate the rest; unusable ones are counted in ``unusable``.
    unusable
        Samples, among those read, that cannot be used; ``first_error`` says why of the first.
    tokens
        Estimated tokens of all samples.
    sharing
        Whether samples that begin alike share what they begin with, and if not why.
    shared
        Estimated share of the tokens that is not computed because another sample's prefix gives it, 0 to 1.
    padding
        Estimated share of padding among the positions that the model computes, 0 to 1.
    batches
        Estimated batches of all samples.
    token_budget
        Padded tokens per batch.
    bytes_written
        Estimated bytes of all chunks before compression.
    host_bytes, device_bytes
        Estimated peak memory: model, prepared samples and two ranges on the host; on a GPU what a trial took.
    tokens_per_s, seconds
        Measured on a few batches of the model, and estimated for all.
    """

    samples: int
    ranges: int
    range_size: int
    samples_read: int
    unusable: int
    first_error: str
    tokens: int
    sharing: str
    shared: float
    padding: float
    batches: int
    token_budget: int
    bytes_written: int
    host_bytes: int
    device_bytes: int
    tokens_per_s: float
    seconds: float


def plan_extraction(
    config: ExtractConfig | Mapping[str, Any] | str | Path, *, samples: Dataset | Sequence[Sample] | None = None
) -> Plan:
    """Find out what an extraction would take, without writing anything.

    Parameters
    ----------
    config, samples
        As of `extract`.

    Raises
    ------
    InputError
        If the configuration cannot be used, or no sample that was read can.
    ModelError
        If the model cannot be loaded or lacks what is asked of it.
    """
    config = ExtractConfig.load(config)
    dataset = load_dataset(config.data, samples)
    session = Session.open(config)
    try:
        schema = plan_schema(config, dataset, session)
        budget = config.run.token_budget or find_token_budget(dataset, session)
        ranges = plan_ranges(len(dataset), schema.range_size)
        excerpt = read_excerpt(dataset, schema.range_size, session, budget)
        packs = [pack for batch in excerpt.batches for pack in batch]
        filled = sum(pack.length for pack in packs)
        computed = sum(len(batch) * max(pack.length for pack in batch) for batch in excerpt.batches)
        apart = sum(sample.length for sample in excerpt.samples)
        tokens_per_s, device_bytes = measure(session, excerpt.batches)
        itemsize = schema.storage_dtype.itemsize
        rows = len(ranges) * schema.range_size
        of_image = round(sum(int(sample.image.sum()) for sample in excerpt.samples) * excerpt.share)
        kept = {ALL: excerpt.tokens, ALL_IMAGE: of_image, ALL_TEXT: excerpt.tokens - of_image}
        written = sum(
            len(a.layers) * a.hidden * itemsize * kept.get(a.tokens, rows) for a in schema.arrays if not a.pooled
        )
        parameters = sum(p.nbytes for p in session.model.module.parameters())
        prepared = min(WINDOW_BYTES, round(sum(s.nbytes for s in excerpt.samples) * excerpt.share))
        return Plan(
            samples=len(dataset),
            ranges=len(ranges),
            range_size=schema.range_size,
            samples_read=len(excerpt.samples) + len(excerpt.errors),
            unusable=len(excerpt.errors),
            first_error=excerpt.errors[0] if excerpt.errors else "",
            tokens=excerpt.tokens,
            sharing=session.sharing_note,
            shared=1 - filled / apart,
            padding=1 - filled / computed,
            batches=round(len(excerpt.batches) * excerpt.share),
            token_budget=budget,
            bytes_written=written,
            host_bytes=parameters * (session.model.device.type == "cpu") + prepared + 2 * written // len(ranges),
            device_bytes=device_bytes,
            tokens_per_s=tokens_per_s,
            seconds=excerpt.tokens / tokens_per_s,
        )
    finally:
        session.close()
