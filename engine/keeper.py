"""From copies of batches to committed ranges, on threads beside the forward passes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Self

from sonde.store import RAGGED, Range, RangeWriter

from .batches import Batch
from .capture import CONNECTOR, Capture
from .copy_out import SLOTS, Arriving
from .pipeline import Finished
from .tokens import ragged_masks
from .trace import Trace

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray


class Keeper:
    """Puts batches to their places in the range that is filling, and commits each range that is full.

    Two threads: one waits for copies and puts them to their places, in order; one writes. While a range is written the
    next one fills, and no further: memory stays flat.

    Parameters
    ----------
    writer
        Of the store.
    capture
        What is kept.
    last
        The range that ends the run.
    trace
        Is told of every span.

    Attributes
    ----------
    nbytes
        Bytes committed.
    timings
        Index of a committed range -> seconds of the run at which it was full, and at which it was committed.
    """

    def __init__(self, writer: RangeWriter, capture: Capture, last: Range, trace: Trace) -> None:
        self._writer = writer
        self._capture = capture
        self._last = last
        self._trace = trace
        self._clock = time.perf_counter()
        self._placing = ThreadPoolExecutor(1, "sonde-place")
        self._writing = ThreadPoolExecutor(1, "sonde-write")
        self._queue: deque[Future[None]] = deque()
        self._commit: Future[None] | None = None
        self._failed = False
        self._buffers: Mapping[str, Any] = writer.buffers()
        self.nbytes = 0
        self.timings: dict[int, tuple[float, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Ranges that were full when an error came are still committed.
        self._placing.shutdown()
        self._writing.shutdown()

    def keep(self, arriving: Arriving, batch: Batch, range_: Range) -> None:
        """Put what is arriving to its places; waits if too much is on its way."""
        self._submit(self._place, arriving, batch, range_)

    def finish(self, item: Finished) -> None:
        """Commit a range, all of whose batches were given."""
        self._submit(self._hand_over, item)

    def settle(self) -> None:
        """Wait until all is committed."""
        while self._queue:
            self._queue.popleft().result()
        self._await_commit()

    def _submit(self, function: Callable[..., None], *arguments: Any) -> None:
        while len(self._queue) >= SLOTS or (self._queue and self._queue[0].done()):
            self._queue.popleft().result()
        self._queue.append(self._placing.submit(self._unless_failed, function, *arguments))

    def _unless_failed(self, function: Callable[..., None], *arguments: Any) -> None:
        # Behind a batch that could not be placed its range is never full.
        if self._failed:
            return
        try:
            function(*arguments)
        except BaseException:
            self._failed = True
            raise

    def _place(self, arriving: Arriving, batch: Batch, range_: Range) -> None:
        try:
            with self._trace.span("copy out"):
                states = arriving.wait()
            with self._trace.span("place"):
                rows = batch.rows.numpy() - range_.start
                for site, values in states.reduced.items():
                    names = [name for name in self._capture.tokens_of(site) if name not in RAGGED]
                    for k, name in enumerate(names):
                        self._buffers[f"{site}/{name}"][:, rows] = values[:, :, k]
                for site, values in states.kept.items():
                    self._place_tokens(site, values if states.lasting else values.copy(), batch)
        finally:
            arriving.release()

    def _place_tokens(self, site: str, values: NDArray[Any], batch: Batch) -> None:
        """Part the kept positions ``[layer, token, hidden]`` by selector and sample."""
        layout = batch.layout.of_image() if site == CONNECTOR else batch.layout
        ids = batch.inputs["input_ids"][layout.sequence].numpy()
        image, end = layout.image.numpy(), 0
        for name, mask in ragged_masks(self._capture.tokens_of(site), layout).items():
            for i, (row, kept) in enumerate(zip(batch.rows.tolist(), mask.numpy(), strict=True)):
                start, end = end, end + int(kept.sum())
                self._buffers[f"{site}/{name}"].put(row, values[:, start:end], ids[i, kept], image[i, kept])

    def _hand_over(self, item: Finished) -> None:
        # At most one range waits for the disk while the next one fills.
        self._await_commit()
        buffers, full = self._buffers, time.perf_counter() - self._clock
        self._commit = self._writing.submit(self._write, item, buffers, full)
        self._buffers = self._writer.buffers() if item.range != self._last else {}

    def _write(self, item: Finished, buffers: Mapping[str, Any], full: float) -> None:
        with self._trace.span("write", range=item.range.index):
            self.nbytes += self._writer.commit(item.range, buffers, item.skipped).nbytes
        self.timings[item.range.index] = round(full, 3), round(time.perf_counter() - self._clock, 3)

    def _await_commit(self) -> None:
        if self._commit is not None:
            self._commit.result()
