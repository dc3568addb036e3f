"""The engine as the GPU benchmark drives it: a loaded model, the batches of a data set, and each stage alone."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.engine import Sample
from sonde.engine.packs import Pack
from sonde.engine.session import Session

from .extract_engine import Extraction, configure
from .gpu_shapes import Operations


def load(model: Path, tokens: str, device: str, token_budget: int) -> Session:
    """Load a model whose random weights are drawn where it runs: on a CPU billions of them take minutes."""
    import torch

    with torch.device(device):
        return Session.open(configure(model, tokens, "bfloat16", device, token_budget=token_budget))


class GpuExtraction(Extraction):
    """An extraction whose operations are counted, and what a GPU is asked about it.

    Attributes
    ----------
    needed
        What one sample costs this model.
    operations
        Of all samples, without padding.
    device
        Where the model is.
    """

    def __init__(
        self, session: Session, samples: Sequence[Sample], tokens: str, token_budget: int, folder: Path
    ) -> None:
        model, self.device = Path(session.model.provenance["name"]), str(session.model.device)
        config = configure(model, tokens, "bfloat16", self.device, token_budget=token_budget)
        super().__init__(session, config, samples, folder)
        self.needed, work = Operations.of(session.model.module, session.model.blocks.layers), self._plan()
        samples_run = [sample for item in work for pack in item.packs for sample in pack.samples]
        self.operations = sum(self.needed.of_sample(sample.length, sample.vision_rows) for sample in samples_run)
        self._batches = [item.batch for item in work]

    def hidden_states(self, row: int) -> NDArray[np.float32]:
        """Run one sample alone: float32 ``[layer + 1, token, hidden]`` as transformers gives them."""
        import torch

        alone = Pack((self._session.encoder(row, self.samples.samples[row]),))
        model = self._session.model
        inputs = self._session.collate([alone]).to(model.device, model.module.dtype).inputs
        with torch.inference_mode():
            states = model.module(**inputs, use_cache=False, output_hidden_states=True).hidden_states
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
