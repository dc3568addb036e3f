"""Ranges as tasks of worker processes, each of which loads the model once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import uuid4

from sonde.errors import ModelError
from sonde.store import Range, Store
from sonde.workers import open_cluster, run_on

from .config import ExtractConfig
from .destination import Destination
from .run import Progress, Run
from .sample import Dataset
from .session import Session

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs to extract ranges of a store.

    Attributes
    ----------
    config
        Of the extraction.
    dataset
        All samples.
    url
        Where the store is; workers must see it at the same place.
    first
        Number in the store of the data set's first sample.
    n_workers
        Local processes that share this machine's cores; None on a cluster.
    name
        Tells this job from others in a worker that lives on.
    """

    config: ExtractConfig
    dataset: Dataset
    url: str
    first: int
    n_workers: int | None
    name: str


def extract_on_workers(
    config: ExtractConfig,
    dataset: Dataset,
    destination: Destination,
    progress: Progress,
    *,
    workers: int | None,
    scheduler: str | None,
    on_progress: Callable[[Progress], None] | None = None,
) -> None:
    """Extract what is missing in worker processes, each range as a task that commits it.

    A worker that dies costs the range it was at, which another one does again.

    Raises
    ------
    InputError
        If a sample cannot be used, or no scheduler answers.
    ModelError
        If a worker has another model than the store is of.
    WorkerError
        If workers keep dying.
    """
    if not destination.missing:
        return
    clock = time.perf_counter()
    job = Job(config, dataset, str(destination.store.location), destination.first, workers, uuid4().hex)
    with open_cluster(workers=workers, scheduler=scheduler) as client:
        log.info("dask dashboard: %s", client.dashboard_link)
        for done in run_on(client, extract_range, destination.missing, (job,), "extracted"):
            progress.samples += done.samples
            progress.tokens += done.tokens
            progress.nbytes += done.nbytes
            progress.skipped += done.skipped
            progress.ranges |= done.ranges
            progress.seconds = time.perf_counter() - clock
            if on_progress is not None:
                on_progress(progress)


def extract_range(range_: Range, job: Job) -> Progress:
    """Extract and commit one range in this process."""
    progress = Progress(len(range_))
    # A worker of a cluster may have many threads, each with a range, but has one model, which runs one batch at a time.
    with _one_at_a_time:
        if job.name not in _current:
            while _current:
                _current.popitem()[1].close()
            _current[job.name] = _prepare(job)
        _current[job.name].extract([range_], progress)
    return progress


# The job that this process is at; its model goes before another job's is loaded.
_current: dict[str, Run] = {}
_one_at_a_time = threading.Lock()


def _prepare(job: Job) -> Run:
    import torch

    if job.n_workers is not None:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // job.n_workers))
    config = job.config
    if config.model.device is None and torch.cuda.device_count() > 1:
        device = f"cuda:{_worker_number() * (config.model.tensor_parallel or 1) % torch.cuda.device_count()}"
        if config.model.backend != "vllm":
            # What a library allocates without asking is there too; vLLM is shown its own GPUs alone.
            torch.cuda.set_device(device)
        config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
    session = Session.open(config)
    store = Store.open(job.url, fsync=config.run.fsync)
    wanted, found = store.schema.model, session.model.provenance
    if wanted["fingerprint"] != found["fingerprint"]:
        raise ModelError(
            f"the model {config.model.name!r} has other weights on this worker than where the extraction was started: "
            "make the same checkpoint available to all workers"
        )
    return Run(session, job.dataset, job.first, store, config.run)


def _worker_number() -> int:
    from distributed import get_worker

    name = get_worker().name
    return int(name) if str(name).isdigit() else os.getpid()
