"""Whether memory stays flat over a long extraction, and what it gets through in a second.

20,000 prompts through a GPT-2, and five prompts about each of 2,000 pictures through a LLaVA; random weights, every
layer's residual stream at the last token (and the images' mean) to a committed store. The process' resident memory is
noted after every batch and commit: the peak of the second half of a run is set against that of the first.

    python -m benchmarks.extract_long [--fast] [--folder DIR]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonde import extract
from sonde.callbacks import OnProgress
from sonde.engine import Sample

from .extract_memory import megabytes
from .extract_shapes import ImageShape, TextShape, pictures, prompts, questions, write_gpt2, write_llava
from .result import Owed, conclude, launch


@dataclass(frozen=True, slots=True)
class Size:
    """How much runs: models, prompts, and pictures with five prompts each."""

    text: TextShape
    image: ImageShape
    prompts: int
    pictures: int


FULL = Size(TextShape(6, 384), ImageShape(4, 256, 4, 192), prompts=20_000, pictures=2_000)
SIZES = {"full": FULL, "fast": replace(FULL, prompts=1_500, pictures=60)}
_PER_PICTURE = 5


def main(folder: Path, size: Size) -> None:
    """Run both and print what they took."""
    text = write_gpt2(folder / "gpt2", size.text)
    image = write_llava(folder / "llava", size.image)
    asked = questions(pictures(folder / "pictures", size.pictures), _PER_PICTURE)
    rows = [
        measure(f"{size.prompts:,} prompts", text, prompts(size.prompts), folder, ["last"]),
        measure(f"{size.pictures:,} pictures x {_PER_PICTURE}", image, asked, folder, ["last", "image_mean"]),
    ]
    owed = [Owed(f"{row['what']}: peak of the second half over the first's", row["ratio"], 1.05, True) for row in rows]
    conclude("extract_long", rows, owed)


def measure(what: str, model: Path, samples: Sequence[Sample], folder: Path, tokens: list[str]) -> dict[str, Any]:
    """Run one extraction and note its memory as it goes."""
    seen: list[tuple[int, float]] = []
    last: Mapping[str, float] = {}

    def note(done: int, total: int, measures: Mapping[str, float]) -> None:
        nonlocal last
        last = {"samples": done, **measures}
        seen.append((done, megabytes("VmRSS")))

    weights = "pretrained" if any(model.glob("*.safetensors")) else "random"
    store = extract(
        {
            "model": {"name": str(model), "weights": weights, "device": "cpu"},
            "capture": {"tokens": tokens},
            "run": {"out": str(folder / f"{model.name}.zarr")},
        },
        samples=samples,
        callbacks=[OnProgress(note)],
    )
    halves = [[rss for n, rss in seen if (n > len(samples) / 2) == late] for late in (False, True)]
    first, second = (max(half) for half in halves)
    return {
        "what": what,
        "seconds": last["seconds"],
        "samples/s": last["samples"] / last["seconds"],
        "tokens/s": last["tokens"] / last["seconds"],
        "stored MB": store.info()["bytes"] / 1e6,
        "token budget": last["token_budget"],
        "first half MB": first,
        "second half MB": second,
        "ratio": second / first,
    }


if __name__ == "__main__":
    launch(__doc__, lambda folder, size: main(folder, SIZES[size]), {"fast": "fewer prompts and pictures"})
