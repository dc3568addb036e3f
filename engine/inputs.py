"""Samples to model inputs: images decoded, prompts rendered, text tokenised, one sample at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from sonde.errors import InputError

from .alignment import Heard
from .capture import CONNECTOR, VISION, Capture
from .encoded import Encoded
from .marks import Marks
from .model import Model
from .pixels import Pictures, count_vision_rows
from .sample import Sample
from .selectors import index_of, needs_image, needs_text
from .structure import find_rope_changes, text_side

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Processors that put the tokens of an image, one to a prompt, in front of it themselves.
_PLACES_IMAGE = ("kosmos-2", "blip-2", "instructblip")


class Encoder:
    """Prepares samples for one model; safe to call from several threads.

    Parameters
    ----------
    model
        Its processor is used.
    capture
        The sites and token selectors that each sample must have positions for.
    prompt_format
        ``raw``: the prompt as it is (image placeholders that it lacks are put in front of it); ``chat``: through the
        model's chat template as a user's turn that the model is about to answer; ``auto``: chat for image-text
        models that have a template, else raw. Samples with messages always go through the template.
    truncate
        Cut prompts without images to this many tokens.
    padded
        Whether samples may be padded; if not, only those of one length are run together.

    Raises
    ------
    InputError
        If the model has no chat template for ``chat``, ``truncate`` leaves no room for text, or the model can have no
        positions for a selector.
    """

    def __init__(
        self,
        model: Model,
        capture: Capture,
        prompt_format: Literal["auto", "raw", "chat"] = "auto",
        truncate: int | None = None,
        *,
        padded: bool = True,
    ) -> None:
        self._processor = model.processor
        # A tokenizer keeps its truncation from call to call, so threads that want another need another tokenizer.
        self._truncating = copy.deepcopy(model.processor) if truncate else model.processor
        self._tokenizer = getattr(model.processor, "tokenizer", model.processor)
        self._takes_images = model.takes_images
        self._image_token_id = model.image_token_id
        self._config = model.module.config
        self._text_alone = text_side(model.module) is not model.module
        self._places_image = self._config.model_type in _PLACES_IMAGE
        token = getattr(model.processor, "image_token", None)
        self._image_token = None if token is None else str(token)
        self._placeholder = _placeholder(self._config, self._tokenizer, self._image_token)
        if token is not None and self._tokenizer.convert_tokens_to_ids(str(token)) != model.image_token_id:
            # The processor writes all that stands for an image itself, marks with it, where it finds this (Molmo2).
            self._placeholder = str(token)
        self._max_length = model.max_length
        self._padded = padded
        self._rope_changes = find_rope_changes(self._config)
        self._capture = capture
        self._truncate = truncate
        self._marks = Marks(capture.tokens, model.processor, self._config)
        has_template = bool(getattr(model.processor, "chat_template", None))
        if prompt_format == "auto":
            prompt_format = "chat" if has_template and self._takes_images else "raw"
        if prompt_format == "chat" and not has_template:
            raise InputError("data.prompt_format is chat, but the model has no chat template; say raw")
        self.prompt_format: str = prompt_format
        n_special = self._tokenizer.num_special_tokens_to_add()
        if truncate is not None and truncate <= n_special:
            raise InputError(
                f"data.truncate {truncate} leaves no room for text: the tokenizer puts {n_special} tokens around it"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What decides how samples are prepared, besides the model: the same for all runs into one store."""
        return {"prompt_format": self.prompt_format, "truncate": self._truncate}

    @property
    def pad_token_id(self) -> int:
        """Id that fills positions behind a sample's end."""
        return int(self._tokenizer.pad_token_id or 0)

    def limit(self, max_length: int) -> None:
        """Take no prompts of more tokens than this."""
        self._max_length = min(max_length, self._max_length or max_length)

    def __call__(self, row: int, sample: Sample) -> Encoded:
        """Prepare one sample.

        Raises
        ------
        InputError
            If an image cannot be read, the prompt is too long for the model, or it has no positions for a selector.
        """
        return self._encode(row, sample, Pictures(sample.images, self._processor, once=False))

    def several(self, rows: Sequence[int], samples: Sequence[Sample]) -> list[Encoded | InputError]:
        """Prepare samples that have the same images, or none: these are opened and processed once.

        Returns
        -------
        list
            For each sample what the model takes, or why it cannot be used. Tensors that are alike are the same object.
        """
        pictures = Pictures(samples[0].images, self._processor, once=len(samples) > 1)
        first: Encoded | None = None
        results: list[Encoded | InputError] = []
        for row, sample in zip(rows, samples, strict=True):
            try:
                encoded = self._encode(row, sample, pictures)
            except InputError as error:
                results.append(error)
                continue
            first = first or encoded
            results.append(encoded.sharing(first))
        return results

    def _encode(self, row: int, sample: Sample, pictures: Pictures) -> Encoded:
        try:
            images = pictures.images
            if images and not self._takes_images:
                raise InputError("it has an image, but the model takes text only")
            if len(images) > 1 and self._places_image:
                raise InputError(f"it has {len(images)} images, but the model takes one to a prompt")
            text, templated = self._render(sample)
            heard: list[Heard] = []
            tensors = self._process(text, templated, images, pictures.processor, heard)
            encoded = self._check(row, tensors, bool(images))
            return replace(encoded, marks=self._mark(sample, text, heard, encoded))
        except InputError as error:
            raise InputError(f"sample {sample.id!r}: {error}") from error

    def _render(self, sample: Sample) -> tuple[str, bool]:
        """Text that the tokenizer is given, and whether a chat template made it."""
        n_images = len(sample.images)
        turns = self._turns(sample)
        if turns is not None:
            text, templated = self._through_template(turns, n_images), True
        else:
            assert sample.prompt is not None
            text, templated = sample.prompt, False
        if self._image_token is None:
            return text, templated
        there = text.count(self._image_token)
        if there and self._places_image:
            raise InputError(f"its prompt has {self._image_token}, which the model's processor places itself")
        if there > n_images:
            raise InputError(f"its prompt has {there} of {self._image_token} for {n_images} images")
        # A template places images by marks of its own kind; a raw prompt may leave them out.
        placed = templated or self._places_image
        return text if placed else self._placeholder * (n_images - there) + text, templated

    def _turns(self, sample: Sample) -> Sequence[Mapping[str, Any]] | None:
        """What goes through the chat template; None if the prompt is given as it is."""
        if sample.messages is None and self.prompt_format == "chat":
            return ({"role": "user", "content": sample.prompt},)
        return sample.messages

    def _through_template(self, turns: Sequence[Mapping[str, Any]], n_images: int) -> str:
        import jinja2

        if not getattr(self._processor, "chat_template", None):
            raise InputError("it has messages, but the model has no chat template; give a prompt")
        messages = [{**turn, "content": _parts(turn["content"])} for turn in turns]
        there = sum(part["type"] == "image" for m in messages for part in m["content"])
        if there > n_images:
            raise InputError(f"its messages have places for {there} images, but it names {n_images}")
        if self._takes_images:
            first = next((m for m in messages if m["role"] == "user"), messages[0])
            first["content"] = [{"type": "image"}] * (n_images - there) + first["content"]
        else:
            # Templates of language models take a turn's content as one text.
            messages = [m | {"content": "".join(part["text"] for part in m["content"])} for m in messages]
        try:
            return str(self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except (ValueError, TypeError, LookupError, jinja2.TemplateError) as error:
            raise InputError(f"the model's chat template refuses its messages: {error}") from error

    def _process(
        self, text: str, templated: bool, images: list[Image], processor: Any, heard: list[Heard]
    ) -> dict[str, torch.Tensor]:
        bos = self._tokenizer.bos_token
        options: dict[str, Any] = {"return_tensors": "pt"}
        # As transformers has it: a chat template says all of a text model's special tokens, and none is said twice.
        if (templated and not self._takes_images) or (bos and text.startswith(bos)):
            options["add_special_tokens"] = False
        if self._truncate and not images:
            processor = self._truncating
            options |= {"truncation": True, "max_length": self._truncate}
        processor = self._marks.listening(processor, heard)
        try:
            if self._takes_images:
                return dict(processor(text=[text], images=[images] if images else None, **options))
            return dict(processor([text], verbose=False, **options))
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, StopIteration) as error:
            raise InputError(f"the model's processor cannot prepare it: {error}") from error

    def _check(self, row: int, tensors: dict[str, torch.Tensor], has_image: bool) -> Encoded:
        ids = tensors["input_ids"]
        length = ids.shape[1]
        if not length:
            raise InputError("its prompt has no tokens")
        if self._max_length is not None and length > self._max_length:
            # Tokens that stand for an image cannot be cut off.
            remedy = "shorten it" if has_image else "shorten it, or set data.truncate"
            raise InputError(
                f"its prompt has {length} tokens, but the model has positions for {self._max_length}; {remedy}"
            )
        image = self._image_positions(tensors)
        if has_image and (self._image_token_id is not None or self._places_image) and not image.any():
            raise InputError("its images have no place in its prompt; the model's chat template leaves them out")
        self._check_positions(length, int(image.sum()))
        tensors.setdefault("attention_mask", ids.new_ones(ids.shape))
        # What is there for training (PaliGemma).
        tensors.pop("labels", None)
        if self._text_alone and not has_image:
            # What is there for the vision side (InstructBLIP) is unknown to the language side.
            tensors = {key: tensors[key] for key in ("input_ids", "attention_mask")}
        sequence = {
            key: value
            for key, value in tensors.items()
            if key.endswith(("_ids", "_mask")) and not key.startswith("pixel") and value.shape[:2] == ids.shape
        }
        other = {key: value for key, value in tensors.items() if key not in sequence}
        apart = sum(length > change for change in self._rope_changes) if self._padded else length
        return Encoded(row, sequence, other, image, count_vision_rows(tensors, self._config), apart)

    def _mark(self, sample: Sample, text: str, heard: Sequence[Heard], encoded: Encoded) -> dict[str, torch.Tensor]:
        """Positions that the sample has for the selectors of its own; ``text`` is what the processor was given."""
        n_images, ids = len(sample.images), encoded.sequence["input_ids"][0]

        def render(turns: Sequence[Mapping[str, Any]]) -> str:
            return self._through_template(turns, n_images)

        of_spans = self._marks.of_spans(sample, self._turns(sample), render, text, heard, ids, encoded.image)
        return of_spans | self._marks.of_regions(encoded.other, encoded.image, n_images)

    def _check_positions(self, length: int, n_image: int) -> None:
        """Raise InputError if a site or selector has no position to read in a sample."""
        for tokens in self._capture.tokens:
            if needs_image(tokens) and not n_image:
                raise InputError(f"tokens {tokens}: it has no image positions")
            if needs_text(tokens) and n_image == length:
                raise InputError(f"tokens {tokens}: it has no text positions")
        for site in (CONNECTOR, VISION):
            if site in self._capture.sites and not n_image:
                raise InputError(f"site {site}: it has no image")
        # The connector's positions are the image's alone.
        there = n_image if CONNECTOR in self._capture.sites else length
        for tokens in self._capture.tokens:
            n = index_of(tokens)
            if n is not None and not -there <= n < there:
                of_image = " at the site connector" if CONNECTOR in self._capture.sites else ""
                raise InputError(f"tokens {tokens}: it has {there} positions{of_image}")

    def _image_positions(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids = tensors["input_ids"][0]
        if "image_embeds_position_mask" in tensors:
            return tensors["image_embeds_position_mask"][0].bool()
        if self._image_token_id is None:
            return ids.new_zeros(ids.shape).bool()
        return ids == self._image_token_id


def _placeholder(config: Any, tokenizer: Any, image_token: str | None) -> str:
    """What stands for an image in a prompt: its token, between the marks of start and end where the model has them."""
    for name in ("vision", "image"):
        marks = [getattr(config, f"{name}_{end}_token_id", None) for end in ("start", "end")]
        if None not in marks:
            start, end = tokenizer.convert_ids_to_tokens(marks)
            return f"{start}{image_token or ''}{end}"
    return image_token or ""


def _parts(content: Any) -> list[dict[str, Any]]:
    """Content of a turn as a list of parts, ``{"type": "text", "text": ...}`` or ``{"type": "image"}``."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    parts = []
    for part in content if isinstance(content, list | tuple) else [content]:
        if isinstance(part, Mapping) and part.get("type") == "image":
            parts.append({"type": "image"})
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise InputError(
                f"its messages hold {part!r}: give a turn's content as text, or as a list of "
                '{"type": "text", "text": ...} and {"type": "image"}'
            )
    return parts
