"""A run on vLLM is planned as any, told of samples and models that cannot be used, and leaves its process in order."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sonde.engine import Sample
from sonde.engine.config import ExtractConfig
from sonde.engine.plan import plan_extraction
from sonde.engine.session import Session
from sonde.errors import InputError, ModelError

from ..engine.runs import prompt, values
from .runs import BUDGET, image_samples, require_vllm, run, text_samples
from .tiny import POSITIONS

pytestmark = require_vllm()


@pytest.fixture
def qwen2(model_folder: Callable[[str], Path]) -> Path:
    return model_folder("qwen2")


def test_a_prompt_of_all_positions_but_one_runs_and_a_longer_one_is_too_long(qwen2: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(qwen2)
    lengths = [len(tokenizer("the" * n)["input_ids"]) for n in range(1, POSITIONS)]
    fits, longer = (lengths.index(POSITIONS - 1 + more) + 1 for more in (0, 1))
    samples = [Sample("fits", prompt="the" * fits), Sample("not", prompt="the" * longer)]
    with pytest.raises(
        InputError, match=rf"'not'.*{POSITIONS} tokens, but the model has positions for {POSITIONS - 1}"
    ):
        run("vllm", qwen2, tmp_path / "fail.zarr", samples)
    mine = run("vllm", qwen2, tmp_path / "mine.zarr", samples, run={"on_error": "skip"})
    assert mine.skipped.keys() == {1}
    its = run("transformers", qwen2, tmp_path / "its.zarr", samples[:1])
    for key, expected in values(its).items():
        assert abs(values(mine)[key][0] - expected[0]).max() <= 1e-5 * abs(expected).max(), key


def test_what_cannot_be_used_is_recorded_and_the_others_run(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = image_samples(pictures)
    bad = [
        Sample("broken", prompt="the", images=(broken,)),
        Sample("gone", prompt="the", images=(tmp_path / "gone.png",)),
        Sample("long", prompt=prompt(0, 2 * POSITIONS), images=(pictures[0],)),
    ]
    samples = [good[0], bad[0], good[1], bad[1], bad[2], *good[2:]]
    store = run("vllm", model_folder("qwen2_5_vl"), tmp_path / "run.zarr", samples, run={"on_error": "skip"})
    assert store.skipped.keys() == {1, 3, 4}
    for row, name in ((1, "broken"), (3, "gone"), (4, "long")):
        assert f"'{name}'" in store.skipped[row]
    with pytest.raises(InputError, match=r"'broken'.*run.on_error"):
        run("vllm", model_folder("qwen2_5_vl"), tmp_path / "fail.zarr", samples)


def test_a_run_is_planned_without_writing(qwen2: Path, tmp_path: Path) -> None:
    config = {
        "model": {"name": str(qwen2), "backend": "vllm"},
        "run": {"out": tmp_path / "run.zarr", "token_budget": BUDGET},
    }
    plan = plan_extraction(config, samples=text_samples())
    assert plan.samples == len(text_samples())
    assert plan.tokens_per_s > 0
    assert plan.sharing.startswith("no, because vLLM")
    assert not (tmp_path / "run.zarr").exists()


def test_two_engines_do_not_meet_in_one_process(qwen2: Path) -> None:
    config = ExtractConfig.load({"model": {"name": str(qwen2), "backend": "vllm"}, "run": {"token_budget": BUDGET}})
    first, second = Session.open(config), Session.open(config)
    first.start()
    with pytest.raises(ModelError, match="runs a vLLM engine already"):
        second.start()
    first.close()
    second.start()
    second.close()


def test_an_engine_leaves_the_process_as_it_was(qwen2: Path) -> None:
    import torch

    config = ExtractConfig.load({"model": {"name": str(qwen2), "backend": "vllm"}, "run": {"token_budget": BUDGET}})
    functions, threads, state = torch.set_num_threads, torch.get_num_threads(), torch.get_rng_state()
    session = Session.open(config)
    session.start()
    assert torch.get_rng_state().equal(state)
    session.close()
    assert torch.set_num_threads is functions
    assert torch.get_num_threads() == threads


def test_a_model_whose_states_vllm_does_not_give_is_refused(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel does not give the states.*backend = \"transformers\""):
        run("vllm", model_folder("gpt2"), tmp_path / "run.zarr", text_samples())


def test_a_checkpoint_that_lacks_weights_is_refused(qwen2: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for file in qwen2.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 'layers.1.mlp.down_proj.weight'"):
        run("vllm", folder, tmp_path / "run.zarr", text_samples())


def test_images_that_vllm_would_take_otherwise_are_refused(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonde.engine.vllm import engine

    configure = engine._configure

    def normalised_by_the_model(arguments: dict[str, object]) -> object:
        config = configure(arguments)
        config.model_config.multimodal_config.mm_device_do_normalize = True
        return config

    monkeypatch.setattr(engine, "_configure", normalised_by_the_model)
    with pytest.raises(ModelError, match="pixel_values is something else there"):
        run("vllm", model_folder("qwen2_5_vl"), tmp_path / "run.zarr", image_samples(pictures))


def test_random_weights_need_no_checkpoint(qwen2: Path, tmp_path: Path) -> None:
    samples = [replace(sample, id=f"r{i}") for i, sample in enumerate(text_samples()[:4])]
    folder = tmp_path / "model"
    folder.mkdir()
    for file in qwen2.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    store = run("vllm", folder, tmp_path / "run.zarr", samples, model={"weights": "random"})
    assert store.missing == ()
    with pytest.raises(ModelError, match=r"no file named model\.safetensors"):
        run("vllm", folder, tmp_path / "other.zarr", samples)
