"""Which models need a mask for what pads a sample, and which of them take notice of it."""

from __future__ import annotations

from typing import Any

import pytest

from sonde.engine.causality import is_causal, keeps_padding_out
from sonde.engine.model import Model
from sonde.engine.structure import find_blocks
from sonde.engine.widths import some_tokens

from .tiny_parts import IDS, SIZES, train_tokenizer


def model(model_type: str, dtype: str = "bfloat16", **more: Any) -> Model:
    import torch
    import transformers as hf

    tokenizer = train_tokenizer()
    config = hf.AutoConfig.for_model(model_type, **SIZES, **IDS, vocab_size=len(tokenizer), **more)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = hf.AutoModel.from_config(config, dtype=getattr(torch, dtype)).eval()
        for parameter in module.parameters():
            # What attention adds to fresh models as small as this is lost in rounding.
            parameter.data += 0.1 * torch.randn_like(parameter)
    return Model(module, tokenizer, find_blocks(module), {})


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_a_decoder_is_causal(model_type: str) -> None:
    assert is_causal(model(model_type))


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_an_encoder_is_not(model_type: str) -> None:
    assert not is_causal(model(model_type))


def test_an_encoder_is_none_for_a_dimension_that_is_much_larger_than_the_others() -> None:
    # MPNet says nothing of it, so that only the numbers tell.
    encoder = model("mpnet")
    norm = encoder.blocks.layers[-1].output.LayerNorm
    norm.weight.data[3], norm.bias.data[3] = 0, 3000
    assert not is_causal(encoder)


def test_texts_whose_difference_no_state_shows_do_not_make_a_model_causal() -> None:
    encoder = model("mpnet")
    encoder.module.get_input_embeddings().weight.data[:] = 1
    assert not is_causal(encoder)


def test_the_tokens_of_the_probe_differ_and_none_is_special() -> None:
    decoder = model("llama")
    ids = some_tokens(decoder, 4)["input_ids"][0].tolist()
    assert len(set(ids)) == 4
    assert not {*ids} & {*decoder.processor.all_special_ids}


@pytest.mark.parametrize(
    ("model_type", "kept"), [("bert", True), ("mpnet", True), ("fnet", False), ("mobilebert", False)]
)
def test_a_mask_that_an_encoder_takes_no_notice_of_is_found_out(model_type: str, kept: bool) -> None:
    sizes = {"embedding_size": 32, "intra_bottleneck_size": 32} if model_type == "mobilebert" else {}
    assert keeps_padding_out(model(model_type, "float32", **sizes)) == kept
