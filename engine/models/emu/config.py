"""Emu's configuration: that of a folder, and the published values for what it leaves out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import Blip2VisionConfig, LlamaConfig, T5Config

from sonde.engine.models.image_text import ImageTextConfig
from sonde.errors import ModelError

# As published: Emu-14B.json, its llama_config folder, T5-base, and the code that joins them.
_PUBLISHED: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "image_size": 224,
        "layers": 40,
        "width": 1408,
        "head_width": 88,
        "mlp_ratio": 4.3637,
        "patch_size": 14,
    },
    "vladapter_cfg": {"n_causal": 32},
    "llama_config": {
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    },
    "t5_config": {
        "d_model": 768,
        "d_kv": 64,
        "d_ff": 3072,
        "num_heads": 12,
        "num_layers": 12,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "relu",
    },
    "lora_config": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
}
_FILES = ("config.json", "Emu-14B.json")
_ADDED = ("[PAD]", "[IMG]", "[/IMG]", "<image>")
_OF_A_CHAT = ("[USER]", "[ASSISTANT]")


class EmuConfig(ImageTextConfig):
    """Of the whole model.

    Attributes
    ----------
    former_config
        A `T5Config`, of the decoder that makes an image's vectors of its patches.
    lora_alpha, lora_rank
        LoRA's product is multiplied with their quotient where it is added.
    lora_targets
        Names of the projections of a block that it is added to.
    special_tokens
        Token -> id of those that the model adds to LLaMA's.
    """

    model_type = "emu"

    former_config: Any = None
    lora_alpha: float = 16
    lora_rank: int = 16
    lora_targets: Any = ()
    special_tokens: Any = None

    @property
    def instructed(self) -> bool:
        """Whether it knows the tokens of a conversation."""
        return "[USER]" in self.special_tokens


def read_config(folder: Path, *, instructed: bool, n_tokens: int | None = None) -> EmuConfig:
    """Read ``config.json`` or the published ``Emu-14B.json``; what they leave out is as published.

    Parameters
    ----------
    instructed
        Whether the model is the instruction-tuned one, which has two tokens more.
    n_tokens
        Rows of the checkpoint's table of token embeddings; left out, as many as there are tokens.

    Raises
    ------
    ModelError
        If a file is no JSON object, its values make no Emu, or the table has fewer rows than tokens.
    """
    path, given = _read(folder)
    try:
        groups = {name: values | given.get(name, {}) for name, values in _PUBLISHED.items()}
        config = _make(groups, given.get("special_tokens", {}), instructed, n_tokens)
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise ModelError(f"the configuration {path} makes no Emu ({error!r}): fetch it again") from error
    rows, last = config.text_config.vocab_size, max(config.special_tokens, key=config.special_tokens.__getitem__)
    if config.special_tokens[last] >= rows:
        raise ModelError(
            f"the checkpoint has {rows} token embeddings, and {path} says that {last} is "
            f"{config.special_tokens[last]}: give the files of one model"
        )
    return config


def _make(
    groups: Mapping[str, dict[str, Any]], numbers: Mapping[str, int], instructed: bool, n_tokens: int | None
) -> EmuConfig:
    vision, llama, t5, lora = (groups[name] for name in ("vision_cfg", "llama_config", "t5_config", "lora_config"))
    added = (*_ADDED, *(_OF_A_CHAT if instructed else ()))
    special = {token: int(numbers.get(token, llama["vocab_size"] + i)) for i, token in enumerate(added)}
    text = {name: llama[name] for name in _PUBLISHED["llama_config"]}
    text["vocab_size"] = n_tokens or max(special.values()) + 1
    former = {name: t5[name] for name in _PUBLISHED["t5_config"]}
    # A decoder's number of layers is its own where a file gives both.
    former["num_layers"] = t5.get("num_decoder_layers", t5["num_layers"])
    n_heads, rest = divmod(vision["width"], vision["head_width"])
    if rest:
        raise ValueError(f"a width of {vision['width']} is not cut into heads of {vision['head_width']}")
    return EmuConfig(
        text_config=LlamaConfig(
            **text,
            num_key_value_heads=text["num_attention_heads"],
            rope_parameters={"rope_type": "default", "rope_theta": float(llama.get("rope_theta", 10000.0))},
            tie_word_embeddings=False,
            pad_token_id=None,
        ),
        vision_config=Blip2VisionConfig(
            hidden_size=vision["width"],
            intermediate_size=int(vision["width"] * vision["mlp_ratio"]),
            num_hidden_layers=vision["layers"],
            num_attention_heads=n_heads,
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            initializer_range=0.02,
        ),
        former_config=T5Config(**former, is_decoder=True, is_encoder_decoder=False, use_cache=False, dropout_rate=0.0),
        lora_alpha=lora["lora_alpha"],
        lora_rank=int(lora["r"]),
        lora_targets=lora["target_modules"],
        special_tokens=special,
        image_token_id=special["<image>"],
        image_start_token_id=special["[IMG]"],
        image_end_token_id=special["[/IMG]"],
        tokens_per_image=int(groups["vladapter_cfg"]["n_causal"]),
    )


def _read(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The file that says something of an Emu, and what it says; the folder and nothing if there is none."""
    for name in _FILES:
        path = folder / name
        if path.is_file():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ModelError(f"the configuration {path} cannot be read ({error}): fetch it again") from error
            if not isinstance(found, dict):
                raise ModelError(
                    f"the configuration {path} holds a {type(found).__name__} and no settings: fetch it again"
                )
            if _PUBLISHED.keys() & found.keys():
                return path, found
    return folder, {}
