"""Extraction on a GPU: the numbers of a CPU, and nothing on the way that keeps the GPU from its work."""

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sonde.callbacks import OnProgress
from sonde.engine import ExtractConfig, Sample, extract
from sonde.engine.batches import Batch
from sonde.engine.packs import Pack
from sonde.engine.session import Session

from ..engine.runs import configuration, contents, text_samples, values

pytestmark = pytest.mark.cuda

CAPTURE = {"sites": ["embed", "resid_post", "z", "final_norm"], "tokens": ["last", "mean", "max"]}


@pytest.fixture
def exact() -> Iterator[None]:
    """Float32 is computed in float32: by default convolutions, such as those that cut patches, are cut to TF32."""
    import torch

    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    yield
    for backend, precision in zip(backends, before, strict=True):
        backend.fp32_precision = precision


def samples_for(model_type: str, pictures: list[Path], n: int = 10) -> list[Sample]:
    samples = text_samples(n)
    if model_type == "llama":
        return samples
    return [replace(s, images=tuple(pictures[i % 7 : i % 7 + i % 3])) for i, s in enumerate(samples)]


def on(device: str, dtype: str = "float32", **sections: Any) -> dict[str, Any]:
    return {"model": {"device": device, "dtype": dtype}, "capture": CAPTURE} | sections


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl", "llava"])
@pytest.mark.usefixtures("exact")
def test_float32_gives_the_numbers_of_a_cpu(
    model_type: str, device: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder, samples = model_folder(model_type), samples_for(model_type, pictures)
    expected = values(extract(configuration(folder, tmp_path / "cpu.zarr", **on("cpu")), samples=samples))
    found = values(extract(configuration(folder, tmp_path / "run.zarr", **on(device)), samples=samples))
    assert found.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=0, atol=5e-5 * np.abs(x).max(), err_msg=str(key))


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl", "llava"])
def test_bfloat16_gives_the_numbers_of_float32_up_to_its_rounding(
    model_type: str, device: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder, samples = model_folder(model_type), samples_for(model_type, pictures)
    expected = values(extract(configuration(folder, tmp_path / "cpu.zarr", **on("cpu")), samples=samples))
    config = configuration(folder, tmp_path / "run.zarr", **on(device, "bfloat16"))
    for key, x in values(extract(config, samples=samples)).items():
        error = np.linalg.norm(x - expected[key]) / np.linalg.norm(expected[key])
        assert error <= 0.02, key


def test_the_same_configuration_twice_gives_the_same_bytes(
    device: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = samples_for("llava", pictures)
    config = configuration(model_folder("llava"), tmp_path / "run.zarr", **on(device, "bfloat16"))
    first = contents(extract(config, samples=samples).location.root)
    (tmp_path / "run.zarr").rename(tmp_path / "first.zarr")
    assert contents(extract(config, samples=samples).location.root) == first


@pytest.mark.usefixtures("exact")
def test_rows_depend_neither_on_the_token_budget_nor_on_neighbours(
    device: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    samples = text_samples(12)
    found = {}
    for name, chosen, budget in (("alone", samples, 1), ("together", samples, 10_000), ("some", samples[::2], 10_000)):
        run = configuration(model_folder("llama"), tmp_path / name, **on(device), run={"token_budget": budget})
        store = extract(run, samples=chosen)
        found[name] = {(s.id, *key): x[row] for key, x in values(store).items() for row, s in enumerate(chosen)}
    for name in ("together", "some"):
        for key, x in found[name].items():
            want = found["alone"][key]
            np.testing.assert_allclose(x, want, rtol=0, atol=5e-5 * np.abs(want).max(), err_msg=f"{name} {key}")


def test_every_token_of_a_layer_has_the_numbers_of_a_cpu(
    device: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    samples = text_samples(6)
    stores = []
    for place in ("cpu", device):
        sections = on(place, capture={"tokens": ["all"]})
        config = configuration(model_folder("llama"), tmp_path / f"{len(stores)}.zarr", **sections)
        stores.append(extract(config, samples=samples))
    for row in range(len(samples)):
        want, got = (store.tokens("resid_post", 1)[row] for store in stores)
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * np.abs(want).max())


def test_padded_batches_of_a_causal_model_have_no_mask(
    device: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    session = open_session(model_folder("llama"), tmp_path, device)
    masks = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        masks.append(kwargs.get("attention_mask"))

    handles = [
        module.register_forward_pre_hook(note, with_kwargs=True)
        for name, module in session.model.module.named_modules()
        if name.endswith("self_attn")
    ]
    batch = batch_of(session, text_samples(4))
    assert not batch.layout.valid.all()
    session.run(batch)
    assert masks == [None] * len(handles)


def test_padded_batches_of_a_causal_model_run_in_flash_attention(
    gpu: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    session = open_session(model_folder("llama"), tmp_path, gpu)
    batch = batch_of(session, text_samples(4))
    assert not batch.layout.valid.all()
    # Refuses a mask, where other kernels would quietly take its place.
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = session.run(batch)[0].reduced
    with sdpa_kernel(SDPBackend.MATH):
        plain = session.run(batch)[0].reduced
    for site, x in plain.items():
        assert (flash[site] - x).norm() <= 0.02 * x.norm(), site


def test_the_engine_does_not_wait_for_the_gpu_within_a_batch(
    gpu: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    session = open_session(model_folder("llama"), tmp_path, gpu)
    batch = batch_of(session, text_samples(4))
    session.run(batch)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            session.run(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    engine = Path(__file__).parents[2] / "engine"
    # The model may: it looks for padding and packed sequences.
    waits = [f"{w.filename}:{w.lineno}" for w in seen if "synchronizing CUDA operation" in str(w.message)]
    assert [place for place in waits if Path(place).resolve().is_relative_to(engine)] == []


@pytest.mark.parametrize("model_type", ["llama", "qwen2_5_vl", "llava"])
@pytest.mark.usefixtures("exact")
def test_a_shared_prefix_changes_nothing(
    model_type: str, device: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    images = () if model_type == "llama" else tuple(pictures[:1])
    begin = "the red circle is left of the blue square and " * 4
    samples = [replace(s, prompt=f"{begin}{s.prompt}", images=images) for s in text_samples(6)]
    found = []
    for shared in (True, False):
        run = {"token_budget": 4096, "range_size": 8, "shared_prefix": shared}
        config = configuration(model_folder(model_type), tmp_path / f"{shared}.zarr", **on(device), run=run)
        found.append(values(extract(config, samples=samples)))
    for key, want in found[1].items():
        np.testing.assert_allclose(found[0][key], want, rtol=0, atol=5e-5 * np.abs(want).max(), err_msg=str(key))


def test_batches_that_do_not_fit_are_halved_until_they_do(gpu: str, tmp_path: Path) -> None:
    import torch

    folder = wide_model(tmp_path / "model")
    samples = [Sample(f"s{i}", prompt=" ".join(["red"] * (40 + i % 9))) for i in range(512)]
    seen: list[int] = []

    def note(done: int, total: int, measures: Mapping[str, float]) -> None:
        seen.append(int(measures["token_budget"]))

    def run(name: str) -> dict[Any, Any]:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(gpu)
        config = configuration(folder, tmp_path / name, **on(gpu), run={"token_budget": 32_768, "range_size": 512})
        return values(extract(config, samples=samples, callbacks=[OnProgress(note)]))

    expected = run("free")
    assert set(seen) == {32_768}
    peak = torch.cuda.max_memory_reserved(gpu)
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(0.7 * peak / total)
    try:
        found = run("tight")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 1024 <= seen[-1] < 32_768
    for key, x in expected.items():
        np.testing.assert_allclose(found[key], x, rtol=0, atol=1e-4 * np.abs(x).max(), err_msg=str(key))


def test_what_was_taken_of_the_gpu_is_given_back(gpu: str, model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    import torch

    taken = []
    for name in ("first", "second"):
        extract(configuration(model_folder("llama"), tmp_path / name, **on(gpu)), samples=text_samples(8))
        gc.collect()
        taken.append(torch.cuda.memory_allocated(gpu))
    # What libraries keep to work in, they have from the first run on.
    assert taken[1] == taken[0]


def open_session(folder: Path, tmp_path: Path, device: str) -> Session:
    sections = {"model": {"device": device, "dtype": "bfloat16"}}
    return Session.open(ExtractConfig.load(configuration(folder, tmp_path / "unused", **sections)))


def batch_of(session: Session, samples: list[Sample]) -> Batch:
    return session.collate([Pack((session.encoder(row, sample),)) for row, sample in enumerate(samples)])


def wide_model(folder: Path) -> Path:
    """Save a Llama whose states take enough memory for a batch of thousands of tokens to need hundreds of megabytes."""
    import transformers as hf

    from ..engine.tiny_parts import IDS, train_tokenizer

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = hf.LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes, **IDS)
    hf.LlamaModel(config).save_pretrained(folder)
    return folder
