"""What the parts of the blocks, the caches, the vision tower and the connector give, against hooks on named modules."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sonde.engine import Sample, extract
from sonde.errors import InputError
from sonde.store import as_float32

from .runs import configuration, prompt, text_samples, values
from .tiny_parts import LAYERS

# By family: the blocks, and in each the module whose output the attention adds, the one whose output the feed-forward
# part adds, and the projection behind the heads.
NAMED = {
    "gpt2": ("h", "attn", "mlp", "attn.c_proj"),
    "gpt_neox": ("layers", "attention", "mlp", "attention.dense"),
    "opt": ("decoder.layers", "self_attn", "fc2", "self_attn.out_proj"),
    "llama": ("layers", "self_attn", "mlp", "self_attn.o_proj"),
    "mistral": ("layers", "self_attn", "mlp", "self_attn.o_proj"),
    "qwen2": ("layers", "self_attn", "mlp", "self_attn.o_proj"),
    "qwen3": ("layers", "self_attn", "mlp", "self_attn.o_proj"),
    "gemma2": ("layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
    "phi3": ("layers", "self_attn", "mlp", "self_attn.o_proj"),
    "olmo2": ("layers", "post_attention_layernorm", "post_feedforward_layernorm", "self_attn.o_proj"),
}
families = pytest.mark.parametrize("family", NAMED)


def reference(folder: Path, samples: list[Sample], family: str) -> list[dict[tuple[str, int], NDArray[np.float32]]]:
    """(site, layer) -> ``[token, hidden]`` of each sample, run alone."""
    import torch
    import transformers as hf

    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    path, attn, mlp, projection = NAMED[family]
    found: dict[tuple[str, int], Any] = {}

    def output(key: tuple[str, int]) -> Callable[..., None]:
        def hook(module: Any, args: Any, out: Any) -> None:
            x = out[0] if isinstance(out, tuple) else out
            found[key] = x.reshape(-1, x.shape[-1]).numpy()

        return hook

    def given(key: tuple[str, int]) -> Callable[..., None]:
        def hook(module: Any, args: Any) -> None:
            found[key] = args[0][0].numpy()

        return hook

    for layer, block in enumerate(model.get_submodule(path)):
        block.get_submodule(attn).register_forward_hook(output(("attn_out", layer)))
        block.get_submodule(mlp).register_forward_hook(output(("mlp_out", layer)))
        block.get_submodule(projection).register_forward_pre_hook(given(("z", layer)))
    out = []
    for sample in samples:
        found.clear()
        with torch.no_grad():
            cache = model(**tokenizer(sample.prompt, return_tensors="pt"), use_cache=True).past_key_values
        for layer in range(LAYERS):
            for site, x in (("k", cache.layers[layer].keys), ("v", cache.layers[layer].values)):
                found[site, layer] = np.concatenate(list(x[0].numpy()), axis=-1)
        out.append(dict(found))
    return out


@families
def test_parts_and_caches_are_those_of_named_modules(
    family: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, samples = model_folder(family), short_samples()
    sites = ["attn_out", "mlp_out", "z", "k", "v"]
    config = configuration(folder, tmp_path / "run.zarr", capture={"sites": sites, "tokens": ["last", "mean", "max"]})
    store = extract(config, samples=samples)
    expected = reference(folder, samples, family)
    reduce = {"last": lambda x: x[-1], "mean": lambda x: x.mean(axis=0), "max": lambda x: x.max(axis=0)}
    for (site, tokens, layer), got in values(store).items():
        want = np.stack([reduce[tokens](sample[site, layer]) for sample in expected])
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max(), (site, tokens, layer)


def short_samples() -> list[Sample]:
    # A sliding window of eight positions is not outgrown: a cache of a plain run forgets what lies before it.
    return [Sample(f"s{i}", prompt=prompt(i, 1 + i % 3)) for i in range(7)]


@pytest.mark.parametrize("family", [*NAMED, "llava", "qwen2_5_vl"])
def test_a_block_adds_what_attention_and_feed_forward_give(
    family: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    config = configuration(
        model_folder(family), tmp_path / "run.zarr", capture={"sites": sites}, data={"prompt_format": "raw"}
    )
    found = values(extract(config, samples=text_samples(9)))
    for layer in range(LAYERS):
        total = sum(found[site, "last", layer] for site in sites[:3])
        expected = found["resid_post", "last", layer]
        assert np.abs(total - expected).max() <= 2e-5 * np.abs(expected).max()


def test_an_encoder_has_keys_and_values_too(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    import torch
    import transformers as hf

    folder, samples = model_folder("bert"), text_samples(5)
    found = values(
        extract(configuration(folder, tmp_path / "run.zarr", capture={"sites": ["k", "v"]}), samples=samples)
    )
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, seen = hf.AutoTokenizer.from_pretrained(folder), {}
    for layer, block in enumerate(model.encoder.layer):
        for site, name in (("k", "key"), ("v", "value")):
            block.attention.self.get_submodule(name).register_forward_hook(
                lambda module, args, out, key=(site, layer): seen.update({key: out[0, -1].numpy()})
            )
    for i, sample in enumerate(samples):
        with torch.no_grad():
            model(**tokenizer(sample.prompt, return_tensors="pt"))
        for (site, layer), want in seen.items():
            np.testing.assert_allclose(found[site, "last", layer][i], want, rtol=1e-4, atol=1e-5)


def test_parts_are_found_in_bfloat16_too(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    sites = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    for family in ("gemma2", "gpt2"):
        out = tmp_path / f"{family}.zarr"
        config = configuration(model_folder(family), out, model={"dtype": "bfloat16"}, capture={"sites": sites})
        found = values(extract(config, samples=text_samples(5)))
        total = sum(found[site, "last", 1] for site in sites[:3])
        expected = found["resid_post", "last", 1]
        assert np.abs(total - expected).max() <= 0.03 * np.abs(expected).max()


def test_sites_have_layers_of_their_own_and_their_own_width(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    capture = {"sites": ["resid_post", "z", "k"], "layers": {"z": [1], "k": [0, 2]}}
    config = configuration(model_folder("llama"), tmp_path / "run.zarr", capture=capture)
    store = extract(config, samples=text_samples())
    assert {a.site: (a.layers, a.hidden) for a in store.arrays} == {
        "resid_post": ((0, 1, 2), 32),
        "z": ((1,), 32),
        # Two key-value heads of eight.
        "k": ((0, 2), 16),
    }
    assert store.schema.capture["layers"] == {"resid_post": [0, 1, 2], "z": [1], "k": [0, 2]}
    assert extract(config, samples=text_samples(), resume=True).complete


@pytest.mark.parametrize(
    ("family", "sites", "message"),
    [
        ("bert", ["attn_out"], "BertModel has no site 'attn_out' in layer 0: its output is not its input plus"),
        ("llama", ["vision/resid_post"], "no vision tower"),
    ],
)
def test_a_site_that_a_model_lacks_is_named(
    family: str, sites: list[str], message: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = configuration(model_folder(family), tmp_path / "run.zarr", capture={"sites": sites})
    with pytest.raises(InputError, match=message):
        extract(config, samples=text_samples(2))
    assert not (tmp_path / "run.zarr").exists()


# Images


def with_pictures(pictures: list[Path]) -> list[Sample]:
    return [Sample(f"s{i}", prompt=prompt(i, 2), images=tuple(pictures[i : i + 1 + i % 2])) for i in range(5)]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_vision_tower_and_the_connector_are_those_of_each_sample_run_alone(
    family: str, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    import torch
    import transformers as hf

    folder, samples = model_folder(family), with_pictures(pictures)
    capture = {"sites": ["vision/resid_post", "connector", "resid_post"], "tokens": ["mean", "max", "last"]}
    config = configuration(folder, tmp_path / "run.zarr", capture=capture, data={"prompt_format": "raw"})
    store = extract(config, samples=samples)
    assert {(a.site, a.tokens) for a in store.arrays} == {
        *(("vision/resid_post", tokens) for tokens in ("mean", "max")),
        *((site, tokens) for site in ("connector", "resid_post") for tokens in ("mean", "max", "last")),
    }
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    path = {"llava": "vision_tower.vision_model.encoder.layers", "qwen2_5_vl": "visual.blocks"}[family]
    if family == "llava" and not any(name == path for name, _ in model.named_modules()):
        path = "vision_tower.encoder.layers"
    blocks: Any = model.get_submodule(path)
    connector = model.get_submodule({"llava": "multi_modal_projector", "qwen2_5_vl": "visual.merger"}[family])
    seen: dict[Any, Any] = {}
    for layer, block in enumerate(blocks):
        block.register_forward_hook(
            lambda module, args, out, layer=layer: seen.update({layer: out[0] if isinstance(out, tuple) else out})
        )
    connector.register_forward_hook(lambda module, args, out: seen.update(connector=out))
    found = values(store)
    placeholder = {"llava": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}[family]
    for i, sample in enumerate(samples):
        images = [Image.open(p).convert("RGB") for p in sample.images]
        text = placeholder * len(images) + str(sample.prompt)
        with torch.no_grad():
            model(**processor(text=text, images=images, return_tensors="pt"))
        for layer in range(len(blocks)):
            x = seen[layer].flatten(0, -2).numpy()
            np.testing.assert_allclose(
                found["vision/resid_post", "mean", layer][i], x.mean(axis=0), rtol=1e-4, atol=1e-5
            )
            np.testing.assert_allclose(found["vision/resid_post", "max", layer][i], x.max(axis=0), rtol=1e-4, atol=1e-5)
        x = seen["connector"].flatten(0, -2).numpy()
        np.testing.assert_allclose(found["connector", "mean", 0][i], x.mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found["connector", "max", 0][i], x.max(axis=0), rtol=1e-4, atol=1e-5)


def test_a_sample_without_an_image_has_no_connector(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [*with_pictures(pictures)[:2], Sample("blind", prompt="a red circle")]
    config = configuration(
        model_folder("llava"), tmp_path / "run.zarr", capture={"sites": ["connector"], "tokens": ["mean", "all"]}
    )
    with pytest.raises(InputError, match=r"'blind'.*site connector: it has no image"):
        extract(config, samples=samples)


def test_the_connector_has_no_text(model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path) -> None:
    sites = ["connector", "resid_post"]
    config = configuration(
        model_folder("llava"), tmp_path / "run.zarr", capture={"sites": sites, "tokens": ["text_mean", "mean"]}
    )
    store = extract(config, samples=with_pictures(pictures))
    assert [a.name for a in store.arrays] == ["connector/mean", "resid_post/text_mean", "resid_post/mean"]
    assert all(np.isfinite(x).all() for x in values(store).values())
    alone = configuration(
        model_folder("llava"), tmp_path / "no.zarr", capture={"sites": ["connector"], "tokens": ["text_mean"]}
    )
    with pytest.raises(InputError, match="site 'connector' has none of the tokens text_mean"):
        extract(alone, samples=with_pictures(pictures))


def test_all_tokens_of_the_connector_are_those_of_the_image(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    config = configuration(
        model_folder("llava"), tmp_path / "run.zarr", capture={"sites": ["connector"], "tokens": ["mean", "all"]}
    )
    store = extract(config, samples=with_pictures(pictures))
    [tokens, _] = list(store.tokens("connector", 0))
    assert tokens.modality.all()
    mean = as_float32(store.layer("connector", "mean", 0).numpy())
    for i in range(len(tokens)):
        np.testing.assert_allclose(tokens.sample(i).mean(axis=0), mean[i], rtol=1e-4, atol=1e-5)


def test_positions_are_taken_by_number(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    capture = {"tokens": ["index:0", "first", "index:-1", "last", "index:1", "all"]}
    samples = [Sample(f"s{i}", prompt=prompt(i, 3 + i)) for i in range(6)]
    store = extract(configuration(model_folder("llama"), tmp_path / "run.zarr", capture=capture), samples=samples)
    found = values(store)
    assert found["resid_post", "index:0", 1].tobytes() == found["resid_post", "first", 1].tobytes()
    assert found["resid_post", "index:-1", 1].tobytes() == found["resid_post", "last", 1].tobytes()
    second = np.stack([x[1] for x in store.tokens("resid_post", 1).samples(range(6))])
    assert found["resid_post", "index:1", 1].tobytes() == second.tobytes()
    capture = {"tokens": ["index:900"]}
    with pytest.raises(InputError, match=r"'s0'.*tokens index:900: it has"):
        extract(configuration(model_folder("llama"), tmp_path / "no.zarr", capture=capture), samples=samples)
