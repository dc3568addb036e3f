"""What the studies of study.toml and study-modern.toml take on one GPU, from the models' published sizes.

No weights are needed: the language sides and vision towers are made of their configurations on torch's meta device and
counted. For a measured plan, with the models at hand: ``sonde study STUDY.toml --dry-run``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sonde.engine.tasks.prompts import load_prompts

N_IMAGES = 5_000
# Words of a COCO caption, and tokens that a word becomes: both about.
CAPTION_WORDS, TOKENS_PER_WORD = 11, 1.35
# COCO's categories, named with commas between them, are so many words.
VOCABULARY_WORDS = 95
# A dense bfloat16 rate of the H100 (SXM), and the share of it that extraction is taken to reach.
OPERATIONS_PER_S, SHARE = 989e12, 0.4
SITES_AND_TOKENS = 2


@dataclass(frozen=True, slots=True)
class Sizes:
    """Published sizes of a model; a tower works on ``patches`` and gives ``image_tokens``."""

    name: str
    hidden: int
    inner: int
    layers: int
    kv_share: float
    vocabulary: int
    vision: tuple[int, int, int]
    patches: int
    image_tokens: int
    gated: bool = True

    @property
    def language_parameters(self) -> int:
        """Of the blocks: attention, and a feed-forward part of three matrices, or of two."""
        attention = self.hidden**2 * (2 + 2 * self.kv_share)
        return round(self.layers * (attention + (3 if self.gated else 2) * self.hidden * self.inner))

    @property
    def vision_parameters(self) -> int:
        """Of the tower's blocks."""
        width, inner, layers = self.vision
        return layers * (4 * width**2 + 2 * width * inner)

    @property
    def parameters(self) -> int:
        """Of all that is loaded."""
        return self.language_parameters + self.vision_parameters + self.vocabulary * self.hidden


FOUNDING = (
    Sizes("Kosmos-2", 2048, 8192, 24, 1.0, 65037, (1024, 4096, 24), 256, 64, gated=False),
    Sizes("Qwen-VL", 4096, 11008, 32, 1.0, 151936, (1664, 8192, 48), 1024, 256),
    Sizes("Emu", 5120, 13824, 40, 1.0, 32006, (1408, 6144, 40), 257, 32),
    Sizes("LaVIT", 4096, 11008, 32, 1.0, 48386, (1408, 6144, 40), 257, 95),
)
MODERN = (
    Sizes("Qwen2.5-VL-7B", 3584, 18944, 28, 4 / 28, 152064, (1280, 3420, 32), 1564, 391),
    Sizes("Qwen3-VL-8B", 4096, 12288, 36, 8 / 32, 151936, (1152, 4304, 27), 1200, 300),
    Sizes("InternVL3-8B", 3584, 18944, 28, 4 / 28, 151674, (1024, 4096, 24), 5 * 1024, 5 * 256),
    Sizes("LLaVA-OneVision-7B", 3584, 18944, 28, 4 / 28, 152000, (1152, 4304, 26), 5 * 729, 3200),
    Sizes("Gemma-3-12B", 3840, 15360, 48, 8 / 16, 262208, (1152, 4304, 27), 4096, 256),
)


def suffix_tokens() -> tuple[int, int]:
    """Samples of an image, and tokens of all of them behind the image."""
    samples, words = 0, 0
    for task, copies in (("entailment", 2), ("recognition", 1)):
        for cue in (False, True):
            for prompt in load_prompts(task, cue):
                filled = len(prompt.split()) + (CAPTION_WORDS if "{caption}" in prompt else 0)
                samples += copies
                words += copies * (filled + (VOCABULARY_WORDS if "{categories}" in prompt else 0))
    return samples, round(words * TOKENS_PER_WORD)


def budget(sizes: Sizes) -> dict[str, Any]:
    """Disk, memory and time of one model."""
    samples, suffix = suffix_tokens()
    tokens = N_IMAGES * (sizes.image_tokens + suffix)
    # Attention among the positions of a sequence is little beside the matrices at these lengths.
    operations = 2 * sizes.language_parameters * tokens + 2 * sizes.vision_parameters * N_IMAGES * sizes.patches
    return {
        "parameters": f"{sizes.parameters / 1e9:.1f} B",
        "device memory": f"{(2 * sizes.parameters + 4e9) / 1e9:.0f} GB",
        "disk": f"{sizes.layers * sizes.hidden * 2 * samples * N_IMAGES * SITES_AND_TOKENS / 1e9:.0f} GB",
        "extraction": f"{operations / (SHARE * OPERATIONS_PER_S) / 60:.0f} min",
    }


def main() -> None:
    """Print both studies' tables."""
    samples, suffix = suffix_tokens()
    print(f"{samples} samples to an image, {suffix} tokens behind it")
    for models in (FOUNDING, MODERN):
        rows = [(sizes.name, *budget(sizes).values()) for sizes in models]
        head = ("", *budget(models[0]))
        for row in (head, *rows):
            print("".join(f"{cell:<20}" if i == 0 else f"{cell:<16}" for i, cell in enumerate(row)).rstrip())


if __name__ == "__main__":
    main()
