"""What an extraction would take: read from a few ranges of the data set, and a few batches of the model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sonde.errors import InputError
from sonde.store import ALL, ALL_IMAGE, ALL_TEXT, Range, plan_ranges

from .batches import collate
from .config import ExtractConfig
from .dataset import load_dataset
from .destination import plan_schema
from .inputs import Encoded
from .pipeline import WINDOW_BYTES, Work, work_of
from .run import default_token_budget
from .sample import Dataset, Sample
from .session import Session

_RANGES_READ = 4
_SECONDS = 3.0


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
        budget = config.run.token_budget or default_token_budget(session.model)
        ranges = plan_ranges(len(dataset), schema.range_size)
        encoded, errors, batches = _read(_some(ranges), dataset, session, budget)
        share = len(dataset) / (len(encoded) + len(errors))
        lengths = np.array([sample.length for sample in encoded])
        computed = sum(len(batch) * max(sample.length for sample in batch) for batch in batches)
        tokens_per_s, device_bytes = _try(session, batches)
        tokens = round(float(lengths.sum()) * share)
        of_image = round(sum(int(sample.image.sum()) for sample in encoded) * share)
        kept = {ALL: tokens, ALL_IMAGE: of_image, ALL_TEXT: tokens - of_image}
        itemsize = schema.storage_dtype.itemsize
        rows = len(ranges) * schema.range_size
        written = sum(
            len(a.layers) * a.hidden * itemsize * kept.get(a.tokens, rows) for a in schema.arrays if not a.pooled
        )
        parameters = sum(p.nbytes for p in session.model.module.parameters())
        prepared = min(WINDOW_BYTES, round(sum(s.nbytes for s in encoded) * share))
        return Plan(
            samples=len(dataset),
            ranges=len(ranges),
            range_size=schema.range_size,
            samples_read=len(encoded) + len(errors),
            unusable=len(errors),
            first_error=errors[0] if errors else "",
            tokens=tokens,
            padding=1 - float(lengths.sum()) / computed,
            batches=round(len(batches) * share),
            token_budget=budget,
            bytes_written=written,
            host_bytes=parameters * (session.model.device.type == "cpu") + prepared + 2 * written // len(ranges),
            device_bytes=device_bytes,
            tokens_per_s=tokens_per_s,
            seconds=tokens / tokens_per_s,
        )
    finally:
        session.close()


def _some(ranges: Sequence[Range]) -> list[Range]:
    """A few ranges, evenly spaced."""
    places = np.linspace(0, len(ranges) - 1, min(_RANGES_READ, len(ranges))).round().astype(int)
    return [ranges[i] for i in np.unique(places)]


def _read(
    ranges: Sequence[Range], dataset: Dataset, session: Session, budget: int
) -> tuple[list[Encoded], list[str], list[Sequence[Encoded]]]:
    """Prepare the samples of some ranges, as the run would: all of them, why some cannot be used, and the batches."""
    errors: list[str] = []
    batches: list[Sequence[Encoded]] = []
    for item in work_of(ranges, dataset, 0, session.encoder, budget, fail=False):
        if isinstance(item, Work):
            batches.append(item.samples)
        else:
            errors += item.skipped.values()
    if not batches:
        raise InputError(f"none of {len(errors)} samples that were read can be used: {errors[0]}")
    return [sample for batch in batches for sample in batch], errors, batches


def _try(session: Session, batches: Sequence[Sequence[Encoded]]) -> tuple[float, int]:
    """Run batches for a few seconds, the largest first; return tokens per second and peak bytes of a GPU."""
    import torch

    cuda = session.model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(session.model.device)
    order = sorted(batches, key=lambda batch: -len(batch) * max(sample.length for sample in batch))
    # The largest shows the memory and warms up; then batches from all over, as the run will meet them.
    spread = [order[0], *(order[i] for i in np.random.default_rng(0).permutation(len(order)))]
    tokens, seconds = 0, 0.0
    for n, batch in enumerate(spread):
        start = time.perf_counter()
        states = session.run(collate(batch, session.encoder.pad_token_id))
        for x in states.values():
            x.to("cpu")
        if n:
            tokens += sum(sample.length for sample in batch)
            seconds += time.perf_counter() - start
        if seconds > _SECONDS:
            break
    peak = torch.cuda.max_memory_allocated(session.model.device) if cuda else 0
    return tokens / seconds, peak
