"""Scenes and questions as a LLaVA takes them in training: every question about a scene beside the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import transformers as hf
from examples.scene_questions import Question

from sonde.engine.scenes import Scene

_UNSAID = -100
_PICTURE, _PADDING = -1, -2


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes B, each as one sequence of T tokens: the picture, and behind it, side by side, its questions Q.

    Attributes
    ----------
    inputs
        ``input_ids`` and ``position_ids`` int64 [B, T], ``pixel_values`` float32 [B, 3, side, side],
        ``attention_mask`` bool [B, 1, T, T].
    targets
        What follows a token, int64 [B, T]; -100 where nothing is to be said.
    question
        Which question a token is of, counted over the batch, int64 [B, T].
    kinds
        Of the questions, length Q.
    """

    inputs: dict[str, torch.Tensor]
    targets: torch.Tensor
    question: torch.Tensor
    kinds: list[str]


class Batcher:
    """Makes batches of scenes and questions, as the processor would prepare each question alone."""

    def __init__(self, processor: hf.LlavaProcessor) -> None:
        self._tokenizer, images = processor.tokenizer, processor.image_processor
        self._mean, self._std = (np.array(v, dtype=np.float32) for v in (images.image_mean, images.image_std))
        self._template = partial(processor.apply_chat_template, add_generation_prompt=True)
        self._image = processor.image_token_id
        self._n_image = (images.crop_size["height"] // processor.patch_size) ** 2

    def __call__(self, scenes: Sequence[tuple[Scene, Sequence[Question]]]) -> Batch:
        """Lay out scenes and their questions."""
        rows = []
        kinds: list[str] = []
        for _, questions in scenes:
            ids: list[int] = []
            for question in questions:
                prompt, answer = self._tokens(question)
                start = prompt.index(self._image)
                if not ids:
                    # All prompts begin alike, up to and with the picture.
                    ids = [*prompt[:start], *[self._image] * self._n_image]
                    n_shared = len(ids)
                    places, of, targets = list(range(n_shared)), [_PICTURE] * n_shared, [_UNSAID] * n_shared
                said = [*prompt[start + 1 :], *answer]
                ids += said
                places += range(n_shared, n_shared + len(said))
                of += [len(kinds)] * len(said)
                targets += [*[_UNSAID] * (len(said) - len(answer) - 1), *answer, self._tokenizer.eos_token_id]
                kinds.append(question.kind)
            rows.append((ids, places, of, targets))
        width = max(len(ids) for ids, *_ in rows)
        ids_BT, places_BT, of_BT, targets_BT = (
            torch.tensor([row[i] + [fill] * (width - len(row[i])) for row in rows])
            for i, fill in enumerate((self._tokenizer.pad_token_id, 0, _PADDING, _UNSAID))
        )
        allowed_BTT = ((of_BT[:, None] == _PICTURE) | (of_BT[:, None] == of_BT[:, :, None])).tril()
        pixels = np.stack([np.asarray(scene.image, dtype=np.float32) / 255 for scene, _ in scenes])
        inputs = {
            "input_ids": ids_BT,
            "position_ids": places_BT,
            "pixel_values": torch.from_numpy(((pixels - self._mean) / self._std).transpose(0, 3, 1, 2).copy()),
            "attention_mask": allowed_BTT[:, None],
        }
        return Batch(inputs, targets_BT, of_BT, kinds)

    def _tokens(self, question: Question) -> tuple[list[int], list[int]]:
        content = [{"type": "image"}, {"type": "text", "text": question.prompt}]
        text = self._template([{"role": "user", "content": content}])
        return self._tokenizer(text)["input_ids"], self._tokenizer(f" {question.answer}")["input_ids"]
