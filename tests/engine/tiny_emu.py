"""A tiny Emu of random weights, in the files that were published, with a SentencePiece tokenizer of a few lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

from .tiny_parts import HIDDEN, IMAGE_SIZE, LAYERS, PATCH, WORDS

_WIDTH, _HEADS, _FORMER, _QUERIES, _RANK = 24, 3, 16, 5, 2
_VISION_LAYERS, _FORMER_LAYERS, _MLP, _FORMER_MLP, _KEY, _FORMER_HEADS = 2, 2, 48, 20, 6, 2
_RATIO = 4.3637
_KINDS = {"instruct": ("decoder.lm.base_model.model.", 6), "pretrain": ("decoder.lm.", 4)}
"""Kind -> where its language model is, and how many special tokens it has."""


def write_emu(folder: Path, kinds: tuple[str, ...] = ("instruct",)) -> Path:
    """Save the instruction-tuned kind, LoRA apart, or others, with their configuration and tokenizer."""
    import torch

    folder.mkdir(parents=True)
    n_pieces = _write_tokenizer(folder / "tokenizer.model")
    (folder / "config.json").write_text(json.dumps(_configuration(n_pieces)))
    for seed, kind in enumerate(kinds):
        draw, state = torch.Generator().manual_seed(seed), {}
        for name, shape in _shapes(kind, n_pieces):
            # Norms' gains are near 1, matrices keep about the length of what they are given.
            gain = "norm" in name and name.endswith("weight")
            spread = 0.1 if len(shape) == 1 else 1.0 if "embed" in name else shape[-1] ** -0.5
            state[name] = torch.randn(shape, generator=draw) * spread + gain
        torch.save(state, folder / f"Emu-{kind}.pt")
    return folder


def _write_tokenizer(path: Path) -> int:
    """Train LLaMA's kind: byte pairs, a space in front, bytes for what is in no piece; returns how many pieces."""
    import sentencepiece

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 4),
        model_writer=written,
        model_type="bpe",
        vocab_size=350,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    path.write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return int(pieces.get_piece_size())


def _configuration(n_pieces: int) -> dict[str, object]:
    return {
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "layers": _VISION_LAYERS,
            "width": _WIDTH,
            "head_width": _WIDTH // _HEADS,
            "mlp_ratio": _RATIO,
            "patch_size": PATCH,
        },
        "vladapter_cfg": {"name": "cformer", "n_causal": _QUERIES},
        "llama_config": {
            "vocab_size": n_pieces,
            "hidden_size": HIDDEN,
            "intermediate_size": _MLP,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
        "t5_config": {
            "d_model": _FORMER,
            "d_kv": _KEY,
            "d_ff": _FORMER_MLP,
            "num_heads": _FORMER_HEADS,
            "num_layers": _FORMER_LAYERS,
        },
        "lora_config": {"r": _RANK, "lora_alpha": 3 * _RANK},
    }


def _shapes(kind: str, n_pieces: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published names, and the shapes that the sizes give."""
    language, n_special = _KINDS[kind]

    def normed(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.{kind}", (width,)) for kind in ("weight", "bias"))

    def linear(name: str, width: int, given: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (width, given)), (f"{name}.bias", (width,)))

    yield "visual.cls_token", (1, 1, _WIDTH)
    yield "visual.pos_embed", (1, 1 + (IMAGE_SIZE // PATCH) ** 2, _WIDTH)
    yield "visual.patch_embed.proj.weight", (_WIDTH, 3, PATCH, PATCH)
    yield "visual.patch_embed.proj.bias", (_WIDTH,)
    mlp = int(_WIDTH * _RATIO)
    for i in range(_VISION_LAYERS):
        block = f"visual.blocks.{i}."
        yield from ((f"{block}attn.{kind}_bias", (_WIDTH,)) for kind in "qv")
        yield f"{block}attn.qkv.weight", (3 * _WIDTH, _WIDTH)
        for name, out, given in (("attn.proj", _WIDTH, _WIDTH), ("mlp.fc1", mlp, _WIDTH), ("mlp.fc2", _WIDTH, mlp)):
            yield from linear(block + name, out, given)
        yield from (entry for norm in ("norm1", "norm2") for entry in normed(block + norm, _WIDTH))
    yield from normed("ln_visual", _WIDTH)
    yield "cformer.causal_tokens", (1, _QUERIES, _FORMER)
    inner = _KEY * _FORMER_HEADS
    for i in range(_FORMER_LAYERS):
        block = f"cformer.cformer.block.{i}.layer."
        for place, part, seen in ((0, "SelfAttention", _FORMER), (1, "EncDecAttention", _WIDTH)):
            for name, shape in (("q", (inner, _FORMER)), ("k", (inner, seen)), ("v", (inner, seen))):
                yield f"{block}{place}.{part}.{name}.weight", shape
            yield f"{block}{place}.{part}.o.weight", (_FORMER, inner)
        yield f"{block}2.DenseReluDense.wi.weight", (_FORMER_MLP, _FORMER)
        yield f"{block}2.DenseReluDense.wo.weight", (_FORMER, _FORMER_MLP)
        yield from ((f"{block}{place}.layer_norm.weight", (_FORMER,)) for place in range(3))
    yield "cformer.cformer.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, _FORMER_HEADS)
    yield "cformer.cformer.final_layer_norm.weight", (_FORMER,)
    yield from linear("cformer.projection", HIDDEN, _FORMER)
    yield f"{language}model.embed_tokens.weight", (n_pieces + n_special, HIDDEN)
    for i in range(LAYERS):
        block = f"{language}model.layers.{i}."
        for name in "qkvo":
            projection = f"{block}self_attn.{name}_proj."
            yield f"{projection}weight", (HIDDEN, HIDDEN)
            if kind == "instruct":
                yield f"{projection}lora_A.default.weight", (_RANK, HIDDEN)
                yield f"{projection}lora_B.default.weight", (HIDDEN, _RANK)
        for name, shape in (("gate", (_MLP, HIDDEN)), ("up", (_MLP, HIDDEN)), ("down", (HIDDEN, _MLP))):
            yield f"{block}mlp.{name}_proj.weight", shape
        yield from ((f"{block}{norm}.weight", (HIDDEN,)) for norm in ("input_layernorm", "post_attention_layernorm"))
    yield f"{language}model.norm.weight", (HIDDEN,)
    yield f"{language}lm_head.weight", (n_pieces + n_special, HIDDEN)
