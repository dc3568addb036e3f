"""Train the tiny LLaVA that ships with `sonde demo`.

    uv run python -m examples.train_demo_model [--out demo-model] [--steps 3600] [--seed 0]

A run that was stopped goes on from its last checkpoint, and ends with the same weights as one that was not. What is
trained on are scenes of coloured shapes that the demo never shows (see `sonde.engine.scenes.draw_scenes`), with
questions to be answered in words: first simple ones, then those of the tasks too. All questions about a scene share one
picture and do not see one another. There is nothing else to learn from: no label reaches the model but as an answer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from examples.scene_batches import Batch, Batcher
from examples.scene_questions import Question, all_questions, first_questions, texts
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sonde.engine.scenes import Scene, draw_scenes

IMAGE_SIZE, PATCH = 96, 16
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, EOS, IMAGE = 0, 2, 4
CHAT = (
    "{% for message in messages %}{{ message['role'] }} : "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
HORIZON, COOLING = 7000, 1000
"""Of the learning rate: steps of its cosine, were it not cut short, and steps in which it falls to nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What decides the weights, bit for bit on one machine.

    Attributes
    ----------
    steps
        All steps.
    looking
        First steps, which only ask what there is to be seen.
    scenes
        Scenes of a step; of the first steps twice as many, about which less is asked.
    seed
        Of the weights and of the scenes.
    adam_rate, muon_rate
        Full learning rates.
    """

    steps: int = 3600
    looking: int = 1250
    scenes: int = 16
    seed: int = 0
    adam_rate: float = 2e-3
    muon_rate: float = 3e-3


def new_processor() -> hf.LlavaProcessor:
    """A processor whose tokenizer has every word of the questions as one token, and bytes for all others."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sorted(set(texts())),
        trainers.BpeTrainer(
            vocab_size=4096, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
        ),
    )
    special = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    wrapped = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, additional_special_tokens=["<image>"], model_max_length=1024
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return hf.LlavaProcessor(
        hf.CLIPImageProcessor(size=size, crop_size=size),
        wrapped,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def new_model(vocabulary: int, seed: int) -> hf.LlavaForConditionalGeneration:
    """A LLaVA of 2 million parameters, drawn by the seed."""
    vision = hf.CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
    )
    text = hf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=EOS,
        tie_word_embeddings=True,
    )
    config = hf.LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    return hf.LlavaForConditionalGeneration(config)


def lesson(plan: Plan, step: int) -> list[tuple[Scene, list[Question]]]:
    """The scenes and questions of a step; they depend on nothing but the seed and the step."""
    rng = random.Random(f"{plan.seed}-{step}-questions")
    looking = step < plan.looking
    scenes = draw_scenes(f"{plan.seed}-{step}", size=IMAGE_SIZE, training=True)
    return [
        (scene, first_questions(scene, rng) if looking else all_questions(scene, rng))
        for scene in islice(scenes, 2 * plan.scenes if looking else plan.scenes)
    ]


def examination(n_scenes: int) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes of those that the demo shows, with questions of all kinds."""
    rng = random.Random("examination")
    for scene in islice(draw_scenes("examination", size=IMAGE_SIZE), n_scenes):
        yield scene, all_questions(scene, rng, n_simple=5)


def answer_logits(model: hf.LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    """What the model would say where something is to be said, [said, vocabulary]."""
    hidden_BTD = model.model(**batch.inputs, use_cache=False).last_hidden_state
    return model.lm_head(hidden_BTD[batch.targets >= 0])


def grade(model: hf.LlavaForConditionalGeneration, batcher: Batcher, n_scenes: int) -> dict[str, float]:
    """Share of the questions of each kind whose answer is said word for word."""
    right: dict[str, list[bool]] = defaultdict(list)
    exam = examination(n_scenes)
    model.eval()
    while scenes := list(islice(exam, 32)):
        batch = batcher(scenes)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            said = answer_logits(model, batch).argmax(dim=1)
        wrong = batch.question[batch.targets >= 0][said != batch.targets[batch.targets >= 0]]
        failed = set(wrong.tolist())
        for number, kind in enumerate(batch.kinds):
            right[kind].append(number not in failed)
    model.train()
    return {kind: sum(answers) / len(answers) for kind, answers in sorted(right.items())}


def halves(scenes: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Two parts, the same on any machine."""
    return scenes[::2], scenes[1::2]


def backward(model: hf.LlavaForConditionalGeneration, batches: Sequence[Batch], pool: Executor) -> float:
    """Set the gradients of the mean loss over all that is to be said, and return it.

    Each batch has a thread of its own. Where a machine is shared, threads within an operation wait for one another at
    each; these wait once in a step.
    """
    weights = list(model.parameters())
    said = sum(int((batch.targets >= 0).sum()) for batch in batches)

    def one(batch: Batch) -> tuple[float, Sequence[torch.Tensor]]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = answer_logits(model, batch)
        targets = batch.targets[batch.targets >= 0]
        loss = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") / said
        return loss.item(), torch.autograd.grad(loss, weights, materialize_grads=True)

    losses, gradients = zip(*pool.map(one, batches), strict=True)
    for weight, *parts in zip(weights, *gradients, strict=True):
        weight.grad = sum(parts)
    return sum(losses)


def optimisers(model: hf.LlavaForConditionalGeneration, plan: Plan) -> dict[torch.optim.Optimizer, float]:
    """Muon for the matrices of the blocks, AdamW for all else, and their rates."""
    matrices, others = [], []
    for name, weight in model.named_parameters():
        (matrices if ".layers." in name and weight.ndim == 2 else others).append(weight)
    return {
        torch.optim.Muon(matrices, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"): plan.muon_rate,
        torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0, fused=True): plan.adam_rate,
    }


def rate(plan: Plan, step: int) -> float:
    """Share of the full learning rate: up within the first thirtieth of the horizon, down slowly, then to nothing."""
    slow = min(30 * (step + 1) / HORIZON, 0.5 + 0.5 * math.cos(math.pi * step / HORIZON))
    return slow * min(1, (plan.steps - step) / COOLING)


def train(out: Path, plan: Plan, *, every: int = 250, n_examined: int = 128) -> Path:
    """Train until the plan's last step, or go on from the last checkpoint that a run in `out` has left.

    Parameters
    ----------
    out
        Folder of the checkpoint, of ``log.jsonl``, and in the end of the model in ``model``.
    plan
        What to do.
    every
        Steps between checkpoints; at each the model is examined, and the log has a line.
    n_examined
        Scenes of an examination.

    Returns
    -------
    pathlib.Path
        The folder of the model.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    processor = new_processor()
    batcher, model = Batcher(processor), new_model(len(processor.tokenizer), plan.seed)
    steppers = optimisers(model, plan)
    parts = [model, *steppers]
    state: dict[str, Any] = {"done": 0, "seconds": 0.0, "log": [{"plan": asdict(plan), "on": machine()}]}
    if (out / "checkpoint.pt").exists():
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        for part, saved in zip(parts, state["parts"], strict=True):
            part.load_state_dict(saved)
    begun, losses = time.perf_counter() - state["seconds"], []
    model.train()
    with ThreadPoolExecutor(2) as pool:
        for step in range(state["done"], plan.steps):
            batches = [batcher(half) for half in halves(lesson(plan, step))]
            losses.append(backward(model, batches, pool))
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper, full in steppers.items():
                for group in stepper.param_groups:
                    group["lr"] = full * rate(plan, step)
                stepper.step()
            if (step + 1) % every and step + 1 < plan.steps:
                continue
            line = {"step": step + 1, "loss": sum(losses) / len(losses), "right": grade(model, batcher, n_examined)}
            losses.clear()
            seconds = time.perf_counter() - begun
            log = [*state["log"], line | {"seconds": round(seconds)}]
            state = {"done": step + 1, "seconds": seconds, "log": log, "parts": [part.state_dict() for part in parts]}
            torch.save(state, out / "checkpoint.part")
            (out / "checkpoint.part").replace(out / "checkpoint.pt")
            (out / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log), encoding="utf-8")
            print(json.dumps(log[-1]), flush=True)
    model.to(torch.bfloat16).save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return out / "model"


def machine() -> dict[str, Any]:
    """What the model is trained on."""
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "transformers": hf.__version__}
    return {"cpu": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(), **versions}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    plan = Plan()
    parser.add_argument("--out", type=Path, default=Path("demo-model"), help="folder of the run")
    parser.add_argument("--steps", type=int, default=plan.steps, help="steps in all")
    parser.add_argument("--looking", type=int, default=plan.looking, help="first steps, of what there is to be seen")
    parser.add_argument("--scenes", type=int, default=plan.scenes, help="scenes of a step")
    parser.add_argument("--seed", type=int, default=plan.seed, help="of the weights and of what is seen")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--examined", type=int, default=128, help="scenes of the examination at each")
    given = parser.parse_args()
    plan = Plan(given.steps, given.looking, given.scenes, given.seed)
    print(train(given.out, plan, every=given.every, n_examined=given.examined))
