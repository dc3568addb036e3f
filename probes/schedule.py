"""Where layers are probed: on threads, in local processes or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sonde.workers import open_cluster, run_on

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(
    function: Callable[..., R],
    tasks: Sequence[T],
    arguments: tuple[Any, ...],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
) -> Iterator[R]:
    """Give out ``function(task, *arguments)`` for every task, in the order in which they are done.

    Parameters
    ----------
    function, tasks, arguments
        Picklable where tasks leave this process; the arguments are sent to every worker once.
    scheduler
        Address of a Dask scheduler.
    workers
        Number of local processes. Neither: threads of this process, one per core.

    Raises
    ------
    InputError
        If both or no workers are asked for, or no scheduler with a worker answers.
    WorkerError
        If workers keep dying.
    """
    if scheduler is None and workers is None:
        yield from _on_threads(function, tasks, arguments)
        return
    with open_cluster(workers=workers, scheduler=scheduler) as client:
        yield from run_on(client, function, tasks, arguments, "probed")


def _on_threads(function: Callable[..., R], tasks: Sequence[T], arguments: tuple[Any, ...]) -> Iterator[R]:
    from dask.base import compute
    from dask.delayed import delayed
    from dask.system import CPU_COUNT
    from threadpoolctl import threadpool_limits

    n_threads = max(1, min(len(tasks), CPU_COUNT))
    # One layer per core: BLAS threads of their own would fight over the cores.
    with threadpool_limits(max(1, CPU_COUNT // n_threads)):
        for start in range(0, len(tasks), 4 * n_threads):
            some = [delayed(function)(task, *arguments) for task in tasks[start : start + 4 * n_threads]]
            yield from compute(*some, scheduler="threads", num_workers=n_threads)
