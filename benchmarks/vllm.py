"""What it costs vLLM to have the states of its layers kept, and what it brings beside transformers.

Question: the last token and the mean of every layer's residual stream over prompts of 8 to 256 random words, to a
committed store, by vLLM with our connector; in tokens per second beside

* vLLM alone: the same prompts, one token spoken, nothing kept. This is the floor: what extraction takes longer is the
  connector, the steps that vLLM would else overlap, tokenising, and the store;
* vLLM's own example of a connector, which writes all states of each prompt to a file (it needs CUDA);
* sonde on transformers.

Fairness: all run in turns on the same prompts, in processes of their own that are idle but for their turn, of the same
model (random weights), dtype, and tokens and prompts in a step; medians are compared, and a first round warms up. vLLM
alone has its engine in another process and its steps overlapping, as it comes, and on a CPU all cores; it is given
token ids where sonde tokenises, and all of them at once. The example does not wait for the disk, sonde does. What sonde
keeps of the last token by either backend is compared: ``differs`` is the largest relative distance of a layer, and
beyond rounding it is an error. On a GPU each of the engines takes a fifth of the memory.

Of vLLM alone 0.9 is owed where CUDA is there; elsewhere the ratio is told and nothing is owed. Engines start, which
takes minutes on few cores, whatever the size. Runs in an environment that has vLLM (docs/extraction.md):

    python -m benchmarks.vllm [--fast | --tiny] [--folder DIR]
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .extract_shapes import TextShape, prompts, write_qwen2
from .peer_process import PeerProcess
from .result import Owed, conclude, interleave, launch
from .vllm_peers import KINDS, PLAIN, SONDE, TRANSFORMERS, why_absent

_MEMORY = 0.2
_ROUNDING = 0.03
_OWED = 0.9


@dataclass(frozen=True, slots=True)
class Size:
    """The Qwen2, the prompts, the tokens of a step, and the counted rounds."""

    text: TextShape
    prompts: int
    token_budget: int
    rounds: int


# Of the width and depth of Qwen2-1.5B.
GPU = Size(TextShape(28, 1536), 4096, 16384, 3)
FULL = Size(TextShape(12, 768), 128, 4096, 3)
FAST = Size(TextShape(4, 256), 64, 4096, 3)
TINY = Size(TextShape(2, 128), 12, 256, 1)


def main(folder: Path, size: Size) -> None:
    """Ask the question and print the answer."""
    import torch
    import transformers

    if absent := why_absent(SONDE):
        raise SystemExit(f"{absent}: run this in an environment that has vLLM")
    model = write_qwen2(folder / "model", size.text)
    texts = [str(sample.prompt) for sample in prompts(size.prompts, 8, 256)]
    ids = transformers.AutoTokenizer.from_pretrained(model)(texts)["input_ids"]
    n_tokens = sum(map(len, ids))
    with ExitStack() as stack:
        peers: dict[str, PeerProcess] = {}
        for number, name in enumerate(KINDS):
            job: dict[str, Any] = {
                "model": str(model),
                "prompts": texts,
                "ids": ids,
                "token_budget": size.token_budget,
                "memory": _MEMORY,
                "folder": str(folder / f"peer{number}"),
            }
            peers[name] = stack.enter_context(PeerProcess("benchmarks.vllm_peers", name, job))
            # One after the other: engines that start together each find the other's memory taken.
            peers[name].wait()
        there = {name: peer for name, peer in peers.items() if not peer.absent}
        seconds = interleave(
            {name: peer.run for name, peer in there.items()},
            size.rounds,
            before=lambda name: there[name].prepare(),
        )
        differs = _distance(there[SONDE].values(), there[TRANSFORMERS].values())
    if differs > _ROUNDING:
        raise SystemExit(f"the backends differ by {differs:.2g} in a layer, which is more than rounding")
    rows: list[dict[str, Any]] = []
    for name in KINDS:
        if name not in seconds:
            rows.append({"who": name, "note": peers[name].absent})
            continue
        row = {
            "who": name,
            "seconds": seconds[name],
            "tokens/s": n_tokens / seconds[name],
            "of vLLM alone": seconds[PLAIN] / seconds[name],
        }
        rows.append(row | ({"differs": differs} if name == SONDE else {}))
    ratio = Owed("tokens/s of vLLM alone, pooled tokens of all layers", seconds[PLAIN] / seconds[SONDE], _OWED)
    told = {name: peer.versions for name, peer in there.items()}
    owed = [ratio] if torch.cuda.is_available() else []
    hardware = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    conclude("vllm", rows, owed, elsewhere=told, hardware=hardware)


def _distance(mine: Any, its: Any) -> float:
    """Largest distance of a layer ``[sample, hidden]``, of the other's norm."""
    norms = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(mine, its, strict=True)]
    return float(max(norms))


def _size(name: str) -> Size:
    import torch

    full = GPU if torch.cuda.is_available() else FULL
    return {"full": full, "fast": FAST, "tiny": TINY}[name]


if __name__ == "__main__":
    launch(
        __doc__,
        lambda folder, size: main(folder, _size(size)),
        {"fast": "a smaller model and fewer prompts", "tiny": "does it run at all; its numbers mean nothing"},
    )
