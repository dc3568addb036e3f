"""The engine as the GPU benchmark drives it: a loaded model, the batches of a data set, and each stage alone."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sonde.engine import ExtractConfig, Sample
from sonde.engine.destination import open_destination, plan_schema
from sonde.engine.packs import Pack
from sonde.engine.pipeline import Work, work_of
from sonde.engine.run import Progress, Run
from sonde.engine.sample import Dataset
from sonde.engine.session import Session
from sonde.store import Store, locate, plan_ranges

from .gpu_ceilings import wait
from .gpu_shapes import Operations

if TYPE_CHECKING:
    import torch

_numbers = itertools.count()


def _configure(model: str, tokens: str, device: str, token_budget: int) -> ExtractConfig:
    return ExtractConfig.load(
        {
            "model": {"name": model, "weights": "random", "device": device},
            "capture": {"tokens": [tokens]},
            "run": {"out": "unused", "token_budget": token_budget},
        }
    )


def load(model: Path, tokens: str, device: str, token_budget: int) -> Session:
    """Load a model whose random weights are drawn where it runs: on a CPU billions of them take minutes."""
    import torch

    with torch.device(device):
        return Session.open(_configure(str(model), tokens, device, token_budget))


class Extraction:
    """One data set, ready to be run through a session in several ways.

    Attributes
    ----------
    samples
        The data set.
    n_tokens, operations
        Of all samples, without padding.
    needed
        Operations by what they are for.
    device
        Where the model is.
    folder
        Where stores are made.
    """

    def __init__(
        self, session: Session, samples: Sequence[Sample], tokens: str, token_budget: int, folder: Path
    ) -> None:
        self.samples, self.folder = Dataset(tuple(samples)), folder
        self.device = str(session.model.device)
        self._session = session
        self._config = _configure(session.model.provenance["name"], tokens, self.device, token_budget)
        self._schema = plan_schema(self._config, self.samples, session)
        ranges = plan_ranges(len(self.samples), self._schema.range_size)
        work = [
            item
            for item in work_of(ranges, self.samples, 0, session, token_budget, fail=True)
            if isinstance(item, Work)
        ]
        encoded = [sample for item in work for pack in item.packs for sample in pack.samples]
        self._batches = [item.batch for item in work]
        self._inputs = [self._there(batch.inputs) for batch in self._batches]
        self.needed = Operations.of(session.model.module, session.model.blocks.layers)
        self.n_tokens = sum(sample.length for sample in encoded)
        self.operations = sum(self.needed.of_sample(s.length, s.vision_rows) for s in encoded)

    def _there(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        dtype = self._session.model.module.dtype
        return {k: x.to(self.device, dtype if x.is_floating_point() else None) for k, x in inputs.items()}

    def bare(self) -> None:
        """Run the model over all batches, which are on the device, and keep nothing."""
        import torch

        with torch.inference_mode():
            for inputs in self._inputs:
                self._session.model.module(**inputs, use_cache=False)
        wait(self.device)

    def captured(self) -> None:
        """Run all batches with their states recorded, and leave these on the device."""
        for batch in self._batches:
            self._session.run(batch)
        wait(self.device)

    def whole(self) -> Store:
        """Extract the samples into a new store."""
        place = locate(self.folder / f"{next(_numbers)}.zarr")
        store = open_destination(place, "new", self._config, self.samples, self._schema).store
        Run(self._session, self.samples, 0, store, self._config.run).extract(store.ranges, Progress(len(self.samples)))
        store.refresh()
        return store

    def hidden_states(self, row: int) -> NDArray[np.float32]:
        """Run one sample alone: float32 ``[layer + 1, token, hidden]`` as transformers gives them."""
        import torch

        alone = Pack((self._session.encoder(row, self.samples.samples[row]),))
        inputs = self._there(self._session.collate([alone]).inputs)
        with torch.inference_mode():
            states = self._session.model.module(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        return np.stack([x[0].float().cpu().numpy() for x in states])

    def waits(self) -> dict[str, Any]:
        """Count where the host waits for the GPU while one batch runs: in the engine, and in all that it calls."""
        import torch

        batch = self._batches[0]
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self._session.run(batch)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in seen if "synchronizing CUDA operation" in str(w.message)]
        places = Counter(f"{'/'.join(Path(w.filename).parts[-2:])}:{w.lineno}" for w in waits)
        own = sum("engine" in Path(w.filename).parts[-2:] for w in waits)
        return {"value": own, "with the model's": len(waits), "places": dict(places)}
