"""The extraction: a frozen model over a data set, once, into a store."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from sonde.callbacks import Callback
from sonde.errors import InputError
from sonde.store import Labels, Store, locate
from sonde.watching import Watch, watched

from .calibrate import find_token_budget
from .circumstances import circumstances
from .config import ExtractConfig
from .dataset import load_dataset
from .destination import mode_of, open_destination, plan_schema
from .distribute import extract_on_workers
from .run import Progress, Run
from .sample import Dataset, Sample
from .session import Session
from .trace import Trace

log = logging.getLogger(__name__)


def extract(
    config: ExtractConfig | Mapping[str, Any] | str | Path,
    *,
    samples: Dataset | Sequence[Sample] | None = None,
    resume: bool = False,
    append: bool = False,
    workers: int | None = None,
    scheduler: str | None = None,
    profile: str | Path | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Store:
    """Run a frozen model over a data set and keep the selected activations of every layer.

    Parameters
    ----------
    config
        A configuration, the path of a TOML file, or a mapping of the same form, such as
        ``{"model": {"name": "gpt2"}, "data": {"manifest": "samples.jsonl"}, "run": {"out": "run.zarr"}}``.
    samples
        The data set, instead of the configuration's ``data`` source.
    resume
        Go on with a store that was begun by the same model, data and capture; what is committed stays.
    append
        Add the data set's samples to a store of the same model, data settings, capture and dtype; what is there stays,
        and whoever reads it goes on. An append that was cut off goes on when it is asked for again.
    workers
        Local processes, each with a model of its own, that share the ranges. A script must ask for them under
        ``if __name__ == "__main__":``, as for all processes of Python.
    scheduler
        Address of a Dask scheduler, ``tcp://…``, whose workers must see the model, the data and the store at the same
        places.
    profile
        A JSON file for the spans of all stages, in the Trace Event Format (Perfetto, chrome://tracing); of one process.
    callbacks
        Who is told how it goes: after every batch and commit, with workers after every range. Left out, a progress bar
        at a terminal or in a notebook; ``()`` for none.

    Returns
    -------
    Store
        Every range of the data set is committed, every label column of it is in the store.

    Raises
    ------
    InputError
        If the configuration or a sample cannot be used (samples: unless ``run.on_error`` is "skip").
    ModelError
        If the model cannot be loaded or lacks what is asked of it.
    StoreError
        If something is at the output's place, or a store to resume or append to is of another model, data or capture.
    WorkerError
        If worker processes keep dying.
    """
    config = ExtractConfig.load(config)
    if config.run.out is None:
        raise InputError('run.out is missing: say where the store goes, for example out = "run.zarr"')
    if workers is not None and scheduler is not None:
        raise InputError(f"workers={workers} are local, the scheduler {scheduler!r} has its own: give one of the two")
    if profile is not None and (workers is not None or scheduler is not None):
        raise InputError(f"the profile {str(profile)!r} is of one process: leave workers and scheduler out")
    if profile is not None and (Path(profile).is_dir() or not Path(profile).absolute().parent.is_dir()):
        # It is written at the end: hours later is late to learn of it.
        raise InputError(f"the profile {str(profile)!r} cannot be written there: give a file in a folder that exists")
    with warnings.catch_warnings():
        # In a notebook without widgets, tqdm says at its import that it wants them; nothing of it is shown here.
        warnings.filterwarnings("ignore", message="IProgress not found")
        import_module("huggingface_hub.utils.tqdm")
    location = locate(config.run.out, fsync=config.run.fsync)
    mode = mode_of(location, resume=resume, append=append)
    dataset = load_dataset(config.data, samples)
    for name in dataset.labels:
        # A column that cannot be used is found before the model is loaded.
        Labels.from_column(name, dataset.column(name), classes=dataset.classes.get(name))
    with ExitStack() as stack:
        session = Session.open(config)
        hooks = stack.enter_context(ExitStack())
        hooks.callback(session.close)
        if mode == "new" and config.run.token_budget is None:
            # Found once and kept in the store: other batches would be other roundings.
            config = config.with_token_budget(find_token_budget(dataset, session))
        schema = plan_schema(config, dataset, session)
        stack.enter_context(location.lock())
        destination = open_destination(location, mode, config, dataset, schema)
        config = _as_before(config, destination.store)
        store, missing = destination.store, destination.missing
        progress = Progress(sum(len(range_) for range_ in missing))
        facts = circumstances(session, config)
        what = {"run": "extract", "unit": "samples", "store": str(location), "model": dict(session.model.provenance)}
        watch = stack.enter_context(watched(callbacks, what | facts))
        if missing:
            stack.enter_context(_logged(store, progress, facts))
        else:
            log.info("all %d samples are in %s already: nothing is left to do", len(dataset), store.location)
        if workers is None and scheduler is None:
            trace = Trace(enabled=profile is not None)
            if profile is not None:
                stack.callback(trace.save, profile)
            run = Run(session, dataset, destination.first, store, config.run, partial(_tell, watch), trace)
            run.extract(missing, progress)
        else:
            # The workers' models need the memory that this one takes.
            hooks.close()
            cuda = session.model.device.type == "cuda"
            del session, hooks
            if cuda:
                from torch.cuda import empty_cache

                empty_cache()
            extract_on_workers(
                config,
                dataset,
                destination,
                progress,
                workers=workers,
                scheduler=scheduler,
                on_progress=partial(_tell, watch),
            )
        store.refresh()
        info = store.info()
        watch.on_result(store.n_samples, {name: info[name] for name in ("skipped", "nonfinite", "bytes")})
    return store


def _tell(watch: Watch, progress: Progress) -> None:
    counts = {"tokens": progress.tokens, "bytes": progress.nbytes, "skipped": progress.skipped}
    counts |= {"ranges": len(progress.ranges), "token_budget": progress.token_budget}
    watch.on_progress(progress.samples, progress.total, counts | {"seconds": progress.seconds})


def _as_before(config: ExtractConfig, store: Store) -> ExtractConfig:
    """Take the store's token budget where none is given; warn of settings by which numbers round otherwise."""
    before = store.schema.config.get("run", {})
    if config.run.token_budget is None:
        config = config.with_token_budget(before.get("token_budget"))
    for name in ("token_budget", "shared_prefix"):
        there, now = before.get(name), getattr(config.run, name)
        if there is not None and there != now:
            log.warning("run.%s is %s, and was %s in %s: numbers may round otherwise", name, now, there, store.location)
    return config


@contextmanager
def _logged(store: Store, progress: Progress, facts: Mapping[str, Any]) -> Iterator[None]:
    """Note how a run went; not part of what the store promises, so a failure to do so is none."""
    started = datetime.now(UTC)
    try:
        yield
    finally:
        told = {**facts, "started": started.isoformat(timespec="seconds"), **asdict(progress)}
        name = f"log/{started:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        try:
            store.location.publish(name, json.dumps(told, indent=1).encode())
        except OSError as error:
            log.warning("the run's log could not be written: %s", error)
