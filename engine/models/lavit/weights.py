"""LaVIT's published weights: two files of the visual tokenizer, the language model, and what was trained with it."""

from __future__ import annotations

from pathlib import Path

from sonde.engine.models.checkpoint import Filling, find_files, read_tensors, third
from sonde.engine.models.eva import fill_eva
from sonde.engine.models.image_text import ImageTextModel

_EVA, _ENCODER = "eva_vitg_psz14.bin", "tokenizer_encoder.bin"
_LATER = "visual_weight.bin"
_MERGER = {"norm0": "norm0", "norm1": "norm1", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_MERGER |= {"causal.proj": "token_causal_attn.proj", "cross.proj": "token_cross_attn.proj"}
_MERGER |= {f"cross.{name}": f"token_cross_attn.{name}" for name in ("query", "key", "value")}
_SELECTOR = ("in_conv.0", "in_conv.1", "out_conv.0", "out_conv.2", "out_conv.4")
_KINDS = ("weight", "bias")


def fill_model(model: ImageTextModel, folder: Path, language: str = "language_model") -> None:
    """Fill a model with the weights of a folder, the language model's in a folder of this name.

    What `_LATER` holds takes the place of what the visual tokenizer's own file holds under the same name.

    Raises
    ------
    ModelError
        If the files are not those of this model.
    """
    visual = folder / "visual_tokenizer"
    encoder = read_tensors([visual / _ENCODER]) | read_tensors([folder / language / _LATER])
    # Names say which file they are in, as errors should.
    files = {
        _EVA: read_tensors([visual / _EVA]),
        _ENCODER: encoder,
        language: read_tensors(find_files(folder / language)),
    }
    tensors = {f"{file}:{name}": tensor for file, state in files.items() for name, tensor in state.items()}
    fill, config = Filling(model, tensors, str(folder)), model.config
    fill_eva(fill, "vision.", f"{_EVA}:", config.vision_config.num_hidden_layers)
    _fill_encoder(fill, f"{_ENCODER}:", config.merger_layers)
    for own in dict(model.language_model.named_parameters()):
        fill(f"language_model.{own}", f"{language}:model.{own}")
    # Heads, what generates images, and tables that some versions of libraries saved.
    fill.ignore(f"{_EVA}:norm.*", f"{_EVA}:head.*", f"{language}:lm_head.weight", "*.rotary_emb.inv_freq")
    fill.ignore(f"{_ENCODER}:quantize.*", f"{_ENCODER}:encode_task_layer.*")
    fill.finish()


def _fill_encoder(fill: Filling, keys: str, n_layers: int) -> None:
    for kind in _KINDS:
        fill(f"projection.{kind}", f"{keys}vit_proj.{kind}")
        for name in _SELECTOR:
            fill(f"selector.{name}.{kind}", f"{keys}token_predictor.{name}.{kind}")
        for name in ("ln_vision", "norm"):
            fill(f"merger.{name}.{kind}", f"{keys}causal_encoder.{name}.{kind}")
        for i in range(n_layers):
            block, its = f"merger.blocks.{i}.", f"{keys}causal_encoder.blocks.{i}."
            for ours, theirs in _MERGER.items():
                fill(f"{block}{ours}.{kind}", f"{its}{theirs}.{kind}")
            for part, name in enumerate(("query", "key", "value")):
                fill(f"{block}causal.{name}.{kind}", f"{its}token_causal_attn.qkv.{kind}", make=third(part))
