"""A tiny Qwen-VL of random weights, in the files that were published: shards with an index, and ranks of tiktoken."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .tiny_parts import HIDDEN, IMAGE_SIZE, LAYERS, PATCH, WORDS

_WIDTH, _HEADS, _VISION_LAYERS, _QUERIES, _MLP = 24, 3, 2, 9, 48
_RATIO = 4.9231
# Tokens that the published tokenizers put behind the ranks, and those of them before <img>.
_N_SPECIAL, _BEFORE_IMAGES = 217, 214
_SPARE = 5


def write_qwen_vl(folder: Path) -> Path:
    """Save the base model; see `write_chat` for the other."""
    import torch

    folder.mkdir(parents=True)
    n_ranks = _write_ranks(folder / "qwen.tiktoken")
    (folder / "config.json").write_text(json.dumps(_configuration(n_ranks)))
    draw, state = torch.Generator().manual_seed(0), {}
    for name, shape in _shapes(n_ranks + _N_SPECIAL + _SPARE):
        # Norms' gains are near 1, matrices keep about the length of what they are given.
        gain = len(shape) == 1 and name.endswith("weight")
        spread = 0.1 if len(shape) == 1 else 1.0 if "wte" in name else shape[-1] ** -0.5
        state[name] = torch.randn(shape, generator=draw) * spread + gain
    write_shards(folder, state, 3)
    return folder


def write_chat(folder: Path) -> Path:
    """Make Qwen-VL-Chat of a folder."""
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml"}))
    return folder


def write_shards(folder: Path, state: dict[str, Any], n: int) -> list[Path]:
    """Save tensors in so many files, their names in turn, and the index."""
    import torch

    paths = [folder / f"pytorch_model-{i + 1:05}-of-{n:05}.bin" for i in range(n)]
    places = {name: paths[i % n].name for i, name in enumerate(state)}
    for path in paths:
        torch.save({name: x for name, x in state.items() if places[name] == path.name}, path)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return paths


def _write_ranks(path: Path) -> int:
    """Train byte pairs, as the published ones are written; returns how many."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    # The letters of byte-level tokenizers that stand for other bytes than their own come in the order of these.
    unprintable = [byte for byte in range(256) if chr(byte) not in alphabet]
    bytes_of = {letter: ord(letter) for letter in alphabet if ord(letter) < 256}
    bytes_of |= {chr(256 + i): byte for i, byte in enumerate(unprintable)}
    ranks = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    tokens = [(base64.b64encode(bytes(bytes_of[x] for x in token)).decode(), rank) for token, rank in ranks]
    path.write_text("".join(f"{token} {rank}\n" for token, rank in tokens))
    return len(ranks)


def _configuration(n_ranks: int) -> dict[str, Any]:
    return {
        "architectures": ["QWenLMHeadModel"],
        "model_type": "qwen",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * _MLP,
        "kv_channels": HIDDEN // 4,
        "layer_norm_epsilon": 1e-06,
        "max_position_embeddings": 1024,
        "no_bias": True,
        "num_attention_heads": 4,
        "num_hidden_layers": LAYERS,
        "rotary_emb_base": 10000,
        "rotary_pct": 1.0,
        "seq_length": 256,
        "tie_word_embeddings": False,
        "use_dynamic_ntk": True,
        "use_logn_attn": True,
        "visual": {
            "heads": _HEADS,
            "image_size": IMAGE_SIZE,
            "image_start_id": n_ranks + _BEFORE_IMAGES,
            "layers": _VISION_LAYERS,
            "mlp_ratio": _RATIO,
            "n_queries": _QUERIES,
            "output_dim": HIDDEN,
            "patch_size": PATCH,
            "resampler_heads": 2,
            "width": _WIDTH,
        },
        "vocab_size": n_ranks + _N_SPECIAL + _SPARE,
    }


def _shapes(n_rows: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Published names, and the shapes that the sizes give."""

    def linear(name: str, width: int, given: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (width, given)), (f"{name}.bias", (width,)))

    def normed(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from ((f"{name}.weight", (width,)), (f"{name}.bias", (width,)))

    yield "transformer.wte.weight", (n_rows, HIDDEN)
    for i in range(LAYERS):
        block = f"transformer.h.{i}."
        yield from linear(f"{block}attn.c_attn", 3 * HIDDEN, HIDDEN)
        yield f"{block}attn.c_proj.weight", (HIDDEN, HIDDEN)
        for name, shape in (("w1", (_MLP, HIDDEN)), ("w2", (_MLP, HIDDEN)), ("c_proj", (HIDDEN, _MLP))):
            yield f"{block}mlp.{name}.weight", shape
        yield from ((f"{block}{norm}.weight", (HIDDEN,)) for norm in ("ln_1", "ln_2"))
    yield "transformer.ln_f.weight", (HIDDEN,)
    tower = "transformer.visual."
    yield f"{tower}positional_embedding", (256, _WIDTH)
    yield f"{tower}conv1.weight", (_WIDTH, 3, PATCH, PATCH)
    yield from normed(f"{tower}ln_pre", _WIDTH)
    mlp = int(_WIDTH * _RATIO)
    for i in range(_VISION_LAYERS):
        block = f"{tower}transformer.resblocks.{i}."
        yield from (entry for norm in ("ln_1", "ln_2") for entry in normed(block + norm, _WIDTH))
        yield from linear(f"{block}attn.in_proj", 3 * _WIDTH, _WIDTH)
        yield from linear(f"{block}attn.out_proj", _WIDTH, _WIDTH)
        yield from linear(f"{block}mlp.c_fc", mlp, _WIDTH)
        yield from linear(f"{block}mlp.c_proj", _WIDTH, mlp)
    pool = f"{tower}attn_pool."
    yield from ((f"{pool}{name}", (_QUERIES, HIDDEN)) for name in ("query", "pos_embed"))
    yield f"{pool}kv_proj.weight", (HIDDEN, _WIDTH)
    yield from (entry for norm in ("ln_q", "ln_kv") for entry in normed(pool + norm, HIDDEN))
    yield f"{pool}attn.in_proj_weight", (3 * HIDDEN, HIDDEN)
    yield f"{pool}attn.in_proj_bias", (3 * HIDDEN,)
    yield from linear(f"{pool}attn.out_proj", HIDDEN, HIDDEN)
    yield from normed(f"{tower}ln_post", HIDDEN)
    yield f"{tower}proj", (HIDDEN, HIDDEN)
    yield "lm_head.weight", (n_rows, HIDDEN)
