"""One pass over ranges: prepare, run, assemble, commit, each stage while the others work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sonde.errors import ModelError
from sonde.store import Range, Store

from .batches import Batch, split
from .calibrate import default_token_budget
from .config import RunSection
from .copy_out import CopyOut
from .keeper import Keeper
from .packs import Pack
from .pipeline import Finished, Work, work_of
from .prefetch import prefetch
from .sample import Dataset
from .session import Session
from .trace import Trace

log = logging.getLogger(__name__)

_PREFETCHED_BATCHES = 8


@dataclass(slots=True)
class Progress:
    """How far an extraction is; counts of this run, not of a store's earlier ones.

    Attributes
    ----------
    total
        Samples that this run has to do.
    samples, tokens, nbytes
        Samples run or skipped, tokens without padding, bytes committed.
    skipped
        Samples without activations.
    seconds
        Since the first batch.
    token_budget
        Padded tokens of a batch, as it was at the end; 0 where workers each had their own.
    ranges
        Index of a range -> seconds of the run at which it was full, and at which it was committed.
    stages
        Stage -> seconds at which it was at work, its threads added up; none where workers ran.
    """

    total: int
    samples: int = 0
    tokens: int = 0
    nbytes: int = 0
    skipped: int = 0
    seconds: float = 0.0
    token_budget: int = 0
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)


class Run:
    """What extracts ranges of one store.

    Parameters
    ----------
    session
        The loaded model.
    dataset, first
        The samples, and the number in the store of their first.
    store
        Where they go.
    settings
        Token budget, and what a sample that cannot be used means.
    on_progress
        Called after every batch and commit.
    trace
        Is told of every stage's spans.
    """

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        first: int,
        store: Store,
        settings: RunSection,
        on_progress: Callable[[Progress], None] | None = None,
        trace: Trace | None = None,
    ) -> None:
        import torch

        self._session = session
        self._dataset = dataset
        self._first = first
        self._store = store
        self._writer = store.writer()
        self._report = on_progress or (lambda progress: None)
        self._trace = trace or Trace(enabled=False)
        self._copy_out = CopyOut(session.model.device, getattr(torch, store.schema.numpy_dtype.name))
        self._token_budget = settings.token_budget or default_token_budget(session.model)
        self._fail = settings.on_error == "fail"
        self._encoders = settings.encoders
        self.progress = Progress(0)

    def extract(self, ranges: Sequence[Range], progress: Progress) -> None:
        """Extract ranges and commit each as it is done; what is committed stays whatever happens."""
        self.progress = progress
        progress.token_budget = self._token_budget
        if not ranges:
            return
        self._session.start(self._token_budget)
        clock = time.perf_counter()
        work = work_of(
            ranges,
            self._dataset,
            self._first,
            self._session,
            self._token_budget,
            fail=self._fail,
            encoders=self._encoders,
            trace=self._trace,
        )
        with Keeper(self._writer, self._session.capture, ranges[-1], self._trace) as keeper:
            with prefetch(work, _PREFETCHED_BATCHES) as items:
                for item in items:
                    if isinstance(item, Work):
                        self._forward(item.packs, item.batch, item.range, keeper)
                        self.progress.samples += len(item.batch.rows)
                    else:
                        keeper.finish(item)
                        self._count_skipped(item)
                    self._say(clock, keeper)
            keeper.settle()
            self._say(clock, keeper)

    def close(self) -> None:
        """Let go of what runs the batches."""
        self._session.close()

    def _say(self, clock: float, keeper: Keeper) -> None:
        self.progress.nbytes, self.progress.ranges = keeper.nbytes, keeper.timings
        self.progress.seconds = time.perf_counter() - clock
        self.progress.stages = {name: round(seconds, 3) for name, seconds in self._trace.seconds.items()}
        self._report(self.progress)

    def _forward(self, packs: Sequence[Pack], batch: Batch | None, range_: Range, keeper: Keeper) -> None:
        import torch

        padded = len(packs) * max(pack.length for pack in packs)
        alone = len(packs) == len(packs[0].samples) == 1
        arriving = None
        if alone or padded <= self._token_budget:
            batch = batch or self._session.collate(packs)
            try:
                with self._trace.span("forward", sequences=len(packs), positions=padded):
                    states, batch = self._session.run(batch)
                    arriving = self._copy_out.send(states)
                    del states
            except torch.cuda.OutOfMemoryError as error:
                if alone:
                    raise ModelError(
                        f"{self._session.model.device} has not the memory for one sample of {padded} tokens: shorten "
                        "it, set data.truncate, or take a smaller model.dtype"
                    ) from error
        if arriving is None:
            if padded <= self._token_budget:
                # Outside of the handler, where the error would keep the tensors of the pass that failed.
                torch.cuda.empty_cache()
                self._token_budget = self.progress.token_budget = padded // 2
                log.warning("out of memory with %d tokens in a batch: going on with %d", padded, self._token_budget)
            for half in split(packs):
                self._forward(half, None, range_, keeper)
            return
        assert batch is not None
        keeper.keep(arriving, batch, range_)
        self.progress.tokens += batch.n_tokens

    def _count_skipped(self, item: Finished) -> None:
        self.progress.samples += len(item.skipped)
        self.progress.skipped += len(item.skipped)
        for row, why in item.skipped.items():
            log.warning("skipped %s (row %d)", why, row)
