"""What extraction costs beside the model itself.

The floor is the bare forward pass of the same batches through the same loaded model, nothing captured, nothing kept;
with all tokens it is the slower of that and of writing the same bytes to one file, fsync included. Between the floor
and the whole stand the passes with capture alone, without tokenising and without a store. The peer is the loop that
scripts in the field use: batches in the order of the data under the same token budget, ``output_hidden_states=True``,
the last token of every layer kept with ``torch.save`` and one fsync per batch; its values are compared with ours before
anything is timed.

Everything runs in turns in one process, with the same weights (random: nothing of their values matters here), dtype and
threads, to one folder. The shapes are GPT-2-small's and, smaller, LLaVA's on text; prompts are random words, 8 to 128.

    python -m benchmarks.extract [--fast] [--folder DIR]
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sonde.engine import ExtractConfig, Sample
from sonde.engine.batches import Batch, collate
from sonde.engine.destination import open_destination, plan_schema
from sonde.engine.pipeline import Work, work_of
from sonde.engine.run import Progress, Run
from sonde.engine.sample import Dataset
from sonde.engine.session import Session
from sonde.store import Store, as_float32, locate, plan_ranges

from .result import Owed, conclude, interleave, launch

_TOKEN_BUDGET = 4096
_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]


def main(folder: Path, *, fast: bool) -> None:
    """Measure pooled and all-token extraction of one shape."""
    rounds = 3 if fast else 5
    results: list[dict[str, Any]] = []
    owed = []
    for tokens, n_samples in (("last", 192 if fast else 256), ("all", 64 if fast else 96)):
        model = write_model(folder / "model", fast=fast)
        samples = Dataset(tuple(prompts(n_samples)))
        contestants, nbytes, n_tokens = prepare(folder, model, samples, tokens)
        times = interleave(contestants, rounds)
        for who, seconds in times.items():
            results.append(
                {
                    "tokens": tokens,
                    "who": who,
                    "seconds": seconds,
                    "samples/s": n_samples / seconds,
                    "tokens/s": n_tokens / seconds,
                    "GB/s": nbytes / seconds / 1e9,
                    "of bare": times["bare forward"] / seconds,
                }
            )
        if tokens == "last":
            owed.append(Owed("pooled tokens, of the bare forward", times["bare forward"] / times["sonde"], 0.95))
            owed.append(Owed("ahead of the plain loop", times["plain loop"] / times["sonde"], 1.0))
        else:
            floor = max(times["bare forward"], times["raw write"])
            owed.append(Owed("all tokens, of min(bare forward, raw write)", floor / times["sonde"], 0.8))
    conclude("extract", results, owed)


def prepare(
    folder: Path, model: Path, samples: Dataset, tokens: str
) -> tuple[dict[str, Callable[[], object]], int, int]:
    """Make the contestants; also the bytes that are kept, and the tokens that are run."""
    import torch

    numbers = itertools.count()
    config = ExtractConfig.load(
        {
            "model": {"name": str(model), "weights": "random", "device": "cpu"},
            "capture": {"tokens": [tokens]},
            "run": {"out": "unused", "token_budget": _TOKEN_BUDGET},
        }
    )
    session = Session.open(config)
    schema = plan_schema(config, samples, session)
    ranges = plan_ranges(len(samples), schema.range_size)
    work = work_of(ranges, samples, 0, session.encoder, _TOKEN_BUDGET, fail=True)
    batches = [collate(item.samples, session.encoder.pad_token_id) for item in work if isinstance(item, Work)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                session.model.module(**batch.inputs, use_cache=False)

    def captured() -> None:
        for batch in batches:
            session.run(batch)

    def whole() -> Store:
        place = locate(folder / f"{next(numbers)}.zarr")
        store = open_destination(place, "new", config, samples, schema).store
        Run(session, samples, 0, store, config.run).extract(store.ranges, Progress(len(samples)))
        store.refresh()
        return store

    def timed() -> None:
        shutil.rmtree(str(whole().location))

    store = whole()
    contestants: dict[str, Callable[[], object]] = {"bare forward": bare, "capture alone": captured, "sonde": timed}
    if tokens == "last":
        plain = PlainLoop(session, samples, folder)
        expected, layers = plain(), store.arrays[0].layers
        for row, layer in enumerate(layers[:-1]):
            got = as_float32(store.layer("resid_post", "last", layer).numpy())
            scale = np.abs(expected[row + 1]).max()
            assert np.abs(got - expected[row + 1]).max() <= 0.05 * scale, f"layer {layer} differs from the plain loop"
        contestants["plain loop"] = plain
    else:
        content = np.random.default_rng(0).bytes(2**24)

        def raw_write() -> None:
            with (folder / "raw").open("wb", buffering=0) as file:
                for _ in range(0, store.info()["bytes"], len(content)):
                    file.write(content)
                os.fsync(file.fileno())

        contestants["raw write"] = raw_write
    nbytes, n_tokens = store.info()["bytes"], sum(batch.n_tokens for batch in batches)
    shutil.rmtree(str(store.location))
    return contestants, nbytes, n_tokens


class PlainLoop:
    """The field's loop, on the same module."""

    def __init__(self, session: Session, samples: Dataset, folder: Path) -> None:
        self._session = session
        self._samples = samples
        self._folder = folder

    def _batches(self) -> Iterator[Batch]:
        encoder, some = self._session.encoder, []
        for row, sample in enumerate(self._samples.samples):
            encoded = encoder(row, sample)
            longest = max(encoded.length, *(other.length for other in some)) if some else encoded.length
            if some and longest * (len(some) + 1) > _TOKEN_BUDGET:
                yield collate(some, encoder.pad_token_id)
                some = []
            some.append(encoded)
        yield collate(some, encoder.pad_token_id)

    def __call__(self) -> np.ndarray[Any, Any]:
        """Return float32 ``[layer + 1, sample, hidden]``."""
        import torch

        kept = []
        for number, batch in enumerate(self._batches()):
            with torch.inference_mode():
                states = self._session.model.module(
                    **batch.inputs, use_cache=False, output_hidden_states=True
                ).hidden_states
            last = batch.valid.sum(dim=1) - 1
            selected = torch.stack([state[torch.arange(len(last)), last] for state in states])
            with (self._folder / f"{number}.pt").open("wb") as file:
                torch.save(selected, file)
                file.flush()
                os.fsync(file.fileno())
            kept.append(selected.float())
        return np.asarray(torch.cat(kept, dim=1).numpy())


def prompts(n: int) -> Sequence[Sample]:
    """Random words, 8 to 128 to a prompt."""
    draw = random.Random(0)
    return [Sample(f"s{i}", prompt=" ".join(draw.choices(_WORDS, k=draw.randint(8, 128)))) for i in range(n)]


def write_model(folder: Path, *, fast: bool) -> Path:
    """Save the configuration of GPT-2-small, or of a third of it, and a tokenizer of one token per word."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<pad>", *_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    layers, width = (4, 256) if fast else (12, 768)
    hf.GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64, vocab_size=50257).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    launch(
        __doc__,
        lambda folder, size: main(folder, fast=size == "fast"),
        {"fast": "a smaller model and fewer prompts: under a minute"},
    )
