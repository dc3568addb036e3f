"""One pass over ranges: prepare, run, assemble, commit, each stage while the others work."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError
from sonde.store import ALL, ALL_IMAGE, ALL_TEXT, RAGGED, Commit, Range, Store, as_numpy

from .batches import Batch, collate, split
from .capture import CONNECTOR
from .config import RunSection
from .inputs import Encoded
from .model import Model
from .pipeline import Finished, Work, work_of
from .prefetch import prefetch
from .sample import Dataset
from .session import Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
    """

    total: int
    samples: int = 0
    tokens: int = 0
    nbytes: int = 0
    skipped: int = 0
    seconds: float = 0.0
    token_budget: int = 0


def default_token_budget(model: Model) -> int:
    """Padded tokens of a batch where the configuration names none."""
    return 16384 if model.device.type == "cuda" else 4096


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
    """

    def __init__(
        self,
        session: Session,
        dataset: Dataset,
        first: int,
        store: Store,
        settings: RunSection,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        self._session = session
        self._dataset = dataset
        self._first = first
        self._store = store
        self._writer = store.writer()
        self._report = on_progress or (lambda progress: None)
        self._token_budget = settings.token_budget or default_token_budget(session.model)
        self._fail = settings.on_error == "fail"
        self.progress = Progress(0)

    def extract(self, ranges: Sequence[Range], progress: Progress) -> None:
        """Extract ranges and commit each as it is done; what is committed stays whatever happens."""
        self.progress = progress
        progress.token_budget = self._token_budget
        if not ranges:
            return
        clock = time.perf_counter()
        work = work_of(ranges, self._dataset, self._first, self._session.encoder, self._token_budget, fail=self._fail)
        pending: Future[Commit] | None = None
        with ThreadPoolExecutor(1, "sonde-write") as writer, prefetch(work, _PREFETCHED_BATCHES) as items:
            buffers = self._writer.buffers()
            for item in items:
                if isinstance(item, Work):
                    self._forward(item.samples, item.range, buffers)
                    self.progress.samples += len(item.samples)
                else:
                    # At most one range waits for the disk while the next one fills: memory stays flat.
                    self._finish(pending)
                    pending = writer.submit(self._writer.commit, item.range, buffers, item.skipped)
                    self._count_skipped(item)
                    buffers = self._writer.buffers() if item.range != ranges[-1] else {}
                self.progress.seconds = time.perf_counter() - clock
                self._report(self.progress)
            self._finish(pending)
            self.progress.seconds = time.perf_counter() - clock
            self._report(self.progress)

    def _forward(self, samples: Sequence[Encoded], range_: Range, buffers: Mapping[str, Any]) -> None:
        import torch

        padded = len(samples) * max(sample.length for sample in samples)
        states = None
        if len(samples) == 1 or padded <= self._token_budget:
            batch = collate(samples, self._session.encoder.pad_token_id)
            try:
                states = self._session.run(batch)
            except torch.cuda.OutOfMemoryError as error:
                if len(samples) == 1:
                    raise ModelError(
                        f"{self._session.model.device} has not the memory for one sample of {padded} tokens: shorten "
                        "it, set data.truncate, or take a smaller model.dtype"
                    ) from error
        if states is None:
            if padded <= self._token_budget:
                # Outside of the handler, where the error would keep the tensors of the pass that failed.
                torch.cuda.empty_cache()
                self._token_budget = self.progress.token_budget = padded // 2
                log.warning("out of memory with %d tokens in a batch: going on with %d", padded, self._token_budget)
            for half in split(samples):
                self._forward(half, range_, buffers)
            return
        dtype = getattr(torch, self._store.schema.numpy_dtype.name)
        host = {site: as_numpy(x.to(dtype).to("cpu")) for site, x in states.items()}
        self._keep(host, batch, range_, buffers)
        self.progress.tokens += batch.n_tokens

    def _keep(self, host: Mapping[str, NDArray[Any]], batch: Batch, range_: Range, buffers: Mapping[str, Any]) -> None:
        """Put the states of a batch, by site ``[layer, batch, selected + position, hidden]``, to their places."""
        rows = batch.rows.numpy()
        for site, states in host.items():
            reduced = [tokens for tokens in self._session.capture.tokens_of(site) if tokens not in RAGGED]
            for k, tokens in enumerate(reduced):
                buffers[f"{site}/{tokens}"][:, rows - range_.start] = states[:, :, k]
            for which in (tokens for tokens in self._session.capture.tokens_of(site) if tokens in RAGGED):
                ids, image = batch.inputs["input_ids"].numpy(), batch.image.numpy()
                kept = batch.valid.numpy() & image if site == CONNECTOR else batch.valid.numpy()
                kept = kept & {ALL: True, ALL_IMAGE: image, ALL_TEXT: ~image}[which]
                for i, row in enumerate(rows.tolist()):
                    values = states[:, i, len(reduced) :][:, kept[i]]
                    buffers[f"{site}/{which}"].put(row, values, ids[i, kept[i]], image[i, kept[i]])

    def _count_skipped(self, item: Finished) -> None:
        self.progress.samples += len(item.skipped)
        self.progress.skipped += len(item.skipped)
        for row, why in item.skipped.items():
            log.warning("skipped %s (row %d)", why, row)

    def _finish(self, pending: Future[Commit] | None) -> None:
        if pending is not None:
            self.progress.nbytes += pending.result().nbytes
