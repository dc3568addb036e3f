"""`examples/train_demo_model.py`: what the demo's model learned from, and that training resumes bit for bit."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sonde.engine.scenes import is_for_training

ROOT = Path(__file__).parents[1]
SETTINGS = ("--steps", "4", "--looking", "2", "--scenes", "2", "--every", "1", "--examined", "2")


@pytest.fixture(scope="module")
def script() -> Any:
    """The script as a module; examples are no package that is installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        import examples.train_demo_model as module

        yield module


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.train_demo_model", "--out", str(out), *SETTINGS]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def log_of(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.slow
def test_training_that_was_killed_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with start(whole) as process:
        process.communicate(timeout=600)
    with start(cut) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
    assert not (cut / "model").exists()
    assert len(log_of(cut)) < len(log_of(whole))
    with start(cut) as process:
        process.communicate(timeout=600)
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (cut / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()
    assert log_of(cut) == log_of(whole)
    assert [line["step"] for line in log_of(whole)[1:]] == [1, 2, 3, 4]


def test_lessons_are_about_other_scenes_than_examinations(script: ModuleType) -> None:
    plan = script.Plan(steps=40, looking=20, scenes=8)
    learned = [scene for step in range(plan.steps) for scene, _ in script.lesson(plan, step)]
    asked = [scene for scene, _ in script.examination(100)]
    assert len(learned) > 300
    assert all(is_for_training(scene.shapes, 96) for scene in learned)
    assert not any(is_for_training(scene.shapes, 96) for scene in asked)


def test_a_lesson_depends_on_its_step_and_the_seed_alone(script: ModuleType) -> None:
    def said(seed: int, step: int) -> list[str]:
        return [question.prompt for _, of in script.lesson(script.Plan(seed=seed), step) for question in of]

    assert said(0, 6000) == said(0, 6000)
    assert said(0, 6000) != said(0, 6001)
    assert said(0, 6000) != said(1, 6000)


def test_questions_side_by_side_are_what_the_processor_makes_of_each_alone(script: ModuleType) -> None:
    import torch

    processor = script.new_processor()
    model = script.new_model(len(processor.tokenizer), seed=0).eval()
    scenes = list(script.examination(3))
    batch = script.Batcher(processor)(scenes)
    with torch.inference_mode():
        together = script.answer_logits(model, batch)
        alone = []
        for scene, questions in scenes:
            for question in questions:
                content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
                turns = [{"role": "user", "content": content}]
                text = processor.apply_chat_template(turns, add_generation_prompt=True)
                inputs = processor(text=[f"{text} {question.answer}"], images=[scene.image], return_tensors="pt")
                n_said = len(processor.tokenizer(f" {question.answer}")["input_ids"]) + 1
                alone.append(model(**inputs).logits[0, -n_said:])
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
