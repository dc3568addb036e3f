"""Processes that share the work: on this machine, or on the user's Dask cluster."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from sonde.errors import InputError, WorkerError

if TYPE_CHECKING:
    import distributed

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def open_cluster(
    *, workers: int | None = None, scheduler: str | None = None, on_gpus: bool = False
) -> Iterator[distributed.Client]:
    """Start local processes, or connect to a cluster.

    Parameters
    ----------
    workers
        Number of local processes.
    scheduler
        Address of a Dask scheduler, ``tcp://…``. Exactly one of the two is given.
    on_gpus
        Whether local workers take a GPU each, where dask-cuda is installed.

    Raises
    ------
    InputError
        If both or no workers are asked for, or no scheduler with a worker answers within Dask's setting
        ``distributed.comm.timeouts.connect`` (30 seconds).
    """
    if scheduler is not None and workers is not None:
        raise InputError(f"workers={workers} are local, the scheduler {scheduler!r} has its own: give one of the two")
    if workers is not None and workers < 1:
        raise InputError(f"{workers} workers cannot do anything: ask for 1 or more, or leave it out")
    with ExitStack() as stack:
        yield stack.enter_context(_local(workers, stack, on_gpus) if scheduler is None else _connect(scheduler))


def run_on(
    client: distributed.Client, function: Callable[..., R], tasks: Sequence[T], arguments: tuple[Any, ...], what: str
) -> Iterator[R]:
    """Give out ``function(task, *arguments)`` for every task, in the order in which they are done.

    All must be picklable; the arguments are sent to every worker once. ``what`` they do is named if they die.

    Raises
    ------
    WorkerError
        If workers keep dying.
    """
    import distributed

    [shared] = client.scatter([arguments], broadcast=True, hash=False)
    # A task reads and writes files: its result is not a function of its arguments alone.
    futures = [client.submit(_unpack, function, task, shared, pure=False) for task in tasks]
    try:
        for future in distributed.as_completed(futures):
            yield future.result()
    except (distributed.KilledWorker, distributed.client.FutureCancelledError) as error:
        raise WorkerError(
            f"workers died while they {what} ({error}): look at their logs, give them more memory, or use fewer"
        ) from error


def _unpack(function: Callable[..., R], task: Any, arguments: tuple[Any, ...]) -> R:
    return function(task, *arguments)


def _local(workers: int | None, stack: ExitStack, on_gpus: bool) -> distributed.Client:
    import distributed

    # Any free port of this machine alone: without a dashboard too there is a web server, on the port of everyone.
    web = {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
    logger = logging.getLogger("distributed.nanny")
    stack.callback(logger.setLevel, logger.level)
    cluster = stack.enter_context(_cluster_class(on_gpus)(n_workers=workers, threads_per_worker=1, **web))
    # While it closes: a process that takes long to leave is killed, and has nothing left to lose.
    stack.callback(logger.setLevel, logging.ERROR)
    return distributed.Client(cluster)


def _cluster_class(on_gpus: bool) -> Any:
    if on_gpus and importlib.util.find_spec("dask_cuda") is not None:
        import dask_cuda

        return dask_cuda.LocalCUDACluster
    import distributed

    return distributed.LocalCluster


def _connect(scheduler: str) -> distributed.Client:
    import dask
    import distributed
    from dask.utils import parse_timedelta
    from distributed.utils import LoopRunner

    try:
        # A client that finds no scheduler stays half open, and hangs the next one if it is collected at a bad moment.
        LoopRunner().run_sync(_greet, scheduler)
    except (OSError, ValueError) as error:
        raise InputError(f"no Dask scheduler answers at {scheduler!r} ({error}); check --scheduler") from error
    client = distributed.Client(scheduler)
    try:
        client.wait_for_workers(1, timeout=parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))
    except TimeoutError as error:
        client.close()
        raise InputError(
            f"the Dask scheduler at {scheduler!r} has no workers; start some with `dask worker {scheduler}`"
        ) from error
    return client


async def _greet(scheduler: str) -> None:
    import distributed
    from distributed.comm.core import connect

    comm = await connect(scheduler, **distributed.Security().get_connection_args("client"))
    await comm.close()
