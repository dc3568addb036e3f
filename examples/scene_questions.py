"""Questions about scenes of coloured shapes, with their answers: what the demo's model is taught and asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from sonde.engine.scenes import Scene
from sonde.engine.shapes import COLOURS, SHAPES, Shape
from sonde.engine.tasks.prompts import fill, load_prompts

VOCABULARY = ", ".join(SHAPES)
NUMBERS = ("no", "one", "two", "three", "four")
DIRECTIONS = {"From left to right:": "x", "From top to bottom:": "y"}
CUE = 0.2
"""Share of the tasks' questions that name all categories."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt about a scene.

    Attributes
    ----------
    kind
        Name of its kind, such as ``entailment``.
    prompt
        What the user says.
    answer
        What the model is to say.
    """

    kind: str
    prompt: str
    answer: str


def simple_questions(scene: Scene, rng: random.Random) -> Iterator[Question]:
    """Ask for all shapes in order along both axes, and for a colour, a shape, the number and a relation."""
    for prompt, axis in DIRECTIONS.items():
        along = sorted(scene.shapes, key=lambda shape: getattr(shape, axis))
        yield Question("order", prompt, ", ".join(f"{shape.colour} {shape.category}" for shape in along))
    shape = rng.choice(scene.shapes)
    yield Question("colour", f"Colour of the {shape.category}?", shape.colour)
    shape = rng.choice(scene.shapes)
    yield Question("shape", f"What is {shape.colour}?", shape.category)
    yield Question("number", "How many shapes?", NUMBERS[len(scene.shapes)])
    if len(scene.shapes) > 1:
        first, second = rng.sample(scene.shapes, 2)
        yield Question("relation", f"{_noun(first)} to {_noun(second)}:", _relation(first, second))


def recognition_questions(scene: Scene, rng: random.Random, *, cue: bool) -> Iterator[Question]:
    """Ask as the task does: for all objects, for one that is there and for one that is not."""
    there = [shape.category for shape in scene.shapes]
    prompt, _ = fill(_draw("recognition", cue, rng), {"categories": VOCABULARY})
    yield Question("recognition", prompt, ", ".join(name for name in SHAPES if name in there))
    template = _draw("recognition", "asked", rng)
    for names, answer in ((there, "yes"), ([name for name in SHAPES if name not in there], "no")):
        yield Question("asked", fill(template, {"category": rng.choice(names)})[0], answer)


def entailment_questions(scene: Scene, rng: random.Random, *, cue: bool) -> Iterator[Question]:
    """Ask as the task does: whether a true caption holds, and the false one that was made from it."""
    template = _draw("entailment", cue, rng)
    *pair, _ = rng.choice(scene.captions)
    for statement, answer in zip(pair, ("yes", "no"), strict=True):
        prompt, _ = fill(template, {"caption": statement.text(), "categories": VOCABULARY})
        yield Question("entailment", prompt, answer)


def first_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """Ask what there is, in order along one axis, and for the list of categories."""
    order, *_ = rng.sample([question for question in simple_questions(scene, rng) if question.kind == "order"], 2)
    listed, *_ = recognition_questions(scene, rng, cue=False)
    return [order, listed]


def all_questions(scene: Scene, rng: random.Random, n_simple: int = 2) -> list[Question]:
    """Ask as the tasks do, and some of what is simple."""
    simple = rng.sample(list(simple_questions(scene, rng)), n_simple)
    objects = recognition_questions(scene, rng, cue=rng.random() < CUE)
    return [*simple, *objects, *entailment_questions(scene, rng, cue=rng.random() < CUE)]


def texts() -> Iterator[str]:
    """Every word that prompts and answers have."""
    yield from (f" {word}" for word in (*COLOURS, *SHAPES, *NUMBERS, "an", "user :", "assistant :", "yes", "no"))
    for task, cues in {"entailment": (False, True), "recognition": (False, True, "asked")}.items():
        yield from (f" {prompt}" for cue in cues for prompt in load_prompts(task, cue))
    yield from DIRECTIONS
    yield " Colour of the What is How many shapes? to left of right of above below, : . on at the of picture"
    yield " A An There there is are On At among them shape shapes left right top bottom"


def _draw(task: str, cue: bool | str, rng: random.Random) -> str:
    first, *others = load_prompts(task, cue)
    return first if rng.random() < 0.5 else rng.choice(others)


def _noun(shape: Shape) -> str:
    return f"{shape.colour} {shape.category}"


def _relation(first: Shape, second: Shape) -> str:
    right, down = first.x - second.x, first.y - second.y
    if abs(right) > abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"
