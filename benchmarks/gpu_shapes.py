"""Models of a given shape without a download: configuration, tokenizer and processor, samples, and their operations.

``shapes/*.json`` are configurations of transformers. Weights are random and made where the model runs; of what a token
is, nothing matters here but how many there are, so the tokenizer knows one token per word.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.engine import Sample

_SHAPES = Path(__file__).parent / "shapes"
_MARKS = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "image": "<|image_pad|>"}
_CHAT = (
    "{% for m in messages %}{% for p in m['content'] %}{% if p['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|> {% else %}{{ p['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprs" for b in "aeiou" for c in "bdfgklmnprs"]


def write_model(folder: Path, shape: str) -> Path:
    """Save the configuration of one of the shapes and a tokenizer, with a processor for images if it takes them."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    values = json.loads((_SHAPES / f"{shape}.json").read_text(encoding="utf-8"))
    words = ["<unk>", "<pad>", "<|video_pad|>", *_MARKS.values(), *_WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [*_MARKS.values(), "<|video_pad|>"]
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=special
    )
    if "vision_config" in values:
        vision = values["vision_config"]
        sizes = {key: vision[key] for key in ("patch_size", "temporal_patch_size")}
        sizes["merge_size"] = vision["spatial_merge_size"]
        processor: Any = hf.Qwen2_5_VLProcessor(
            hf.Qwen2VLImageProcessor(**sizes), fast, hf.Qwen2VLVideoProcessor(**sizes), chat_template=_CHAT
        )
        values |= {f"{name}_token_id": words.index(mark) for name, mark in _MARKS.items()}
        values["video_token_id"] = words.index("<|video_pad|>")
    else:
        processor = fast
    processor.save_pretrained(folder)
    hf.AutoConfig.for_model(values.pop("model_type"), **values).save_pretrained(folder)
    return folder


def text_samples(n: int, shortest: int, longest: int) -> list[Sample]:
    """Random words, ``shortest`` to ``longest`` to a prompt."""
    draw = random.Random(0)
    return [Sample(f"s{i}", prompt=_prompt(draw, shortest, longest)) for i in range(n)]


def image_samples(n: int, shortest: int, longest: int, folder: Path, side: int) -> list[Sample]:
    """Prompts as of `text_samples` about one square JPEG each, smooth blots of ``side`` pixels, no two alike."""
    import numpy as np
    from PIL import Image

    draw, colours = random.Random(0), np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    samples = []
    for i in range(n):
        path = folder / f"{i}.jpg"
        if not path.exists():
            blots = colours.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(blots).resize((side, side), Image.Resampling.BICUBIC).save(path)
        samples.append(Sample(f"s{i}", prompt=_prompt(draw, shortest, longest), images=(path,)))
    return samples


def _prompt(draw: random.Random, shortest: int, longest: int) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(shortest, longest)))


@dataclass(frozen=True, slots=True)
class Operations:
    """Floating-point operations that a forward pass needs, a multiplication and an addition being two.

    Attributes
    ----------
    per_token
        Twice the weights of the linear maps of the language model's blocks.
    per_pair
        Of a causal (query, key) pair over all layers: four times the width of all heads.
    per_patch
        Twice the weights of the vision tower's linear maps, that of the merger shared by the patches it merges.
    per_patch_pair
        Of a pair of patches over the blocks that attend to the whole image.
    per_window_pair
        Of a pair of patches over the blocks that attend inside a window.
    window
        Patches of a whole window.
    """

    per_token: float
    per_pair: float
    per_patch: float = 0.0
    per_patch_pair: float = 0.0
    per_window_pair: float = 0.0
    window: int = 1

    @classmethod
    def of(cls, module: Any, blocks: Sequence[Any]) -> Operations:
        """Count for a model whose language side has these blocks; a vision tower must be Qwen2.5-VL's."""
        config = module.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        per_token = 2.0 * sum(_linear_weights(block) for block in blocks)
        per_pair = 4.0 * len(blocks) * config.num_attention_heads * head
        tower = getattr(module, "visual", None)
        if tower is None:
            return cls(per_token, per_pair)
        vision = module.config.vision_config
        own = _linear_weights(tower) - _linear_weights(tower.merger)
        per_patch = 2.0 * (own + _linear_weights(tower.merger) / vision.spatial_merge_size**2)
        whole = len(vision.fullatt_block_indexes)
        window = (vision.window_size // vision.patch_size) ** 2
        pair = 4.0 * vision.hidden_size
        return cls(per_token, per_pair, per_patch, whole * pair, (vision.depth - whole) * pair, window)

    def of_sample(self, length: int, patches: int = 0) -> float:
        """Count for one sample; half of its pairs, as its tokens see those before them, all of its patches'.

        An image whose sides are no whole windows is counted as if they were.
        """
        text = self.per_token * length + self.per_pair * length * length / 2
        in_windows = self.per_window_pair * patches * min(patches, self.window)
        return text + self.per_patch * patches + self.per_patch_pair * patches * patches + in_windows


def _linear_weights(module: Any) -> int:
    from torch import nn

    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear | nn.Conv3d))
