"""Where layers are probed: on threads, in local processes or on a Dask cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from sonde.workers import open_cluster, run_on

from . import lapack

T = TypeVar("T")
R = TypeVar("R")

_ON_A_GPU = 2
"""Layers at a time on one GPU: one is computed while the next is read and sent."""

log = logging.getLogger(__name__)


def run_tasks(
    function: Callable[..., R],
    tasks: Sequence[T],
    arguments: tuple[Any, ...],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    device: str | None = None,
    task_bytes: int = 0,
) -> Iterator[R]:
    """Give out ``function(task, *arguments)`` for every task, in the order in which they are done.

    Parameters
    ----------
    function, tasks, arguments
        Picklable where tasks leave this process; the arguments are sent to every worker once.
    scheduler
        Address of a Dask scheduler.
    workers
        Number of local processes; on CUDA, of GPUs, if dask-cuda is there. Neither: threads of this process, one per
        core, or fewer where their memory would not suffice.
    device
        Torch device that tasks compute on.
    task_bytes
        Memory that one task takes at its peak; it is told, and bounds the threads.

    Raises
    ------
    InputError
        If both or no workers are asked for, or no scheduler with a worker answers.
    WorkerError
        If workers keep dying.
    """
    if not tasks:
        return
    if scheduler is None and workers is None:
        n_threads = _n_threads(len(tasks), device, task_bytes)
        _tell(len(tasks), n_threads, task_bytes)
        yield from _on_threads(function, tasks, arguments, n_threads)
        return
    on_gpus = device is not None and device.startswith("cuda")
    with open_cluster(workers=workers, scheduler=scheduler, on_gpus=on_gpus) as client:
        _tell(len(tasks), sum(client.nthreads().values()), task_bytes)
        yield from run_on(client, function, tasks, arguments, "probed")


def _on_threads(
    function: Callable[..., R], tasks: Sequence[T], arguments: tuple[Any, ...], n_threads: int
) -> Iterator[R]:
    from dask.system import CPU_COUNT
    from threadpoolctl import threadpool_limits

    pool = ThreadPoolExecutor(n_threads, thread_name_prefix="probe")
    # A library that tasks load would not be limited.
    lapack.available()
    # One layer per core: BLAS threads of their own would fight over the cores.
    with threadpool_limits(max(1, CPU_COUNT // n_threads)):
        try:
            for future in as_completed([pool.submit(function, task, *arguments) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _n_threads(n_tasks: int, device: str | None, task_bytes: int) -> int:
    import psutil
    from dask.system import CPU_COUNT

    most = CPU_COUNT if device is None or not device.startswith("cuda") else _ON_A_GPU
    fitting = int(psutil.virtual_memory().available // task_bytes) if task_bytes else most
    return max(1, min(n_tasks, most, fitting))


def _tell(n_tasks: int, at_a_time: int, task_bytes: int) -> None:
    if task_bytes:
        megabytes = f"{max(1, round(task_bytes / 1e6)):,}"
        log.info("%d layers, %d at a time, about %s MB of memory each", n_tasks, min(n_tasks, at_a_time), megabytes)
