"""Stored activations equal a plain run with `output_hidden_states=True`, for every family that `sonde models` names."""

import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

from sonde.engine import Sample, extract
from sonde.engine.batches import plan_batches
from sonde.engine.families import FAMILIES, Family
from sonde.engine.structure import find_blocks
from sonde.errors import InputError, ModelError
from sonde.store import Store

from .reference import ENCODERS, Reference, known
from .runs import BUDGET, configuration, prompt, values
from .tiny import families
from .tiny_parts import HIDDEN, IDS, LAYERS, SIZES, train_tokenizer

TOKENS = ("last", "first", "mean", "text_mean")
LENGTHS = (3, 60, 1, 17, 55, 40, 5, 2, 9)
RANGE = 6
SUPPORTED = [family for family in FAMILIES if family.supported]
WITH_IMAGES = [family for family in SUPPORTED if "image" in family.takes]


def each(families: list[Family]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("family", [pytest.param(f, id=f.model_type, marks=marks(f)) for f in families])


def marks(family: Family) -> list[pytest.MarkDecorator]:
    there = version("transformers")
    lacks = bool(family.since) and Version(there) < Version(family.since)
    return [pytest.mark.skipif(lacks, reason=f"{family.name} needs transformers {family.since}, not {there}")]


# Warnings of transformers about itself: Mllama's call of its vision tower, PaliGemma's of numpy.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`hidden_state` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def mixed_samples(family: Family, pictures: list[Path], *, at_least: int = 0) -> list[Sample]:
    """Prompts of very different lengths, with no, one or two pictures, as many as the family takes."""
    most = 0 if family.takes == "text" else 1 if "one image" in family.takes else 2
    at_least = max(at_least, "with" in family.takes)
    samples = []
    for i, n_words in enumerate(LENGTHS):
        n_images = max(min(i % 3, most), at_least)
        images = tuple(pictures[(i + k) % len(pictures)] for k in range(n_images))
        samples.append(Sample(f"s{i}", prompt=prompt(i, n_words), images=images))
    return samples


def run(folder: Path, out: Path, samples: list[Sample], **sections: dict[str, Any]) -> Store:
    sites = ["embed", "resid_pre", "resid_post", *([] if folder.name in ENCODERS else ["final_norm"])]
    config = configuration(folder, out, capture={"sites": sites, "tokens": list(TOKENS)}, run={"range_size": RANGE})
    for name, section in sections.items():
        config[name] = config.get(name, {}) | section
    return extract(config, samples=samples)


def assert_equal(store: Store, expected: list[dict[tuple[str, str, int], Any]], tolerance: float) -> None:
    """Every array of the store, to a tolerance relative to the largest magnitude of its layer."""
    for key, got in values(store).items():
        want = np.stack([sample[key] for sample in expected])
        assert got.shape == want.shape
        worst = np.abs(got - want).max() / np.abs(want).max()
        assert worst <= tolerance, (key, float(worst))


def test_every_family_can_be_made_and_every_one_made_is_a_row() -> None:
    assert families() == {family.model_type for family in SUPPORTED}


@each(SUPPORTED)
def test_float32_activations_equal_plain_runs(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(family.model_type)
    samples = mixed_samples(family, pictures)
    store = run(folder, tmp_path / "run.zarr", samples, data={"prompt_format": "raw"})
    assert store.schema.dtype == "float32"
    assert {a.site: a.layers for a in store.arrays if a.tokens == "last"} == {
        "embed": (0,),
        "resid_pre": tuple(range(LAYERS)),
        "resid_post": tuple(range(LAYERS)),
    } | ({} if family.model_type in ENCODERS else {"final_norm": (LAYERS - 1,)})
    reference = Reference(folder, family.model_type)
    batches = []
    for kind in (False, True):
        alike = [sample for sample in samples[:RANGE] if bool(sample.images) == kind]
        lengths = [reference.inputs(sample, chat=False)["input_ids"].shape[1] for sample in alike]
        batches += [{lengths[i] for i in batch} for batch in plan_batches(lengths, BUDGET)]
    assert len(batches) > 1, "a range of more than one batch"
    assert any(max(batch) >= min(batch) + 10 for batch in batches), "much padding"
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


@each(SUPPORTED)
def test_bfloat16_activations_equal_plain_runs_to_rounding(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder = model_folder(family.model_type)
    samples = mixed_samples(family, pictures)[:5]
    store = run(folder, tmp_path / "run.zarr", samples, model={"dtype": "bfloat16"}, data={"prompt_format": "raw"})
    assert store.schema.dtype == "bfloat16"
    reference = Reference(folder, family.model_type, "bfloat16")
    assert_equal(store, [reference.run(sample) for sample in samples], 4 * 2**-8)


@each(WITH_IMAGES)
def test_image_positions_and_the_vision_tower_equal_plain_runs(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    folder, told_apart = model_folder(family.model_type), known(family.model_type).vision is not None
    samples = mixed_samples(family, pictures, at_least=1)[:7]
    sites = ["embed", "resid_post", *(["vision/resid_post", "connector"] if told_apart else [])]
    capture = {"sites": sites, "tokens": ["mean", "last", "image_mean"]}
    store = run(folder, tmp_path / "run.zarr", samples, data={"prompt_format": "raw"}, capture=capture)
    assert {array.site for array in store.arrays} == set(sites)
    reference = Reference(folder, family.model_type)
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


@each([family for family in WITH_IMAGES if known(family.model_type).vision is None])
def test_a_vision_tower_whose_padding_cannot_be_told_from_patches_is_refused(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = mixed_samples(family, pictures, at_least=1)
    capture = {"sites": ["vision/resid_post"], "tokens": ["mean"]}
    with pytest.raises(InputError, match=r"cannot be told apart by sample: leave vision/resid_post out of the sites"):
        run(model_folder(family.model_type), tmp_path / "run.zarr", samples, capture=capture)


def test_mllama_has_no_connector(model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path) -> None:
    samples = [Sample("a", prompt="a star", images=tuple(pictures[:2]))]
    capture = {"sites": ["connector"], "tokens": ["mean"]}
    with pytest.raises(InputError, match="MllamaModel attends to images from outside of the stream: leave connector"):
        run(model_folder("mllama"), tmp_path / "run.zarr", samples, capture=capture)


@each([family for family in WITH_IMAGES if known(family.model_type).mark])
def test_prompts_and_messages_go_through_the_chat_template(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = mixed_samples(family, pictures)[:4]
    turn = {"role": "user", "content": [{"type": "text", "text": prompt(99, 4)}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": prompt(98, 2)}]}
    samples += [Sample("chat", messages=(turn, answer, turn), images=(pictures[0],))]
    store = run(model_folder(family.model_type), tmp_path / "run.zarr", samples)
    assert store.schema.data["prompt_format"] == "chat"
    reference = Reference(model_folder(family.model_type), family.model_type)
    assert_equal(store, [reference.run(sample, chat=True) for sample in samples], 1e-5)


@pytest.mark.parametrize("model_type", ENCODERS)
def test_asking_an_encoder_for_a_final_norm_is_an_input_error(
    model_type: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model_folder(model_type)
    with pytest.raises(InputError, match=r"no final norm.*leave final_norm out"):
        run(folder, tmp_path / "run.zarr", [Sample("a", prompt="a")], capture={"sites": ["final_norm"]})


def test_families_that_are_not_supported_say_why() -> None:
    unsupported = {family.model_type: family.verified for family in FAMILIES if not family.supported}
    assert unsupported.keys() == {"t5"}
    assert all(why.startswith("not supported, because ") for why in unsupported.values())


def test_a_family_that_newer_versions_of_transformers_have_says_so() -> None:
    newer = {family.model_type: family.verified for family in FAMILIES if family.since}
    assert newer == {"molmo2": "random weights: equals output_hidden_states; needs transformers 5.20 or newer"}


def test_a_family_without_a_class_in_transformers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    with pytest.raises(ModelError, match=r"cannot load the model.*no_such_family"):
        run(tmp_path / "model", tmp_path / "run.zarr", [Sample("a", prompt="a")])


def test_text_that_a_family_cannot_take_alone_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    needing = [family for family in SUPPORTED if "with" in family.takes]
    assert needing
    for family in needing:
        with pytest.raises(InputError, match=r"'a'.*processor cannot prepare it: .*images"):
            run(model_folder(family.model_type), tmp_path / "run.zarr", [Sample("a", prompt="a star")])


@each([family for family in WITH_IMAGES if "one image" in family.takes])
def test_a_second_image_is_refused_where_a_family_takes_one(
    family: Family, model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="it has 2 images, but the model takes one to a prompt"):
        run(
            model_folder(family.model_type),
            tmp_path / "run.zarr",
            [Sample("a", prompt="a", images=tuple(pictures[:2]))],
        )


def test_layers_whose_vectors_differ_in_length_are_chosen_apart(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    # Gemma 4 has longer heads in its layers of full attention.
    samples = [Sample("a", prompt="a star")]
    with pytest.raises(
        InputError, match=r"the layers of z have vectors of \[32, 64\] values: choose layers of one length"
    ):
        run(model_folder("gemma4"), tmp_path / "no.zarr", samples, capture={"sites": ["z"]})
    store = run(
        model_folder("gemma4"), tmp_path / "run.zarr", samples, capture={"sites": ["z"], "layers": {"z": [1, 2]}}
    )
    assert {array.hidden for array in store.arrays} == {64}


def test_a_block_that_text_passes_over_hands_on_what_it_would_be_given(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    # Mllama leaves its block 1, which attends to images, out of a pass over text.
    samples = [Sample("a", prompt="a star"), Sample("b", prompt="a star", images=(pictures[0],))]
    capture = {"sites": ["resid_pre"], "layers": {"resid_pre": [1]}}
    store = run(model_folder("mllama"), tmp_path / "run.zarr", samples, data={"prompt_format": "raw"}, capture=capture)
    reference = Reference(model_folder("mllama"), "mllama")
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


@pytest.mark.parametrize(("model_type", "name"), [("qwen3_next", "Qwen3NextModel"), ("lfm2", "Lfm2Model")])
def test_a_hybrid_keeps_keys_and_values_in_its_attention_layers_alone(
    model_type: str, name: str, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch

    folder, samples = model_folder(model_type), [Sample(f"s{n}", prompt=prompt(n, n)) for n in (3, 30, 9)]
    with pytest.raises(InputError, match=f"layer 0 of {name} keeps no keys and values"):
        run(folder, tmp_path / "no.zarr", samples, capture={"sites": ["k"]})
    capture = {"sites": ["k", "v"], "tokens": ["mean"], "layers": {"k": [2], "v": [2]}}
    found = values(run(folder, tmp_path / "run.zarr", samples, capture=capture))
    reference = Reference(folder, model_type)
    for i, sample in enumerate(samples):
        with torch.no_grad():
            cache = reference.model(**reference.inputs(sample, chat=False), use_cache=True).past_key_values.layers[2]
        for site, x in (("k", cache.keys), ("v", cache.values)):
            want = np.concatenate(list(x[0].mean(dim=1).numpy()))
            np.testing.assert_allclose(found[site, "mean", 2][i], want, rtol=1e-4, atol=1e-5)


def test_a_long_neighbour_leaves_the_rotary_positions_of_a_short_sample_alone(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    # Phi-3 changes them for the whole batch where one sequence is longer than those that it was first trained on.
    folder = tmp_path / "model"
    shutil.copytree(model_folder("phi3"), folder)
    content = json.loads((folder / "config.json").read_text())
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]}
    content["original_max_position_embeddings"] = 32
    content["rope_parameters"] |= {"rope_type": "longrope", "original_max_position_embeddings": 32, **factors}
    (folder / "config.json").write_text(json.dumps(content))
    samples = [Sample(f"s{n}", prompt=prompt(n, n)) for n in (20, 30, 3, 35, 25, 1)]
    store = run(folder, tmp_path / "run.zarr", samples, run={"token_budget": 1024})
    reference = Reference(folder, "phi3")
    lengths = [reference.inputs(sample, chat=False)["input_ids"].shape[1] for sample in samples]
    assert min(lengths) <= 32 < max(lengths)
    assert_equal(store, [reference.run(sample) for sample in samples], 1e-5)


def test_an_encoder_that_takes_no_notice_of_a_mask_is_given_nothing_to_mask(tmp_path: Path) -> None:
    import torch
    import transformers as hf

    tokenizer = train_tokenizer()
    model = hf.FNetModel(hf.FNetConfig(**SIZES, **IDS, vocab_size=len(tokenizer), max_position_embeddings=256))
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    samples = [Sample(f"s{i}", prompt=prompt(i, n)) for i, n in enumerate((3, 9, 3, 20, 9, 1))]
    capture = {"sites": ["resid_post"], "tokens": ["mean"]}
    store = extract(configuration(tmp_path / "model", tmp_path / "run.zarr", capture=capture), samples=samples)
    for i, sample in enumerate(samples):
        with torch.no_grad():
            ids = tokenizer(sample.prompt, return_tensors="pt")["input_ids"]
            states = model.eval()(ids, output_hidden_states=True).hidden_states[1:]
        for layer, state in enumerate(states):
            got = values(store)["resid_post", "mean", layer][i]
            np.testing.assert_allclose(got, state[0].mean(dim=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model_type", "sizes", "message"),
    [
        ("xlm", {"emb_dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4}, "several lists of 3 modules, attentions"),
        (
            "xlnet",
            {"d_model": HIDDEN, "n_layer": LAYERS, "n_head": 4, "d_head": 8, "d_inner": 48},
            r"states of shape \[2, 1, 32\] .* for 1 sequences of 2 positions",
        ),
    ],
)
def test_a_model_whose_states_lie_otherwise_is_refused(
    model_type: str, sizes: dict[str, int], message: str, tmp_path: Path
) -> None:
    import transformers as hf

    tokenizer = train_tokenizer()
    config = hf.AutoConfig.for_model(model_type, **sizes, **IDS, vocab_size=len(tokenizer))
    for part in (hf.AutoModel.from_config(config), tokenizer):
        part.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        extract(configuration(tmp_path / "model", tmp_path / "run.zarr"), samples=[Sample("a", prompt="a star")])


def test_a_mark_of_an_image_that_the_processor_places_itself_is_refused(
    model_folder: Callable[[str], Path], pictures: list[Path], tmp_path: Path
) -> None:
    samples = [Sample("a", prompt="<image>a star", images=(pictures[0],))]
    with pytest.raises(InputError, match="its prompt has <image>, which the model's processor places itself"):
        run(model_folder("blip-2"), tmp_path / "run.zarr", samples)


@pytest.mark.parametrize("model_type", ["t5", "bart"])
def test_an_encoder_decoder_is_refused(model_type: str) -> None:
    import transformers as hf

    sizes = {"d_model": 32, "num_layers": 2, "d_ff": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 64}
    model = hf.AutoModel.from_config(hf.AutoConfig.for_model(model_type, **sizes))
    with pytest.raises(ModelError, match="Model is an encoder-decoder, with two streams"):
        find_blocks(model)
