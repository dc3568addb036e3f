"""The extraction: a frozen model over a data set, once, into a store."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError, ModelError
from sonde.store import ALL, Commit, Labels, Range, Store, as_numpy, locate

from .batches import Batch, collate, split
from .capture import CONNECTOR, Capture
from .config import DataSection, ExtractConfig
from .dataset import load_dataset
from .destination import Destination, mode_of, open_destination, plan_schema
from .inputs import Encoded, Encoder
from .model import Model, load_model
from .pipeline import Finished, Work, work_of
from .prefetch import prefetch
from .recorder import Recorder
from .sample import Dataset, Sample
from .structure import find_vision_blocks
from .widths import two_tokens, widths

if TYPE_CHECKING:
    import torch
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
    """

    total: int
    samples: int = 0
    tokens: int = 0
    nbytes: int = 0
    skipped: int = 0
    seconds: float = 0.0


def extract(
    config: ExtractConfig | Mapping[str, Any] | str | Path,
    *,
    samples: Dataset | Sequence[Sample] | None = None,
    resume: bool = False,
    append: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
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
    on_progress
        Called after every batch and commit.

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
    """
    config = ExtractConfig.load(config)
    if config.run.out is None:
        raise InputError('run.out is missing: say where the store goes, for example out = "run.zarr"')
    location = locate(config.run.out, fsync=config.run.fsync)
    mode = mode_of(location, resume=resume, append=append)
    dataset = load_dataset(config.data, samples)
    for name in dataset.labels:
        # A column that cannot be used is found before the model is loaded.
        Labels.from_column(name, dataset.column(name), classes=dataset.classes.get(name))
    model = load_model(config.model)
    vision = find_vision_blocks(model.module)
    capture = Capture.plan(
        config.capture.sites, config.capture.tokens, config.capture.layers, model.n_layers, len(vision)
    )
    data = config.data or DataSection()
    encoder = Encoder(model, capture, data.prompt_format, data.truncate)
    with ExitStack() as stack:
        recorder = Recorder(model.module, model.blocks, capture, vision, two_tokens(model))
        stack.callback(recorder.close)
        schema = plan_schema(config, dataset, model, capture, encoder, widths(model, vision, capture))
        stack.enter_context(location.lock())
        destination = open_destination(location, mode, config, dataset, schema)
        _Run(config, dataset, model, capture, encoder, recorder, destination, on_progress).run()
        destination.store.refresh()
    return destination.store


class _Run:
    """One process' pass over the ranges that a store lacks."""

    def __init__(
        self,
        config: ExtractConfig,
        dataset: Dataset,
        model: Model,
        capture: Capture,
        encoder: Encoder,
        recorder: Recorder,
        destination: Destination,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._dataset = dataset
        self._model = model
        self._capture = capture
        self._encoder = encoder
        self._recorder = recorder
        self._store = destination.store
        self._first = destination.first
        self._missing = destination.missing
        self._writer = self._store.writer()
        self._report = on_progress or (lambda progress: None)
        self._token_budget = config.run.token_budget or (16384 if model.device.type == "cuda" else 4096)
        self._fail = config.run.on_error == "fail"
        self.progress = Progress(sum(len(r) for r in destination.missing))

    def run(self) -> None:
        """Extract every range without a commit; what is committed stays whatever happens."""
        missing = self._missing
        if not missing:
            return
        started, clock = datetime.now(UTC), time.perf_counter()
        work = work_of(missing, self._dataset, self._first, self._encoder, self._token_budget, fail=self._fail)
        pending: Future[Commit] | None = None
        try:
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
                        buffers = self._writer.buffers() if item.range != missing[-1] else {}
                    self.progress.seconds = time.perf_counter() - clock
                    self._report(self.progress)
                self._finish(pending)
                self.progress.seconds = time.perf_counter() - clock
                self._report(self.progress)
        finally:
            self._log(started)

    def _forward(self, samples: Sequence[Encoded], range_: Range, buffers: Mapping[str, Any]) -> None:
        import torch

        padded = len(samples) * max(sample.length for sample in samples)
        states = None
        if len(samples) == 1 or padded <= self._token_budget:
            batch = collate(samples, self._encoder.pad_token_id)
            try:
                states = run_batch(self._model, self._recorder, batch)
            except torch.cuda.OutOfMemoryError as error:
                if len(samples) == 1:
                    raise ModelError(
                        f"{self._model.device} has not the memory for one sample of {padded} tokens: shorten it, set "
                        "data.truncate, or take a smaller model.dtype"
                    ) from error
        if states is None:
            if padded <= self._token_budget:
                # Outside of the handler, where the error would keep the tensors of the pass that failed.
                torch.cuda.empty_cache()
                self._token_budget = padded // 2
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
            reduced = [tokens for tokens in self._capture.tokens_of(site) if tokens != ALL]
            for k, tokens in enumerate(reduced):
                buffers[f"{site}/{tokens}"][:, rows - range_.start] = states[:, :, k]
            if ALL in self._capture.tokens_of(site):
                ids, image = batch.inputs["input_ids"].numpy(), batch.image.numpy()
                kept = batch.valid.numpy() & image if site == CONNECTOR else batch.valid.numpy()
                for i, row in enumerate(rows.tolist()):
                    values = states[:, i, len(reduced) :][:, kept[i]]
                    buffers[f"{site}/{ALL}"].put(row, values, ids[i, kept[i]], image[i, kept[i]])

    def _count_skipped(self, item: Finished) -> None:
        self.progress.samples += len(item.skipped)
        self.progress.skipped += len(item.skipped)
        for row, why in item.skipped.items():
            log.warning("skipped %s (row %d)", why, row)

    def _finish(self, pending: Future[Commit] | None) -> None:
        if pending is not None:
            self.progress.nbytes += pending.result().nbytes

    def _log(self, started: datetime) -> None:
        """Note how this run went; not part of what the store promises, so a failure here is none."""
        device = self._model.device
        record = asdict(self.progress) | {
            "started": started.isoformat(timespec="seconds"),
            "host": platform.node(),
            "device": _device_name(device),
            "token_budget": self._token_budget,
        }
        name = f"log/{started:%Y%m%dT%H%M%S.%f}-{os.getpid()}.json"
        try:
            self._store.location.publish(name, json.dumps(record, indent=1).encode())
        except OSError as error:
            log.warning("the run's log could not be written: %s", error)


def run_batch(model: Model, recorder: Recorder, batch: Batch) -> dict[str, torch.Tensor]:
    """Run one batch and return the kept states by site, as `Recorder.run` does."""
    device, dtype = model.device, model.module.dtype
    inputs = {
        key: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
        for key, value in batch.inputs.items()
    }
    return recorder.run(inputs, batch.valid.to(device), batch.image.to(device), batch.vision_rows)


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
