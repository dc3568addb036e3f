"""Loading: checkpoints that are not whole, random weights, devices."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sonde.engine import extract
from sonde.engine.config import ModelSection
from sonde.engine.model import load_model
from sonde.errors import ModelError

from .runs import configuration, contents, text_samples


@pytest.fixture
def llama(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the tiny Llama, to be damaged."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "llama"))


def load(folder: Path, **settings: Any) -> Any:
    return load_model(ModelSection(name=str(folder), dtype="float32", **settings))


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_that_is_not_there_or_holds_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model folder .*none"):
        load(tmp_path / "none")
    with pytest.raises(ModelError, match=r"there is no model folder '\./none'"):
        load_model(ModelSection(name="./none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty.* holds no model: it has no config\.json"):
        load(tmp_path / "empty")


def test_a_name_that_the_hub_does_not_give_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"cannot load the model 'no-such-model': .*give a hub id that can be reached"):
        load_model(ModelSection(name="no-such-model"))


def test_a_weight_that_the_checkpoint_lacks_is_named(llama: Path) -> None:
    change_weights(llama, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ModelError, match=r"lacks '.*layers\.1\.mlp\.up_proj\.weight'.*would be random"):
        load(llama)
    load(llama, weights="random")


def test_a_weight_of_another_shape_is_named(llama: Path) -> None:
    def cut(weights: dict[str, Any]) -> None:
        weights["model.layers.2.self_attn.o_proj.weight"] = weights["model.layers.2.self_attn.o_proj.weight"][
            :5
        ].clone()

    change_weights(llama, cut)
    with pytest.raises(ModelError, match=r"another shape for '.*layers\.2\.self_attn\.o_proj\.weight'"):
        load(llama)


def test_a_head_that_the_checkpoint_lacks_is_not_missed(llama: Path, model_folder: Callable[[str], Path]) -> None:
    change_weights(llama, lambda weights: weights.pop("lm_head.weight"))
    assert load(llama).provenance["fingerprint"] == load(model_folder("llama")).provenance["fingerprint"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("model.safetensors", b"no tensors"), ("config.json", b"{"), ("config.json", b'{"model_type": "no-such-type"}')],
)
def test_a_damaged_file_is_a_model_error(name: str, content: bytes, llama: Path) -> None:
    (llama / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot load the model .*llama"):
        load(llama)


def test_a_checkpoint_without_weights_or_tokenizer_is_a_model_error(llama: Path, tmp_path: Path) -> None:
    bare = shutil.copytree(llama, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cannot load the model .*bare"):
        load(bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).unlink()
    with pytest.raises(ModelError, match=r"cannot load the model .*llama"):
        load(llama)


def test_a_device_that_does_not_exist_is_a_model_error(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"the device 'gpu9' cannot be used: .*leave model\.device out, or say cpu"):
        load(llama, device="gpu9")
    assert load(llama, device="cpu").device.type == "cpu"


def test_random_weights_follow_the_seed_and_leave_the_generator_alone(llama: Path) -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    one = load(llama, weights="random", seed=3)
    assert torch.rand(3).tolist() == expected
    again, other = load(llama, weights="random", seed=3), load(llama, weights="random", seed=4)
    prints = [model.provenance["fingerprint"] for model in (one, again, other, load(llama))]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert one.provenance["weights"] == "random"
    for key, value in one.module.state_dict().items():
        assert torch.equal(value, again.module.state_dict()[key])


def test_random_weights_give_the_same_store_twice_and_are_recorded(llama: Path, tmp_path: Path) -> None:
    (llama / "model.safetensors").unlink()
    found = []
    for seed in (3, 3, 4):
        config = configuration(llama, tmp_path / "run.zarr", model={"weights": "random", "seed": seed})
        store = extract(config, samples=text_samples(5))
        assert store.schema.model["weights"] == "random"
        assert store.schema.config["model"]["seed"] == seed
        found.append(contents(tmp_path / "run.zarr"))
        shutil.rmtree(tmp_path / "run.zarr")
    assert found[0] == found[1] != found[2]


def test_every_parameter_is_in_the_fingerprint(llama: Path) -> None:
    whole = load(llama).provenance["fingerprint"]

    def nudge(weights: dict[str, Any]) -> None:
        weights["model.norm.weight"][-1] += 1e-3

    change_weights(llama, nudge)
    assert load(llama).provenance["fingerprint"] != whole


def test_loading_leaves_transformers_as_it_was(llama: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = load(llama)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert not model.module.training
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert json.loads((llama / "config.json").read_text())["num_hidden_layers"] == model.n_layers
