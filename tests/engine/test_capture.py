"""What is read from a forward pass, and where the pass is cut off."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.engine.capture import Capture
from sonde.engine.config import ModelSection
from sonde.engine.model import Model, load_model
from sonde.engine.recorder import Recorder
from sonde.engine.structure import find_blocks
from sonde.engine.widths import text_batch
from sonde.errors import InputError, ModelError

IDS = ((0, 9, 8, 7), (0, 6, 5, 4))


@pytest.fixture(scope="module")
def model(model_folder: Callable[[str], Path]) -> Model:
    return load_model(ModelSection(name=str(model_folder("llama")), dtype="float32"))


def record(model: Model, *sites: str, layers: Any = "all") -> tuple[Capture, Any]:
    import torch

    capture = Capture.plan(sites, ("last",), layers, model.n_layers)
    recorder = Recorder(model.module, model.blocks, capture)
    try:
        return capture, recorder.run(text_batch(capture, {"input_ids": torch.tensor(IDS)})).reduced
    finally:
        recorder.close()


def plain(model: Model) -> list[Any]:
    import torch

    with torch.no_grad():
        states = model.module(input_ids=torch.tensor(IDS), output_hidden_states=True).hidden_states
    return [state[:, -1] for state in states]


def test_each_site_has_its_layers_and_places() -> None:
    sites = ("embed", "resid_pre", "resid_post", "final_norm", "z")
    capture = Capture.plan(sites, ("last", "mean"), [2, 0], 4)
    assert capture.layers == {
        "embed": (0,),
        "resid_pre": (0, 2),
        "resid_post": (0, 2),
        "final_norm": (3,),
        "z": (0, 2),
    }
    stream = {("stream", point) for point in (0, 1, 2, 3)}
    assert capture.taps == stream | {("final_norm", 0), ("z", 0), ("z", 2)}
    arrays = capture.arrays(dict.fromkeys(sites, 16))
    assert [spec.name for spec in arrays][:3] == ["embed/last", "embed/mean", "resid_pre/last"]


def test_layers_can_be_chosen_by_site() -> None:
    capture = Capture.plan(("resid_post", "z", "k", "embed"), ("last",), {"z": [1], "k": "all"}, 3)
    assert capture.layers == {"resid_post": (0, 1, 2), "z": (1,), "k": (0, 1, 2), "embed": (0,)}
    with pytest.raises(InputError, match="names 'v', which is not among"):
        Capture.plan(("resid_post",), ("last",), {"v": [1]}, 3)


@pytest.mark.parametrize(
    ("sites", "tokens", "layers", "message"),
    [
        (("resid_mid",), ("last",), "all", "unknown site 'resid_mid'.*embed, resid_pre, resid_post, final_norm"),
        (("embed", "embed"), ("last",), "all", "'embed' stands twice"),
        (("embed",), ("lastt",), "all", "unknown tokens 'lastt'"),
        (("embed",), ("last",), (4,), r"capture\.layers \[4\]: the model has layers 0 to 3"),
        (("embed",), ("last",), (-1, 0), r"the model has layers 0 to 3"),
        (("embed",), ("last",), (), r"the model has layers 0 to 3"),
    ],
)
def test_what_the_model_does_not_have_is_named(sites: Any, tokens: Any, layers: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Capture.plan(sites, tokens, layers, 4)


@pytest.mark.parametrize(
    ("sites", "layers", "calls"),
    [
        (("embed",), "all", [0, 0, 0]),
        (("resid_pre",), [1], [1, 0, 0]),
        (("resid_post",), [1], [1, 1, 0]),
        (("resid_post",), [2], [1, 1, 1]),
        (("final_norm",), "all", [1, 1, 1]),
    ],
)
def test_the_pass_is_cut_off_behind_the_last_point(
    model: Model, sites: tuple[str, ...], layers: Any, calls: list[int]
) -> None:
    counts = [0, 0, 0]

    def count(index: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[index] += 1

        return hook

    handles = [block.register_forward_hook(count(i)) for i, block in enumerate(model.blocks.layers)]
    try:
        # Before ours, so that a block that has run is counted even where its output ends the pass.
        capture, states = record(model, *sites, layers=layers)
    finally:
        for handle in handles:
            handle.remove()
    assert counts == calls
    assert {site: x.shape for site, x in states.items()} == {
        site: (len(capture.layers[site]), 2, 1, 32) for site in sites
    }


def test_a_pass_that_was_cut_off_leaves_the_model_as_it_was(model: Model) -> None:
    before = plain(model)
    _, states = record(model, "embed")
    np.testing.assert_array_equal(states["embed"][0, :, 0].numpy(), before[0].numpy())
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules())
    record(model, "embed", "resid_post", "final_norm")
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.module.modules()) == hooks
    for old, new in zip(before, plain(model), strict=True):
        np.testing.assert_array_equal(old.numpy(), new.numpy())


def test_one_layer_among_several_is_the_right_one(model: Model) -> None:
    _, states = record(model, "resid_pre", "resid_post", layers=[1])
    expected = plain(model)
    np.testing.assert_allclose(states["resid_pre"][0, :, 0].numpy(), expected[1].numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(states["resid_post"][0, :, 0].numpy(), expected[2].numpy(), rtol=1e-5, atol=1e-6)


def test_a_pass_that_misses_a_point_is_a_model_error(model: Model, model_folder: Callable[[str], Path]) -> None:
    import torch

    other = load_model(ModelSection(name=str(model_folder("llama")), dtype="float32"))
    capture = Capture.plan(("resid_pre",), ("last",), [1, 2], 3)
    recorder = Recorder(other.module, model.blocks, capture)
    with pytest.raises(ModelError, match=r"LlamaModel did not come by .*'stream', 1.*'stream', 2"):
        recorder.run(text_batch(capture, {"input_ids": torch.tensor(IDS[:1])}))
    recorder.close()


def test_a_model_without_a_stack_of_blocks_is_a_model_error() -> None:
    from transformers import LlamaConfig, LlamaModel

    module = LlamaModel(LlamaConfig(vocab_size=8, hidden_size=8, num_attention_heads=2, num_hidden_layers=2))
    module.layers = module.layers[:1]
    with pytest.raises(ModelError, match=r"cannot find the blocks of LlamaModel.*no list of 2 modules"):
        find_blocks(module)
