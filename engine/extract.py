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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError, ModelError, StoreError
from sonde.store import Commit, Labels, Range, Schema, Store, as_numpy, ensure_vacant, locate, plan_range_size

from .batches import Batch, collate, split
from .capture import Capture, Recorder
from .config import DataSection, ExtractConfig
from .dataset import load_dataset
from .inputs import Encoded, Encoder
from .model import Model, load_model
from .pipeline import Finished, Work, work_of
from .prefetch import prefetch
from .sample import Dataset, Sample
from .tokens import Selection

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
    on_progress
        Called after every batch and commit.

    Returns
    -------
    Store
        Complete: every range is committed, every label column of the data set is in it.

    Raises
    ------
    InputError
        If the configuration or a sample cannot be used (samples: unless ``run.on_error`` is "skip").
    ModelError
        If the model cannot be loaded or lacks what is asked of it.
    StoreError
        If something is at the output's place, or a store to resume is of another model, data or capture.
    """
    config = ExtractConfig.load(config)
    if config.run.out is None:
        raise InputError('run.out is missing: say where the store goes, for example out = "run.zarr"')
    location = locate(config.run.out)
    if not (resume and location.exists("zarr.json")):
        ensure_vacant(location)
    dataset = load_dataset(config.data, samples)
    labels = [Labels.from_column(n, dataset.column(n), classes=dataset.classes.get(n)) for n in dataset.labels]
    model = load_model(config.model)
    capture = Capture.plan(config.capture.sites, config.capture.tokens, config.capture.layers, model.n_layers)
    data = config.data or DataSection()
    encoder = Encoder(model, capture.tokens, data.prompt_format, data.truncate)
    with ExitStack() as stack:
        recorder = Recorder(model.module, model.blocks, capture)
        stack.callback(recorder.close)
        hidden = _hidden_size(model, recorder, capture)
        schema = _plan(config, dataset, model, capture, encoder, hidden)
        stack.enter_context(location.lock())
        if location.exists("zarr.json"):
            store = Store.open(config.run.out)
            _check_same(store, schema)
        else:
            columns = {"id": [s.id for s in dataset.samples], "group": [s.group for s in dataset.samples]}
            if any(s.split for s in dataset.samples):
                columns["split"] = [s.split for s in dataset.samples]
            store = Store.create(config.run.out, schema, columns)
        for column in labels:
            if column.name not in store.label_names:
                store.write_labels(column)
        _Run(config, dataset, model, capture, encoder, recorder, store, on_progress).run()
        store.refresh()
    return store


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
        store: Store,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self._dataset = dataset
        self._model = model
        self._capture = capture
        self._encoder = encoder
        self._recorder = recorder
        self._store = store
        self._writer = store.writer()
        self._report = on_progress or (lambda progress: None)
        self._token_budget = config.run.token_budget or (16384 if model.device.type == "cuda" else 4096)
        self._fail = config.run.on_error == "fail"
        self.progress = Progress(sum(len(r) for r in store.missing))

    def run(self) -> None:
        """Extract every range without a commit; what is committed stays whatever happens."""
        missing = self._store.missing
        if not missing:
            return
        started, clock = datetime.now(UTC), time.perf_counter()
        work = work_of(missing, self._dataset, self._encoder, self._token_budget, fail=self._fail)
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

    def _forward(self, samples: Sequence[Encoded], range_: Range, buffers: Mapping[str, NDArray[Any]]) -> None:
        import torch

        padded = len(samples) * max(sample.length for sample in samples)
        states = None
        if len(samples) == 1 or padded <= self._token_budget:
            batch = collate(samples, self._encoder.pad_token_id)
            try:
                states = run_batch(self._model, self._recorder, self._capture, batch)
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
        dtype = getattr(torch, self._store.schema.dtype)
        host = as_numpy(states.to(dtype).to("cpu"))
        rows = batch.rows.numpy() - range_.start
        points = {point: i for i, point in enumerate(self._capture.points)}
        for site in self._capture.sites:
            of_site = [points[p] for p in self._capture.points_of(site)]
            for k, tokens in enumerate(self._capture.tokens):
                buffers[f"{site}/{tokens}"][:, rows] = host[of_site, :, k]
        self.progress.tokens += batch.n_tokens

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


def run_batch(model: Model, recorder: Recorder, capture: Capture, batch: Batch) -> torch.Tensor:
    """Run one batch and return the kept states, ``[point, batch, tokens, hidden]`` on the model's device."""
    device, dtype = model.device, model.module.dtype
    inputs = {
        key: value.to(device, dtype if value.is_floating_point() else None, non_blocking=True)
        for key, value in batch.inputs.items()
    }
    selection = Selection.plan(capture.tokens, batch.valid.to(device), batch.image.to(device))
    return recorder.run(inputs, selection)


def _hidden_size(model: Model, recorder: Recorder, capture: Capture) -> int:
    """Run two tokens of text through the model, to see that every point is met and how wide the stream is."""
    import torch

    ids = [i for i in range(1, 4) if i != model.image_token_id][:2]
    sequence = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones((1, 2), dtype=torch.int64)}
    sample = Encoded(0, sequence, {}, torch.tensor([False, False]))
    probe = replace(capture, tokens=("last",))
    return run_batch(model, recorder, probe, collate([sample], 0)).shape[-1]


def _plan(
    config: ExtractConfig, dataset: Dataset, model: Model, capture: Capture, encoder: Encoder, hidden: int
) -> Schema:
    arrays = capture.arrays(hidden)
    dtype = config.capture.dtype or config.model.dtype
    itemsize = 4 if dtype == "float32" else 2
    range_size = config.run.range_size or plan_range_size(len(dataset), [hidden * itemsize])
    return Schema(
        arrays=arrays,
        n_samples=len(dataset),
        range_size=range_size,
        model=dict(model.provenance),
        data={"fingerprint": dataset.fingerprint()} | encoder.settings,
        capture={"sites": list(capture.sites), "tokens": list(capture.tokens), "layers": list(capture.layers)},
        # Where the store lies is no part of it: two runs of one configuration give the same bytes.
        config=json.loads(config.model_dump_json(exclude_none=True, exclude={"run": {"out"}})),
        dtype=dtype,
    )


def _check_same(store: Store, wanted: Schema) -> None:
    there = store.schema
    for what in ("n_samples", "dtype", "model", "data", "capture"):
        old, new = getattr(there, what), getattr(wanted, what)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            key = next(k for k in sorted({*old, *new}) if old.get(k) != new.get(k))
            what, old, new = f"{what} {key}", old.get(key), new.get(key)
        raise StoreError(
            f"{store.location} was begun with another {what}: {old!r} there, {new!r} now; "
            "resume with the same configuration, or choose another --out"
        )
    if wanted.range_size != there.range_size and wanted.config.get("run", {}).get("range_size"):
        raise StoreError(
            f"{store.location} was begun with range_size {there.range_size}, now it is {wanted.range_size}; "
            "leave run.range_size out to resume"
        )


def _device_name(device: torch.device) -> str:
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
