"""Samples prepared ahead, on threads of this process or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from sonde.errors import InputError, WorkerError

from .encoded import Encoded
from .inputs import Encoder
from .sample import Sample
from .trace import Trace

Group = tuple[Sequence[int], Sequence[Sample]]
"""Rows and their samples, which have the same images or none."""
Prepare = Callable[[Iterable[Group]], Iterator[list[Encoded | InputError]]]


@contextmanager
def preparing(encoder: Encoder, processes: int, trace: Trace) -> Iterator[Prepare]:
    """Give what prepares groups of samples in parallel and returns them in their order.

    Parameters
    ----------
    encoder
        Prepares samples.
    processes
        How many processes do so; 0: threads. Threads share the interpreter with who starts the forward passes, which
        many cores and large images make felt. A process that may have no children (of Dask's) uses threads.
    trace
        Is told when each group was prepared.

    Raises
    ------
    WorkerError
        If a process dies.
    """
    if processes and not multiprocessing.current_process().daemon:
        with _processes(encoder, processes) as pool:
            yield lambda groups: _from_processes(pool, groups, trace)
        return

    def prepare(group: Group) -> list[Encoded | InputError]:
        with trace.span("prepare", samples=len(group[0])):
            return encoder.several(*group)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1), "sonde-encode") as pool:
        yield lambda groups: pool.map(prepare, groups)


def _processes(encoder: Encoder, processes: int) -> Executor:
    # A fork would share the locks of this process' threads.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(processes, context, initializer=_adopt, initargs=(pickle.dumps(encoder),))


def _from_processes(pool: Executor, groups: Iterable[Group], trace: Trace) -> Iterator[list[Encoded | InputError]]:
    try:
        for content, start, end, pid in pool.map(_prepare, groups):
            prepared = pickle.loads(content)
            trace.add("prepare", start, end, pid, samples=len(prepared))
            yield prepared
    except BrokenProcessPool as error:
        raise WorkerError(
            "a process that prepares samples died: give it more memory, or prepare on threads with run.encoders = 0"
        ) from error


_encoder: Encoder | None = None


def _adopt(content: bytes) -> None:
    import torch

    global _encoder
    torch.set_num_threads(1)
    _encoder = pickle.loads(content)


def _prepare(group: Group) -> tuple[bytes, int, int, int]:
    """A group's results, when work on them began and ended, and the process that did it."""
    assert _encoder is not None
    start = time.perf_counter_ns()
    # As bytes: torch would hand tensors on through shared files, of which there is a limit.
    content = pickle.dumps(_encoder.several(*group), protocol=5)
    return content, start, time.perf_counter_ns(), os.getpid()
