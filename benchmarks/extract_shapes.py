"""What the benchmark of extraction runs, and how much: models of random weights, random words, generated pictures."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonde.engine import Sample

_WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "bdfgklmnprst"]
_SPECIAL = ["<unk>", "<pad>", "<image>"]
_IMAGE_SIZE, _PATCH = 224, 14


@dataclass(frozen=True, slots=True)
class TextShape:
    """A GPT-2: layers and width."""

    layers: int
    hidden: int


@dataclass(frozen=True, slots=True)
class ImageShape:
    """A LLaVA of 256 tokens to an image: layers and width of the language model and of the vision tower."""

    layers: int
    hidden: int
    vision_layers: int
    vision_hidden: int


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured.

    Attributes
    ----------
    text, small, image
        The models; ``small`` is that of the question about memory.
    prompts, all_tokens
        Prompts of the questions about the last and about all tokens.
    contexts, length
        Contexts of equal length; whole batches, and no fewer than their tokens, which is SAELens' rule.
    pictures, shared, per_picture
        Pictures with one prompt, pictures with several, and each number of prompts.
    in_memory
        The N of the question about memory.
    workers, in_range
        Each number of worker processes, and samples of the ranges that they share.
    rounds, few_rounds
        Counted runs of each contestant, and of those that take long.
    """

    text: TextShape
    small: TextShape
    image: ImageShape
    prompts: int
    all_tokens: int
    contexts: int
    length: int
    pictures: int
    shared: int
    per_picture: tuple[int, ...]
    in_memory: int
    workers: tuple[int, ...]
    in_range: int
    rounds: int
    few_rounds: int


FULL = Size(
    text=TextShape(12, 768),
    small=TextShape(16, 64),
    image=ImageShape(8, 512, 12, 384),
    prompts=128,
    all_tokens=64,
    contexts=64,
    length=32,
    pictures=16,
    shared=4,
    per_picture=(1, 2, 5, 10),
    in_memory=512,
    workers=(1, 2),
    in_range=16,
    rounds=3,
    few_rounds=3,
)
# So short that what a store costs to make and a first batch to prepare, some hundredths of a second, is seen in it.
FAST = replace(
    FULL,
    text=TextShape(4, 256),
    small=TextShape(8, 64),
    image=ImageShape(4, 256, 2, 192),
    prompts=64,
    all_tokens=32,
    contexts=32,
    pictures=4,
    shared=1,
    in_memory=128,
    workers=(),
    rounds=3,
    few_rounds=1,
)
TINY = replace(
    FAST,
    text=TextShape(2, 64),
    small=TextShape(2, 64),
    image=ImageShape(2, 64, 2, 64),
    prompts=6,
    all_tokens=6,
    contexts=8,
    length=8,
    pictures=2,
    shared=1,
    per_picture=(1, 3),
    in_memory=2,
    workers=(),
    in_range=2,
    rounds=1,
)


def write_gpt2(folder: Path, shape: TextShape) -> Path:
    """Save a GPT-2 of random weights in float32, and a tokenizer of one token per word."""
    import torch
    import transformers as hf

    config = hf.GPT2Config(n_layer=shape.layers, n_embd=shape.hidden, n_head=shape.hidden // 64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.GPT2LMHeadModel(config)
        for name, parameter in model.named_parameters():
            # Fresh blocks add next to nothing to the stream: a layer would pass for its neighbour.
            if name.endswith(("c_proj.weight", "c_fc.weight")):
                parameter.data *= 10
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def write_qwen2(folder: Path, shape: TextShape) -> Path:
    """Save a Qwen2 of heads of 64, of random weights in bfloat16, and a tokenizer of a token or two per word."""
    import torch
    import transformers as hf

    tokenizer = _byte_tokenizer()
    config = hf.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=4 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_llava(folder: Path, shape: ImageShape) -> Path:
    """Save the configuration and the processor of a LLaVA; its weights are drawn when it is loaded."""
    import transformers as hf

    size = {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE}
    tokenizer = _tokenizer()
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(
            hidden_size=shape.vision_hidden,
            intermediate_size=4 * shape.vision_hidden,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_hidden // 64,
            image_size=_IMAGE_SIZE,
            patch_size=_PATCH,
        ),
        text_config=hf.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            intermediate_size=shape.hidden * 11 // 4,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.hidden // 64,
            num_key_value_heads=shape.hidden // 64,
            max_position_embeddings=2048,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(folder)
    hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=_PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def _tokenizer() -> Any:
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate([*_SPECIAL, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", additional_special_tokens=["<image>"]
    )


def _byte_tokenizer() -> Any:
    """Of byte pairs: what a folder of a Qwen2 holds is read as such, whatever it is."""
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=4096, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(_WORDS)], trainer)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


def prompts(n: int, shortest: int = 8, longest: int = 128) -> Sequence[Sample]:
    """Random words, ``shortest`` to ``longest`` to a prompt."""
    draw = random.Random(0)
    return [Sample(f"s{i}", prompt=_words(draw, shortest, longest)) for i in range(n)]


def pictures(folder: Path, n: int) -> Sequence[Path]:
    """Make JPEG files of coloured clouds, 480 by 360."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    folder.mkdir()
    paths = [folder / f"{i}.jpg" for i in range(n)]
    for path in paths:
        small = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        small.resize((480, 360), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths


def questions(images: Sequence[Path], per_image: int) -> Sequence[Sample]:
    """Ask of every image; 24 to 40 words to a prompt."""
    draw = random.Random(0)
    return [
        Sample(f"{image.stem}-{k}", prompt=_words(draw, 24, 40), images=(image,), group=image.stem)
        for image in images
        for k in range(per_image)
    ]


def _words(draw: random.Random, shortest: int, longest: int) -> str:
    return " ".join(draw.choices(_WORDS, k=draw.randint(shortest, longest)))
