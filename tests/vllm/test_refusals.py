"""What a run on vLLM is refused for, and how vLLM is set up; nothing here needs vLLM."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sonde.engine import extract
from sonde.engine.config import ExtractConfig, ModelSection
from sonde.engine.vllm.checkpoint import find_folder, load_skeleton
from sonde.engine.vllm.images import image_ranges
from sonde.engine.vllm.settings import (
    count_sequences,
    cpu_arguments,
    engine_arguments,
    prepare_environment,
    step_arguments,
)
from sonde.errors import InputError, ModelError

from .runs import text_samples
from .tiny import HIDDEN, LAYERS


@pytest.mark.parametrize("site", ["final_norm", "attn_out", "mlp_out", "z", "k", "v", "vision/resid_post"])
def test_sites_inside_blocks_are_the_other_backends(site: str, tmp_path: Path) -> None:
    config = {
        "model": {"name": "nowhere", "backend": "vllm"},
        "capture": {"sites": ["resid_post", site]},
        "run": {"out": tmp_path / "run.zarr"},
    }
    with pytest.raises(InputError, match=rf"vLLM does not give {site}, only embed.*backend = \"transformers\""):
        extract(config, samples=text_samples())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"tensor_parallel": 2}, "tensor_parallel is not for the backend 'transformers'"),
        ({"memory": 0.5}, "memory is not for the backend 'transformers'"),
        ({"backend": "vllm", "checkpoint": "a.bin"}, "checkpoint is not for the backend 'vllm'"),
        ({"backend": "vllm", "memory": 1.5}, "less than or equal to 1"),
    ],
)
def test_settings_of_one_backend_are_not_the_others(section: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ExtractConfig.load({"model": {"name": "x"} | section})


def test_models_of_ours_are_not_vllms() -> None:
    with pytest.raises(ModelError, match=r"vLLM does not have Emu.*backend = \"transformers\""):
        find_folder(ModelSection(name="BAAI/Emu", backend="vllm"))


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_that_is_not_installed_is_named(tmp_path: Path) -> None:
    config = {"model": {"name": "nowhere", "backend": "vllm"}, "run": {"out": tmp_path / "run.zarr"}}
    with pytest.raises(ModelError, match=r"needs vLLM.*install it in an environment of its own"):
        extract(config, samples=text_samples())


def test_a_model_is_known_without_its_weights(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = model_folder("qwen2")
    model = load_skeleton(ModelSection(name=str(folder), backend="vllm"), folder)
    assert model.n_layers == LAYERS
    assert {p.device.type for p in model.module.parameters()} == {"meta"}
    assert model.provenance["backend"] == "vllm"
    same = load_skeleton(ModelSection(name=str(folder), backend="vllm"), folder)
    assert same.provenance == model.provenance
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    whole = bytearray((other / "model.safetensors").read_bytes())
    whole[-1] ^= 1
    (other / "model.safetensors").write_bytes(whole)
    changed = load_skeleton(ModelSection(name=str(other), backend="vllm"), other)
    assert changed.provenance["fingerprint"] != model.provenance["fingerprint"]


def test_positions_of_images_are_parted_by_what_lies_between() -> None:
    image = torch.tensor([0, 1, 1, 0, 1, 0], dtype=torch.bool)
    assert [(start, mask.tolist()) for start, mask in image_ranges(image, 2)] == [(1, [True, True]), (4, [True])]


def test_images_side_by_side_or_in_rows_are_as_long_as_each_other() -> None:
    image = torch.tensor([1, 1, 1, 1], dtype=torch.bool)
    assert [(start, mask.tolist()) for start, mask in image_ranges(image, 2)] == [(0, [True] * 2), (2, [True] * 2)]
    rows = torch.tensor([1, 0, 1, 0, 0], dtype=torch.bool)
    assert [(start, mask.tolist()) for start, mask in image_ranges(rows, 1)] == [(0, [True, False, True])]
    with pytest.raises(InputError, match="which of 4 positions is of which of its 3 images"):
        image_ranges(image, 3)


def test_nothing_of_a_prompt_is_left_out_and_steps_do_not_overlap(tmp_path: Path) -> None:
    arguments = engine_arguments(ModelSection(name="x", backend="vllm"), tmp_path, (0, 4), {"desk": "d"})
    assert not arguments["enable_prefix_caching"]
    assert not arguments["async_scheduling"]
    hf_config = arguments["speculative_config"]["draft_model_config"]["hf_config"]
    assert hf_config == {"eagle_aux_hidden_state_layer_ids": [0, 4]}


@pytest.mark.parametrize(("budget", "sequences"), [(1, 8), (64, 8), (4096, 128), (10**6, 512)])
def test_a_step_has_room_for_its_prompts(budget: int, sequences: int) -> None:
    assert count_sequences(budget) == sequences
    arguments = step_arguments(budget)
    assert arguments["max_num_batched_tokens"] >= max(budget, arguments["max_num_seqs"])


def test_a_cpus_cache_holds_the_longest_prompt_or_two_steps(model_folder: Callable[[str], Path]) -> None:
    folder = model_folder("qwen2")
    config = load_skeleton(ModelSection(name=str(folder), backend="vllm"), folder).module.config
    # Keys and values of two heads of 32, and five points of the stream, in two bytes.
    of_token = 2 * (2 * LAYERS * 2 * 32 + 5 * HIDDEN)
    assert cpu_arguments(config, 64, 5, 2)["kv_cache_memory_bytes"] == max(2 * 512, 2 * (64 + 8 * 64)) * of_token


@pytest.mark.parametrize("device", ["mps", "cuda:x"])
def test_a_device_that_vllm_cannot_be_told_of_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match=f"model.device '{device}'.*say cpu, cuda or cuda:n"):
        prepare_environment(ModelSection(name="x", backend="vllm", device=device))


def test_a_model_that_several_gpus_share_sees_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    prepare_environment(ModelSection(name="x", backend="vllm", device="cuda:2", tensor_parallel=2))
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6,7"
