"""What extraction costs beside the model itself, and how far others are from it.

Questions, all of the residual stream behind every block, in batches of 4,096 tokens:

* the last token of GPT-2-small's layers over prompts of 8 to 128 random words: beside the bare forward passes, and
  beside a plain loop, nnsight and TransformerLens;
* the same over contexts of equal length, beside SAELens, whose runner takes nothing else, and one hook in a pass;
* the last token of a LLaVA's layers over pictures with one prompt each, beside the bare forward passes;
* all tokens of all layers of GPT-2-small;
* K prompts about every picture, which share the picture's tokens or run one by one;
* peak memory for N and 4 N samples;
* samples per second of one and of two worker processes.

The floor is the bare forward passes of the very batches that the extraction plans, by the same loaded model, nothing
captured, nothing kept, inputs ready; with all tokens it is the slower of that and of writing the same bytes to one
file, fsync included. Between floor and whole stand the passes with capture alone, without tokenising and without a
store. A picture of P tokens with K prompts of S tokens costs K (P + S) tokens one by one and P + K S where it is
shared: that token ratio is what sharing can save of the language model.

Fairness: everything of a question runs in turns on the same prompts, weights (random: nothing of their values matters
here), dtype and threads, to one folder, and medians are compared. Samples and tokens per second are to data that is
committed and on the disk; tokens are counted as given, without padding. Peers (`benchmarks.extract_peers`) run in
processes of their own, idle but for their turn; they are given token ids where sonde tokenises, leave out the head of
the model where they can, and keep the last token as sonde does. They run batches in the order of the data: planning
them by length is sonde's. What they wrote is read back and compared with the store, layer by layer; ``differs`` is the
largest relative distance of a layer, above a quarter for another layer or token, and beyond rounding it is an error.
SAELens keeps no bfloat16, so its question is one of float32; its passes are timed for every layer, its model is loaded
once and not for each of them. Memory is what all tokens add to that of a process, on a small model.

Peers that are not installed are named. They are the dependency groups ``peers`` and, since SAELens 6 needs an older
TransformerLens, ``peers-sae``, for another interpreter:

    uv venv sae && uv pip install --python sae/bin/python --group peers-sae
    uv run --group peers python -m benchmarks.extract [--fast | --tiny] [--folder DIR] \
        [--peer-python SAELens=sae/bin/python]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from sonde.store import Store, as_float32

from .extract_engine import TOKEN_BUDGET, Extraction, RawWrite, rate
from .extract_peers import PEERS
from .extract_shapes import FAST, FULL, TINY, Size, pictures, prompts, questions, write_gpt2, write_llava
from .peer_process import PeerProcess
from .result import Owed, conclude, interleave, launch

Row: TypeAlias = dict[str, Any]
Answer: TypeAlias = tuple[list[Row], list[Owed]]

_BARE, _CAPTURED, _SONDE = "bare forward", "capture alone", "sonde"
_OF_EQUAL_LENGTH = "SAELens"
# Largest relative distance of a layer's values from ours that is rounding, over batches of another shape.
_ROUNDING = {"float32": 1e-4, "bfloat16": 0.03}
_CLEAR_REFS = Path("/proc/self/clear_refs")


def main(folder: Path, size: Size, pythons: Mapping[str, str]) -> None:
    """Ask all questions and print the answers."""
    import torch

    gpt2 = write_gpt2(folder / "gpt2", size.text)
    small = write_gpt2(folder / "small", size.small)
    llava = write_llava(folder / "llava", size.image)
    ragged = Extraction.of_model(gpt2, prompts(size.prompts), folder)
    equal = Extraction.of_model(gpt2, prompts(size.contexts, size.length, size.length), folder, dtype="float32")
    with ExitStack() as stack:
        peers: dict[str, PeerProcess] = {}
        for name in PEERS:
            run, dtype = (equal, "float32") if name == _OF_EQUAL_LENGTH else (ragged, "bfloat16")
            job = {
                "model": str(gpt2),
                "ids": run.ids,
                "token_budget": TOKEN_BUDGET,
                "dtype": dtype,
                "threads": torch.get_num_threads(),
                "folder": str(folder / name),
            }
            peers[name] = stack.enter_context(PeerProcess("benchmarks.extract_peers", name, job, pythons.get(name)))
        # Nothing is timed here, and the peers load meanwhile.
        answers = [peak_memory(folder, small, size)]
        for peer in peers.values():
            peer.wait()
        alone = {name: peer for name, peer in peers.items() if name == _OF_EQUAL_LENGTH}
        beside = {name: peer for name, peer in peers.items() if name != _OF_EQUAL_LENGTH}
        answers.append(last_token("GPT-2, last token", ragged, size.rounds, beside))
        what = "GPT-2, contexts of one length"
        answers.append(last_token(what, equal, size.few_rounds, alone, dtype="float32", of_bare=None))
    images = pictures(folder / "pictures", max(size.pictures, size.shared))
    with_image = Extraction.of_model(llava, questions(images[: size.pictures], 1), folder)
    answers += [
        last_token("LLaVA, one prompt per picture", with_image, size.rounds, {}),
        all_tokens(folder, Extraction.of_model(gpt2, prompts(size.all_tokens), folder, tokens="all"), size.rounds),
        *(share_prefix(folder, llava, images[: size.shared], k, size.few_rounds) for k in size.per_picture),
        with_workers(folder, gpt2, size),
    ]
    results = [row for rows, _ in answers for row in rows]
    owed = [promise for _, promises in answers for promise in promises]
    conclude("extract", results, owed, elsewhere={name: peer.versions for name, peer in peers.items()})


def last_token(
    what: str,
    extraction: Extraction,
    rounds: int,
    peers: Mapping[str, PeerProcess],
    *,
    dtype: str = "bfloat16",
    of_bare: float | None = 0.95,
) -> Answer:
    """Pooled tokens, beside the bare forward passes and beside peers, whose values are compared first."""
    there = {name: peer for name, peer in peers.items() if not peer.absent}
    store = extraction.whole()
    differs = {name: distance(store, peer, dtype) for name, peer in there.items()}
    nbytes = store.info()["bytes"]
    shutil.rmtree(str(store.location))
    stores: list[Store] = []

    def before(name: str) -> None:
        clear(stores)
        if name in there:
            there[name].prepare()

    contestants: dict[str, Callable[[], object]] = {
        _BARE: extraction.bare,
        _CAPTURED: extraction.captured,
        _SONDE: lambda: stores.append(extraction.whole()),
        **{name: peer.run for name, peer in there.items()},
    }
    seconds = interleave(contestants, rounds, before=before)
    clear(stores)
    rows = table(what, extraction, seconds, nbytes)
    for row in rows:
        if row["who"] in differs:
            row["differs"] = differs[row["who"]]
    rows += [{"what": what, "who": name, "note": peer.absent} for name, peer in peers.items() if peer.absent]
    owed = [Owed(f"{what}, ahead of {name}", seconds[name] / seconds[_SONDE], 1.0) for name in there]
    if of_bare is not None:
        owed.append(Owed(f"{what}, of the bare forward", seconds[_BARE] / seconds[_SONDE], of_bare))
    return rows, owed


def distance(store: Store, peer: PeerProcess, dtype: str) -> float:
    """Largest relative distance ``‖x − y‖ / ‖x‖`` of a layer of ours from a peer's.

    Raises
    ------
    AssertionError
        If it is more than rounding.
    """
    peer.prepare()
    peer.run()
    values = peer.values()
    layers = store.arrays[0].layers[: len(values)]
    assert len(values) >= len(store.arrays[0].layers) - 1, f"{peer.name} kept {len(values)} layers"
    ours = [as_float32(store.layer("resid_post", "last", layer).numpy()) for layer in layers]
    found = max(float(np.linalg.norm(x - y) / np.linalg.norm(x)) for x, y in zip(ours, values, strict=True))
    assert found <= _ROUNDING[dtype], f"a layer of {peer.name} is {found:.2g} of its length away from ours"
    return found


def all_tokens(folder: Path, extraction: Extraction, rounds: int) -> Answer:
    """All tokens of all layers, beside the slower of the bare forward passes and writing the bytes."""
    what = "GPT-2, all tokens"
    stores = [extraction.whole()]
    nbytes = stores[0].info()["bytes"]
    contestants: dict[str, Callable[[], object]] = {
        _BARE: extraction.bare,
        "raw write": RawWrite(folder / "raw", nbytes),
        _CAPTURED: extraction.captured,
        _SONDE: lambda: stores.append(extraction.whole()),
    }
    seconds = interleave(contestants, rounds, before=lambda name: clear(stores))
    clear(stores)
    floor = max(seconds[_BARE], seconds["raw write"])
    rows = table(what, extraction, seconds, nbytes)
    return rows, [Owed(f"{what}, of min(bare forward, raw write)", floor / seconds[_SONDE], 0.8)]


def share_prefix(folder: Path, model: Path, images: Sequence[Path], per_image: int, rounds: int) -> Answer:
    """Several prompts about every picture, whole and as forward passes with capture alone."""
    what = f"LLaVA, K = {per_image} prompts per picture"
    asked = questions(images, per_image)
    alone, shared = (Extraction.of_model(model, asked, folder, shared_prefix=shared) for shared in (False, True))
    stores: list[Store] = []
    contestants: dict[str, Callable[[], object]] = {
        "forward, one by one": alone.captured,
        "forward, shared": shared.captured,
        "sonde, one by one": lambda: stores.append(alone.whole()),
        "sonde, shared": lambda: stores.append(shared.whole()),
    }
    seconds = interleave(contestants, rounds, before=lambda name: clear(stores))
    clear(stores)
    rows = table(what, alone, seconds)
    gains = {how: seconds[f"{how}, one by one"] / seconds[f"{how}, shared"] for how in ("forward", "sonde")}
    for row in rows:
        if row["who"].endswith("shared"):
            row |= {"gain": gains[row["who"].split(",")[0]], "token ratio": alone.token_ratio}
    return rows, [Owed(f"{what}, gain of the token ratio", gains["sonde"] / alone.token_ratio, 0.8)]


def peak_memory(folder: Path, model: Path, size: Size) -> Answer:
    """Peak memory of all tokens of N and of 4 N samples, whose bytes would be in it if they stayed."""
    if not _CLEAR_REFS.exists():
        print("peak memory is left out: this system does not tell it")
        return [], []
    place = folder / "memory"
    place.mkdir()
    command = [sys.executable, "-m", "benchmarks.extract_memory", str(model), str(place), str(size.in_memory)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    rows = [
        {"what": f"all tokens of {n:,} samples", "who": _SONDE, "peak MB": found[name], "loaded MB": found["loaded"]}
        for n, name in ((size.in_memory, "N"), (4 * size.in_memory, "4 N"))
    ]
    grown = (found["4 N"] - found["N"]) / found["added"]
    return rows, [Owed("growth of peak memory from N to 4 N samples, of their bytes", grown, 0.2, at_most=True)]


def with_workers(folder: Path, model: Path, size: Size) -> Answer:
    """Worker processes, which share the machine's cores, beside none."""
    rows: list[Row] = []
    samples = prompts(size.prompts)
    rates: dict[str, list[float]] = {}
    for _ in range(size.few_rounds):
        for workers in (None, *size.workers):
            out = folder / "workers.zarr"
            who = f"{workers} worker processes" if workers else "this process"
            rates.setdefault(who, []).append(rate(model, samples, out, workers, size.in_range))
            shutil.rmtree(out)
    for who, found in rates.items():
        rows.append(
            {"what": "GPT-2, last token, in worker processes", "who": who, "samples/s": float(np.median(found))}
        )
    return rows, []


def table(what: str, extraction: Extraction, seconds: Mapping[str, float], nbytes: int | None = None) -> list[Row]:
    """Rows of one question."""
    rows: list[Row] = []
    for who, took in seconds.items():
        row: Row = {"what": what, "who": who, "seconds": took}
        if who != "raw write":
            row |= {"samples/s": extraction.n_samples / took, "tokens/s": extraction.n_tokens / took}
        if nbytes is not None and who not in (_BARE, _CAPTURED):
            row["GB/s"] = nbytes / took / 1e9
        if _BARE in seconds:
            row["of bare"] = seconds[_BARE] / took
        rows.append(row)
    return rows


def clear(stores: list[Store]) -> None:
    """Remove stores."""
    while stores:
        shutil.rmtree(str(stores.pop().location))


def peer_python(argument: str) -> tuple[str, str]:
    """Read ``NAME=PATH``."""
    name, equals, path = argument.partition("=")
    if name not in PEERS or not equals or not Path(path).exists():
        raise argparse.ArgumentTypeError(
            f"{argument!r}: write NAME=PATH of an interpreter; names are {', '.join(PEERS)}"
        )
    return name, path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    help_ = "interpreter that a peer is installed in; may be given for each"
    parser.add_argument("--peer-python", type=peer_python, action="append", default=[], metavar="NAME=PATH", help=help_)
    sizes = {
        "fast": "smaller models and fewer prompts: a minute, of runs so short that fixed costs show",
        "tiny": "only whether it runs: its numbers mean nothing",
    }

    def start(folder: Path, size: str) -> None:
        pythons = dict(parser.parse_known_args()[0].peer_python)
        main(folder, {"full": FULL, "fast": FAST, "tiny": TINY}[size], pythons)

    launch(__doc__, start, sizes, parents=[parser])
