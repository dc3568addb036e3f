"""Samples to model inputs: images decoded, prompts rendered, text tokenised, one sample at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sonde.errors import InputError

from .model import Model
from .sample import Sample

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Processors that put the image tokens into the prompt themselves.
_PLACES_IMAGES = ("kosmos-2",)


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """One sample as the model takes it.

    Attributes
    ----------
    row
        Row of the sample in the store.
    sequence
        Tensors along the positions, ``[1, position]``: ``input_ids``, ``attention_mask``, …
    other
        The rest, such as ``pixel_values``; joined along the first axis in a batch.
    image
        bool ``[position]``: which positions stand for image content.
    """

    row: int
    sequence: Mapping[str, torch.Tensor]
    other: Mapping[str, torch.Tensor]
    image: torch.Tensor

    @property
    def length(self) -> int:
        """Number of positions."""
        return len(self.image)

    @property
    def nbytes(self) -> int:
        """Host memory that it takes."""
        return sum(t.nbytes for group in (self.sequence, self.other) for t in group.values())


class Encoder:
    """Prepares samples for one model; safe to call from several threads.

    Parameters
    ----------
    model
        Its processor is used.
    tokens
        The token selectors that each sample must have positions for.
    prompt_format
        ``raw``: the prompt as it is (image placeholders that it lacks are put in front of it); ``chat``: through the
        model's chat template as a user's turn that the model is about to answer; ``auto``: chat for image-text
        models that have a template, else raw. Samples with messages always go through the template.
    truncate
        Cut text-only prompts to this many tokens.
    """

    def __init__(
        self,
        model: Model,
        tokens: tuple[str, ...],
        prompt_format: Literal["auto", "raw", "chat"] = "auto",
        truncate: int | None = None,
    ) -> None:
        self._processor = model.processor
        self._tokenizer = getattr(model.processor, "tokenizer", model.processor)
        self._takes_images = model.takes_images
        self._image_token_id = model.image_token_id
        self._places_images = model.module.config.model_type in _PLACES_IMAGES
        self._max_length = model.max_length
        self._tokens = tokens
        self._truncate = truncate
        has_template = bool(getattr(model.processor, "chat_template", None))
        if prompt_format == "auto":
            prompt_format = "chat" if has_template and self._takes_images else "raw"
        if prompt_format == "chat" and not has_template:
            raise InputError("data.prompt_format is chat, but the model has no chat template; say raw")
        self.prompt_format: str = prompt_format

    @property
    def pad_token_id(self) -> int:
        """Id that fills positions behind a sample's end."""
        return int(self._tokenizer.pad_token_id or 0)

    def __call__(self, row: int, sample: Sample) -> Encoded:
        """Prepare one sample.

        Raises
        ------
        InputError
            If an image cannot be read, the prompt is too long for the model, or it has no positions for a selector.
        """
        try:
            images = [_open_image(path) for path in sample.images]
            if images and not self._takes_images:
                raise InputError("it has an image, but the model takes text only")
            tensors = self._process(self._render(sample), images)
            return self._check(row, sample, tensors)
        except InputError as error:
            raise InputError(f"sample {sample.id!r}: {error}") from error

    def _render(self, sample: Sample) -> str:
        if sample.messages is not None:
            return self._through_template([dict(m) for m in sample.messages], len(sample.images))
        assert sample.prompt is not None
        if self.prompt_format == "chat":
            return self._through_template([{"role": "user", "content": sample.prompt}], len(sample.images))
        token: str | None = getattr(self._processor, "image_token", None)
        if not sample.images or self._places_images or token is None:
            return sample.prompt
        return token * (len(sample.images) - sample.prompt.count(token)) + sample.prompt

    def _through_template(self, messages: list[dict[str, Any]], n_images: int) -> str:
        if not getattr(self._processor, "chat_template", None):
            raise InputError("it has messages, but the model has no chat template; give a prompt")
        if self._takes_images:
            messages = [m | {"content": _parts(m["content"])} for m in messages]
            lacking = n_images - sum(part["type"] == "image" for m in messages for part in m["content"])
            first = next((m for m in messages if m["role"] == "user"), messages[0])
            first["content"] = [{"type": "image"}] * lacking + first["content"]
        text: str = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text

    def _process(self, text: str, images: list[Image]) -> dict[str, torch.Tensor]:
        bos = self._tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt"}
        if bos and text.startswith(bos):
            options["add_special_tokens"] = False
        try:
            if self._takes_images:
                return dict(self._processor(text=[text], images=[images] if images else None, **options))
            if self._truncate:
                options |= {"truncation": True, "max_length": self._truncate}
            return dict(self._tokenizer([text], verbose=False, **options))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(f"the model's processor cannot prepare it: {error}") from error

    def _check(self, row: int, sample: Sample, tensors: dict[str, torch.Tensor]) -> Encoded:
        ids = tensors["input_ids"]
        length = ids.shape[1]
        if not length:
            raise InputError("its prompt has no tokens")
        if self._max_length is not None and length > self._max_length:
            raise InputError(
                f"its prompt has {length} tokens, but the model has positions for {self._max_length}; "
                'shorten it, set data.truncate, or pass it over with run.on_error = "skip"'
            )
        image = self._image_positions(tensors)
        if "image_mean" in self._tokens and not image.any():
            raise InputError("tokens image_mean: it has no image positions")
        if "text_mean" in self._tokens and bool(image.all()):
            raise InputError("tokens text_mean: it has no text positions")
        tensors.setdefault("attention_mask", ids.new_ones(ids.shape))
        sequence = {
            key: value
            for key, value in tensors.items()
            if key.endswith(("_ids", "_mask")) and not key.startswith("pixel") and value.shape[:2] == ids.shape
        }
        other = {key: value for key, value in tensors.items() if key not in sequence}
        return Encoded(row, sequence, other, image)

    def _image_positions(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids = tensors["input_ids"][0]
        if "image_embeds_position_mask" in tensors:
            return tensors["image_embeds_position_mask"][0].bool()
        if self._image_token_id is None:
            return ids.new_zeros(ids.shape).bool()
        return ids == self._image_token_id


def _open_image(path: Path) -> Image:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise InputError(f"there is no image {path}") from None
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"the image {path} cannot be read: {error}") from error


def _parts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image"} if part.get("type") == "image" else dict(part) for part in content]
