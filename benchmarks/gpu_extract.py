"""Extraction with a model of 7 to 8 billion parameters on one GPU.

The floor is the bare forward pass of the same batches, which are on the device already, through the same loaded model;
with all tokens it is the slower of that and of writing the same bytes to one file, fsync included. The whole begins at
samples (words, or JPEGs and words) and ends at a committed store. Operations are what the samples need: the linear maps
of every token and patch, and half of a sample's (query, key) pairs, padding left out; they are compared with a product
of large bfloat16 matrices in the same minute.

How much is run follows from a trial on a few batches, so that a pass takes the same time on every device. The trial's
store is compared with ``output_hidden_states`` of samples that run alone.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.engine import Sample
from sonde.store import ALL, as_float32

from .gpu_ceilings import Emit, product_rate, room_for, wait, write_file
from .gpu_session import GpuExtraction, load
from .gpu_shapes import image_samples, text_samples, write_model
from .result import Owed, interleave

if TYPE_CHECKING:
    from sonde.engine.session import Session


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run.

    Attributes
    ----------
    seconds, rounds
        Of a bare pass, and how many passes of each contestant are counted.
    written
        Bytes of all tokens at most.
    words, side
        Fewest and most words of a prompt, pixels of an image's side.
    token_budget
        Padded tokens of a batch.
    product
        Side of the matrices that are multiplied.
    """

    seconds: float
    rounds: int
    written: int
    words: tuple[int, int]
    side: int
    token_budget: int
    product: int


SIZES = {
    "full": Size(4.0, 3, 4 * 2**30, (32, 512), 448, 16384, 8192),
    "fast": Size(2.0, 1, 2 * 2**30, (32, 512), 448, 16384, 8192),
    "tiny": Size(0.01, 1, 2**14, (4, 16), 56, 128, 64),
}
_MOST_SAMPLES = 4096
_CHECKED = 4
_DEVIATION = 0.1
"""Of bfloat16 states from those of a pass of another shape, in their norm: rounding that a deep model carries on."""

Draw = Callable[[int], Sequence[Sample]]


def text(emit: Emit, folder: Path, device: str, size: str) -> None:
    """Measure a model that takes text."""
    chosen, shape = SIZES[size], "tiny-llama" if size == "tiny" else "llama-3-8b"
    _measure(emit, folder, device, chosen, shape, lambda n: text_samples(n, *chosen.words))


def images(emit: Emit, folder: Path, device: str, size: str) -> None:
    """Measure a model that takes an image with each prompt."""
    chosen, shape = SIZES[size], "tiny-qwen2.5-vl" if size == "tiny" else "qwen2.5-vl-7b"
    pictures = folder / "images"
    _measure(emit, folder, device, chosen, shape, lambda n: image_samples(n, *chosen.words, pictures, chosen.side))


def _measure(emit: Emit, folder: Path, device: str, size: Size, shape: str, draw: Draw) -> None:
    model = write_model(folder / "model", shape)
    for tokens in ("last", ALL):
        # Enough for a time of the pass; all tokens of as many would be gigabytes.
        few = 2 * _CHECKED if tokens == ALL else max(2 * _CHECKED, 2 * size.token_budget // size.words[1])
        with _loaded(model, tokens, device, size) as (session, seconds):
            parameters = sum(p.numel() for p in session.model.module.parameters())
            emit({"what": f"load, to keep {tokens} tokens", "who": shape, "seconds": seconds, "parameters": parameters})
            trial = GpuExtraction(session, draw(few), tokens, size.token_budget, folder)
            nbytes = _check(emit, trial, tokens)
            if tokens == "last" and device != "cpu":
                emit({"what": "waits for the device in one batch", "who": "sonde", **trial.waits()})
            once = _seconds(trial.bare, device)
            budgeted = room_for(folder, size.written) / nbytes if tokens == ALL else size.seconds / once
            del trial
            samples = draw(max(_CHECKED, min(_MOST_SAMPLES, int(budgeted * few))))
            run = GpuExtraction(session, samples, tokens, size.token_budget, folder)
            _compare(emit, run, tokens, size, shape)
            del run


@contextmanager
def _loaded(model: Path, tokens: str, device: str, size: Size) -> Iterator[tuple[Session, float]]:
    """Load a model and give its memory back afterwards: the next one needs it."""
    import torch

    start = time.perf_counter()
    session = load(model, tokens, device, size.token_budget)
    wait(device)
    seconds = time.perf_counter() - start
    try:
        yield session, seconds
    finally:
        session.close()
        del session
        gc.collect()
        if device != "cpu":
            torch.cuda.empty_cache()


def _check(emit: Emit, trial: GpuExtraction, tokens: str) -> int:
    """Compare a store with passes of one sample each, tell the greatest deviation, and return the store's bytes."""
    import numpy as np

    store = trial.whole()
    site, n_layers = "resid_post", len(store.arrays[0].layers)
    # What transformers calls the last layer's states is behind the final norm.
    layers = sorted({0, n_layers // 2, n_layers - 2})
    worst = 0.0
    for row in range(_CHECKED):
        expected = trial.hidden_states(row)
        for layer in layers:
            if tokens == ALL:
                want, got = expected[layer + 1], as_float32(store.tokens(site, layer)[row])
            else:
                want, got = expected[layer + 1][-1:], as_float32(store.layer(site, tokens, layer).rows([row]))
            worst = max(worst, float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    emit({"what": f"deviation of {tokens} tokens from single passes", "who": "sonde", "value": worst})
    if not worst <= _DEVIATION:
        raise ValueError(f"states of {tokens} tokens deviate by {worst:.2g} of their norm from those of single passes")
    nbytes = int(store.info()["bytes"])
    shutil.rmtree(str(store.location))
    return nbytes


def _compare(emit: Emit, run: GpuExtraction, tokens: str, size: Size, shape: str) -> None:
    nbytes = 0

    def whole() -> None:
        nonlocal nbytes
        store = run.whole()
        nbytes = int(store.info()["bytes"])
        shutil.rmtree(str(store.location))

    # The whole goes first: as many bytes as its store has are what is written raw.
    contestants: dict[str, Callable[[], object]] = {"sonde": whole, "bare forward": run.bare}
    if tokens == ALL:
        contestants["raw write"] = lambda: write_file(run.folder, nbytes)
    else:
        contestants["capture alone"] = run.captured
    peaks: dict[str, float] = {}
    noted = {name: _noting_peak(peaks, name, contestant, run.device) for name, contestant in contestants.items()}
    times = interleave(noted, size.rounds)
    ceiling = product_rate(run.device, _bfloat16(), size.product, size.seconds / 10)
    for who, seconds in times.items():
        row: dict[str, Any] = {"what": f"{tokens} tokens", "who": who, "samples": len(run.samples), "seconds": seconds}
        if who != "raw write":
            rate = run.operations / seconds / 1e12
            row |= {"tokens/s": run.n_tokens / seconds, "TFLOP/s": rate, "of ceiling": rate / ceiling}
            row |= {"of bare": times["bare forward"] / seconds, "peak GiB": peaks[who]}
        if who in ("sonde", "raw write"):
            row["GB/s"] = nbytes / seconds / 1e9
        emit(row)
    if tokens == ALL:
        floor = max(times["bare forward"], times["raw write"])
        emit(Owed(f"{shape}: all tokens, of min(bare forward, raw write)", floor / times["sonde"], 0.8))
    else:
        emit(Owed(f"{shape}: pooled tokens, of the bare forward", times["bare forward"] / times["sonde"], 0.95))


def _noting_peak(peaks: dict[str, float], name: str, run: Callable[[], object], device: str) -> Callable[[], object]:
    """Note the most memory of the device that was in use at once while something ran, in GiB; 0 on a CPU."""
    import torch

    def noted() -> None:
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        run()
        peaks[name] = torch.cuda.max_memory_allocated(device) / 2**30 if device != "cpu" else 0.0

    return noted


def _seconds(run: Callable[[], object], device: str) -> float:
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return time.perf_counter() - start


def _bfloat16() -> Any:
    import torch

    return torch.bfloat16
