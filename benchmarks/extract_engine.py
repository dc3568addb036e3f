"""One data set through one model: as a whole extraction, as forward passes with capture, and as bare forward passes."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from sonde import extract
from sonde.callbacks import OnProgress
from sonde.engine import ExtractConfig, Sample
from sonde.engine.batches import Batch
from sonde.engine.destination import open_destination, plan_schema
from sonde.engine.pipeline import Work, work_of
from sonde.engine.run import Progress, Run
from sonde.engine.sample import Dataset
from sonde.engine.session import Session
from sonde.store import Store, locate, plan_ranges

from .gpu_ceilings import wait

TOKEN_BUDGET = 4096


class Extraction:
    """All layers' residual stream, kept in new stores of one folder.

    Parameters
    ----------
    session
        The loaded model, of a configuration.
    config
        That configuration.
    samples
        What runs.
    folder
        Where the stores go.
    """

    # Of all stores of this process.
    _numbers: ClassVar[Iterator[int]] = itertools.count()

    def __init__(self, session: Session, config: ExtractConfig, samples: Sequence[Sample], folder: Path) -> None:
        self.samples = Dataset(tuple(samples))
        self.folder = folder
        self._config = config
        self._session = session
        self._schema = plan_schema(config, self.samples, session)

    @classmethod
    def of_model(
        cls,
        model: Path,
        samples: Sequence[Sample],
        folder: Path,
        *,
        tokens: str = "last",
        dtype: str = "bfloat16",
        **run: Any,
    ) -> Extraction:
        """Load a model on the CPU, with random weights if its folder has none; ``run`` are settings of ``[run]``."""
        config = configure(model, tokens, dtype, **run)
        return cls(Session.open(config), config, samples, folder)

    @property
    def n_samples(self) -> int:
        """Number of samples."""
        return len(self.samples)

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples, without padding; what samples share counts for each."""
        return sum(batch.n_tokens for batch in self._batches)

    @cached_property
    def ids(self) -> list[list[int]]:
        """Token ids of every sample."""
        return [encoded.sequence["input_ids"][0].tolist() for encoded in self._encoded]

    @cached_property
    def token_ratio(self) -> float:
        """Tokens of all samples, one by one, over those that are left if what precedes an image's end runs once."""
        counted: dict[Any, int] = {}
        suffixes = 0
        for sample, encoded in zip(self.samples.samples, self._encoded, strict=True):
            counted[sample.images] = int(encoded.image.nonzero().max()) + 1
            suffixes += encoded.length - counted[sample.images]
        return self.n_tokens / (sum(counted.values()) + suffixes)

    @cached_property
    def _encoded(self) -> list[Any]:
        return [self._session.encoder(row, sample) for row, sample in enumerate(self.samples.samples)]

    @cached_property
    def _batches(self) -> list[Batch]:
        return [item.batch for item in self._plan()]

    def _plan(self) -> list[Work]:
        """Prepare all samples, in the batches of an extraction."""
        ranges = plan_ranges(len(self.samples), self._schema.range_size)
        budget = self._config.run.token_budget or TOKEN_BUDGET
        work = work_of(ranges, self.samples, 0, self._session, budget, fail=True)
        return [item for item in work if isinstance(item, Work)]

    @cached_property
    def _inputs(self) -> list[dict[str, Any]]:
        model = self._session.model
        return [batch.to(model.device, model.module.dtype).inputs for batch in self._batches]

    def bare(self) -> None:
        """Run the model alone over the batches."""
        import torch

        with torch.inference_mode():
            for inputs in self._inputs:
                self._session.model.module(**inputs, use_cache=False)
        wait(str(self._session.model.device))

    def captured(self) -> None:
        """Run the batches and select what is to be kept, without keeping it."""
        for batch in self._batches:
            self._session.run(batch)
        wait(str(self._session.model.device))

    def whole(self) -> Store:
        """Extract into a new store, from prompts to committed ranges."""
        place = locate(self.folder / f"{next(self._numbers)}.zarr")
        store = open_destination(place, "new", self._config, self.samples, self._schema).store
        Run(self._session, self.samples, 0, store, self._config.run).extract(store.ranges, Progress(self.n_samples))
        store.refresh()
        return store


class RawWrite:
    """The floor of writing: so many bytes to one file, one after the other, fsync included."""

    def __init__(self, path: Path, nbytes: int) -> None:
        self._path = path
        self._nbytes = nbytes
        self._content = np.random.default_rng(0).bytes(min(nbytes, 2**24))

    def __call__(self) -> None:
        with self._path.open("wb", buffering=0) as file:
            for start in range(0, self._nbytes, len(self._content)):
                file.write(self._content[: self._nbytes - start])
            os.fsync(file.fileno())


def rate(model: Path, samples: Sequence[Sample], out: Path, workers: int | None, range_size: int) -> float:
    """Samples per second of an extraction whose processes are all at work.

    The clock starts when as many ranges are done as there are workers, so that loading is no part of it.
    """
    done: list[tuple[float, int]] = []
    config = configure(model, "last", "bfloat16", out=str(out), range_size=range_size)
    note = OnProgress(lambda n, *_: done.append((time.perf_counter(), n)))
    extract(config, samples=samples, workers=workers, callbacks=[note])
    (start, before), (stop, after) = done[(workers or 1) - 1], done[-1]
    return (after - before) / (stop - start)


def configure(model: Path, tokens: str, dtype: str, device: str = "cpu", **run: Any) -> ExtractConfig:
    """Describe an extraction of all layers."""
    weights = "pretrained" if any(model.glob("*.safetensors")) else "random"
    return ExtractConfig.load(
        {
            "model": {"name": str(model), "weights": weights, "device": device, "dtype": dtype},
            "capture": {"tokens": [tokens]},
            "run": {"out": "unused", "token_budget": TOKEN_BUDGET} | run,
        }
    )
