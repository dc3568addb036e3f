"""The model that ships: whole, small, and taught what the demo's scenes show."""

from itertools import islice
from typing import Any

import pytest

from sonde.engine.demo_model import DEMO_MODEL, WEIGHTS
from sonde.engine.scenes import Scene, draw_scenes
from sonde.engine.shapes import COLOURS, SHAPES
from sonde.engine.tasks.prompts import load_prompts


@pytest.fixture(scope="module")
def model() -> Any:
    import transformers as hf

    loaded, report = hf.LlavaForConditionalGeneration.from_pretrained(
        DEMO_MODEL, dtype="bfloat16", output_loading_info=True
    )
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return loaded.eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    import transformers as hf

    return hf.AutoProcessor.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Such as the demo shows."""
    return list(islice(draw_scenes("shipped"), 60))


def answers(model: Any, processor: Any, asked: list[tuple[Scene, str]]) -> list[str]:
    """What the model says, as a user of transformers asks it."""
    turns = [[{"type": "image"}, {"type": "text", "text": prompt}] for _, prompt in asked]
    texts = [
        processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True) for turn in turns
    ]
    images = [scene.image for scene, _ in asked]
    inputs = processor(text=texts, images=images, padding=True, padding_side="left", return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(said, skip_special_tokens=True)]


def test_it_is_whole_and_takes_less_than_five_megabytes(model: Any) -> None:
    from safetensors.torch import load_file

    assert sum(path.stat().st_size for path in DEMO_MODEL.iterdir()) < 5e6
    weights = load_file(DEMO_MODEL / WEIGHTS)
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.bfloat16"}
    assert sum(weight.numel() for weight in model.parameters()) > 1e6
    assert len(model.model.language_model.layers) == 6


def test_its_tokenizer_has_the_words_of_scenes_whole_and_takes_any_text(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for word in (*SHAPES, *COLOURS, "left", "right", "above", "below", "yes", "no"):
        assert len(tokenizer(f" {word}")["input_ids"]) == 1
    other = "Où est le chat ? 猫は\tどこ 🐈\n"
    ids = tokenizer(other)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == other


def test_it_tells_captions_that_hold_from_those_that_do_not(model: Any, processor: Any, scenes: list[Scene]) -> None:
    template = load_prompts("entailment", cue=False)[0]
    asked = [(scene, said) for scene in scenes for *pair, _ in scene.captions for said in pair]
    said = answers(model, processor, [(scene, template.format(caption=caption.text())) for scene, caption in asked])
    right = [text == ("yes", "no")[i % 2] for i, text in enumerate(said)]
    assert sum(right) / len(right) > 0.7


def test_it_lists_the_shapes_of_a_scene(model: Any, processor: Any, scenes: list[Scene]) -> None:
    (prompt, *_) = load_prompts("recognition", cue=False)
    said = answers(model, processor, [(scene, prompt) for scene in scenes])
    there = [{shape.category for shape in scene.shapes} for scene in scenes]
    named = [set(text.split(", ")) for text in said]
    common = sum(len(a & b) for a, b in zip(there, named, strict=True))
    # F1; naming any three would give a quarter.
    assert 2 * common / sum(len(a) + len(b) for a, b in zip(there, named, strict=True)) > 0.9
