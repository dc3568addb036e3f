"""How fast a model runs on a part of its samples, and how many tokens a batch should have."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sonde.errors import InputError, ModelError
from sonde.store import plan_ranges

from .batches import plan_batches
from .encoded import Encoded
from .model import Model
from .packs import Pack, plan_packs
from .pipeline import Work, by_images, work_of
from .sample import Dataset
from .session import Session

_RANGES_READ = 4
_PICTURES_READ = 256
_SAMPLED = 32
_SECONDS = 3.0
# A run that is over sooner is not worth looking for a better budget; what it takes is guessed from these rates.
_WORTHWHILE_SECONDS = 300.0
_OPERATIONS_PER_S = {"cpu": 2e11, "cuda": 3e14}
_BUDGETS = {"cpu": (1024, 2048, 4096, 8192), "cuda": (8192, 16384, 32768, 65536, 131072)}
# The smallest budget that is nearly as fast as the fastest takes the least memory.
_NEARLY = 0.97


@dataclass(frozen=True, slots=True, eq=False)
class Excerpt:
    """Some ranges of a data set, prepared as a run would.

    Attributes
    ----------
    samples
        Those that can be used.
    errors
        Why each of the others cannot.
    batches
        The sequences that run together.
    share
        How many times as large the data set is.
    """

    samples: Sequence[Encoded]
    errors: Sequence[str]
    batches: Sequence[Sequence[Pack]]
    share: float

    @property
    def tokens(self) -> int:
        """Estimated tokens of the whole data set."""
        return round(sum(sample.length for sample in self.samples) * self.share)


def default_token_budget(model: Model) -> int:
    """Padded tokens of a batch where nothing better is known."""
    return 16384 if model.device.type == "cuda" else 4096


def read_excerpt(dataset: Dataset, range_size: int, session: Session, token_budget: int) -> Excerpt:
    """Prepare a few ranges, evenly spaced.

    Raises
    ------
    InputError
        If no sample in them can be used.
    """
    ranges = plan_ranges(len(dataset), range_size)
    places = np.linspace(0, len(ranges) - 1, min(_RANGES_READ, len(ranges))).round().astype(int)
    chosen = [ranges[i] for i in np.unique(places)]
    if any(sample.images for sample in dataset.samples[:_PICTURES_READ]):
        # A window of a run holds no more of them.
        chosen = [replace(range_, stop=min(range_.stop, range_.start + _PICTURES_READ)) for range_ in chosen]
    errors: list[str] = []
    batches: list[Sequence[Pack]] = []
    for item in work_of(chosen, dataset, 0, session, token_budget, fail=False):
        if isinstance(item, Work):
            batches.append(item.packs)
        else:
            errors += item.skipped.values()
    if not batches:
        raise InputError(f"none of {len(errors)} samples that were read can be used: {errors[0]}; correct the data")
    samples = [sample for packs in batches for pack in packs for sample in pack.samples]
    return Excerpt(samples, errors, batches, len(dataset) / (len(samples) + len(errors)))


def measure(session: Session, batches: Sequence[Sequence[Pack]]) -> tuple[float, int]:
    """Run batches for a few seconds, the largest first; return samples' tokens per second and peak bytes of a GPU.

    Raises
    ------
    ModelError
        If a batch does not fit into the GPU's memory.
    """
    import torch

    session.start()
    cuda = session.model.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(session.model.device)
    order = sorted(batches, key=lambda packs: -len(packs) * max(pack.length for pack in packs))
    # The largest shows the memory and warms up; then batches from all over, as the run will meet them.
    spread = [order[0], *(order[i] for i in np.random.default_rng(0).permutation(len(order)))]
    tokens, seconds = 0, 0.0
    for n, packs in enumerate(spread):
        start = time.perf_counter()
        try:
            _run(session, packs)
        except torch.cuda.OutOfMemoryError as error:
            positions = len(packs) * max(pack.length for pack in packs)
            raise ModelError(
                f"{session.model.device} has not the memory for a batch of {positions} tokens: set run.token_budget "
                "lower, to which a run would come by halving"
            ) from error
        if n:
            tokens += sum(sample.length for pack in packs for sample in pack.samples)
            seconds += time.perf_counter() - start
        if seconds > _SECONDS:
            break
    peak = torch.cuda.max_memory_allocated(session.model.device) if cuda else 0
    return tokens / seconds, peak


def find_token_budget(dataset: Dataset, session: Session) -> int:
    """Find how many padded tokens a batch should have, on batches of samples from the middle of the data set.

    Returns
    -------
    int
        The smallest budget within 3 % of the fastest; the default where the whole run is a matter of minutes.
    """
    import torch

    default = default_token_budget(session.model)
    if not session.calibrated:
        return default
    some = np.linspace(0, len(dataset) - 1, min(_SAMPLED, len(dataset))).astype(int).tolist()
    lengths = [sample.length for sample in _encode(some, dataset, session)]
    if not lengths:
        return default
    parameters = sum(p.numel() for p in session.model.module.parameters())
    operations = 2 * parameters * float(np.mean(lengths)) * len(dataset)
    kind = "cuda" if session.model.device.type == "cuda" else "cpu"
    if operations / _OPERATIONS_PER_S[kind] < _WORTHWHILE_SECONDS:
        return default
    wanted = int(1.5 * _BUDGETS[kind][-1] / np.mean(lengths)) + 1
    start = max(0, (len(dataset) - wanted) // 2)
    kinds: dict[object, list[Encoded]] = {}
    for sample in _encode(range(start, min(start + wanted, len(dataset))), dataset, session):
        kinds.setdefault(sample.kind, []).append(sample)
    most = max(kinds.values(), key=len, default=[])
    speeds: dict[int, float] = {}
    for budget in _BUDGETS[kind]:
        packs = plan_packs(most, session.sharing, budget)
        batches = plan_batches([pack.length for pack in packs], budget)
        if not batches or (speeds and len(batches) < 2):
            # Larger ones would not be filled.
            break
        middle = [packs[i] for i in batches[len(batches) // 2]]
        try:
            seconds = min(_run(session, middle) for _ in range(3))
        except torch.cuda.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
        speeds[budget] = sum(sample.length for pack in middle for sample in pack.samples) / seconds
    nearly = [budget for budget, speed in speeds.items() if speed >= _NEARLY * max(speeds.values())]
    return min(nearly, default=default)


def _encode(rows: Sequence[int], dataset: Dataset, session: Session) -> list[Encoded]:
    """Prepare samples; those that cannot be used are left to the run."""
    encoded = [
        result
        for group in by_images(rows, dataset.samples, 0)
        for result in session.encoder.several(group, [dataset.samples[row] for row in group])
    ]
    return [sample for sample in encoded if isinstance(sample, Encoded)]


def _run(session: Session, packs: Sequence[Pack]) -> float:
    """Run a batch, what is kept of it copied to the host, and return its seconds."""
    batch = session.collate(packs)
    start = time.perf_counter()
    states, _ = session.run(batch)
    for x in (*states.reduced.values(), *states.kept.values()):
        x.to("cpu")
    return time.perf_counter() - start
