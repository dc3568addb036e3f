"""What capture and storage cost, against the bare forward pass of the same batches.

The floor is the model alone: the same prepared batches through the same base model without hooks, nothing kept. The
peer is the loop that scripts of the field have: ``output_hidden_states=True`` on every batch, the wanted rows kept and
saved by ``torch.save``. A GPT-2 of random weights, prompts of 16 to 128 tokens, all layers, tokens last and mean.
Ours is a whole extraction, tokenisation to fsynced commits.

    python -m benchmarks.extract [--fast]
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

import sonde
from sonde.engine.batches import collate
from sonde.engine.config import ModelSection
from sonde.engine.inputs import Encoder
from sonde.engine.model import load_model
from sonde.engine.pipeline import Work, work_of
from sonde.store import Range

from .result import Owed, conclude, interleave

_BUDGET = 4096


def _write_model(folder: Path, *, fast: bool) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0} | {f"w{i}": i + 1 for i in range(999)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    shape = {"n_layer": 6, "n_embd": 384, "n_head": 6} if fast else {"n_layer": 12, "n_embd": 768, "n_head": 12}
    transformers.GPT2Config(vocab_size=1000, **shape).save_pretrained(folder)
    return folder


def main(folder: Path, *, fast: bool) -> None:
    """Measure a whole extraction against its floor and the field's loop."""
    model_folder = str(_write_model(folder / "model", fast=fast))
    draw = random.Random(0)
    samples = [
        sonde.Sample(id=str(i), prompt=" ".join(f"w{draw.randrange(999)}" for _ in range(draw.randint(16, 128))))
        for i in range(256 if fast else 1024)
    ]
    section: dict[str, Any] = {"name": model_folder, "weights": "random", "dtype": "float32"}
    model = load_model(ModelSection(**section))
    encoder = Encoder(model, ("last", "mean"))
    whole = Range(0, 0, len(samples))
    work = list(work_of([whole], sonde.Dataset(tuple(samples)), encoder, _BUDGET, fail=True))
    batches = [collate(item.samples, encoder.pad_token_id) for item in work if isinstance(item, Work)]
    n_tokens = sum(batch.n_tokens for batch in batches)

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.module(**batch.inputs, use_cache=False)

    def field() -> None:
        with torch.inference_mode():
            for i, batch in enumerate(batches):
                states = model.module(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states
                last = batch.valid.sum(1) - 1
                kept = [
                    (h[torch.arange(len(h)), last], (h * batch.valid[..., None]).sum(1) / (last + 1)[:, None])
                    for h in states
                ]
                torch.save(kept, folder / f"{i}.pt")

    rates: dict[str, float] = {}

    def ours() -> None:
        out = folder / "run.zarr"
        shutil.rmtree(out, ignore_errors=True)
        store = sonde.extract(
            {
                "model": section,
                "capture": {"tokens": ["last", "mean"]},
                "run": {"out": out, "token_budget": _BUDGET},
            },
            samples=samples,
            on_progress=lambda progress: rates.update(seconds=progress.seconds),
        )
        assert store.complete
        seconds.append(rates["seconds"])

    seconds: list[float] = []
    times = interleave({"bare forward": bare, "output_hidden_states": field, "sonde": ours}, 3 if fast else 5)
    # Loading the model is no part of the pass; the other two have it loaded.
    times["sonde"] = sorted(seconds[1:])[len(seconds[1:]) // 2]
    results = [
        {"who": who, "seconds": time, "tokens/s": n_tokens / time, "of bare": times["bare forward"] / time}
        for who, time in times.items()
    ]
    owed = [
        Owed("pooled tokens, all layers, of the bare forward pass", times["bare forward"] / times["sonde"], 0.95),
        Owed("against output_hidden_states and torch.save", times["output_hidden_states"] / times["sonde"], 1.0),
    ]
    conclude("extract", results, owed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a smaller model: under a minute")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        main(Path(place), fast=arguments.fast)
