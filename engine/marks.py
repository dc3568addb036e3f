"""Positions that a sample itself has to say: those of its spans, and of places in its first image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sonde.errors import InputError

from .alignment import Alignment, Heard, listening
from .grid import ensure_grid, find_grid, tokens_at
from .sample import Sample
from .selectors import region_of, span_of
from .spans import Turns, narrow, place_of, texts_of, through_template

if TYPE_CHECKING:
    import torch


class Marks:
    """Finds the positions of selectors of the forms ``span:…`` and ``image:…``; safe to call from several threads.

    Parameters
    ----------
    selectors
        All that are captured; those of other forms are passed over.
    processor, config
        Of the model.

    Raises
    ------
    InputError
        If the model can have no positions for one of them.
    """

    def __init__(self, selectors: Sequence[str], processor: Any, config: Any) -> None:
        self._spans = {tokens: name for tokens in selectors if (name := span_of(tokens)) is not None}
        self._regions = [tokens for tokens in selectors if region_of(tokens) is not None]
        self._config = config
        if self._spans:
            placeholders = (getattr(processor, name, None) for name in ("image_token", "boi_token"))
            tokenizer = getattr(processor, "tokenizer", processor)
            self._alignment = Alignment(tokenizer, [str(token) for token in placeholders if token])
        if self._regions:
            ensure_grid(config, hasattr(processor, "image_processor"))

    def listening(self, processor: Any, heard: list[Heard]) -> Any:
        """The processor, with what its tokenizer is given added to ``heard`` where spans need it."""
        return listening(processor, heard) if self._spans else processor

    def of_spans(
        self,
        sample: Sample,
        turns: Turns | None,
        render: Callable[[Turns], str],
        text: str,
        heard: Sequence[Heard],
        ids: torch.Tensor,
        image: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Find the tokens of a sample's spans.

        Parameters
        ----------
        turns, render
            What went through the chat template, and the template; None if the prompt was given as it is.
        text
            What the processor was given.
        heard
            What it gave its tokenizer.
        ids, image
            int64 and bool ``[position]``: token ids, and which positions stand for image content.

        Returns
        -------
        dict
            Selector -> bool ``[position]``.

        Raises
        ------
        InputError
            If the sample has no such span, it is cut off, or cannot be followed to its tokens.
        """
        if not self._spans:
            return {}
        for tokens, name in self._spans.items():
            if name not in sample.spans:
                there = ", ".join(map(repr, sample.spans)) or "none"
                raise InputError(f"tokens {tokens}: it has no span {name!r}; its spans are {there}")
        texts = [sample.prompt or ""] if turns is None else texts_of(turns)
        places = {name: place_of(texts, name, sample.spans[name]) for name in self._spans.values()}
        if turns is None:
            # The prompt is at the end of the text, behind the places of images that it lacks.
            before = len(text) - len(texts[0])
            spans = {}
            for name, (_, *ends) in places.items():
                start, stop = narrow(texts[0], *ends)
                spans[name] = (before + start, before + stop)
        else:
            spans = through_template(turns, places, text, render)
        masks = self._alignment.positions(text, spans, heard, ids, image)
        return {tokens: masks[name] for tokens, name in self._spans.items()}

    def of_regions(
        self, tensors: Mapping[str, torch.Tensor], image: torch.Tensor, n_images: int
    ) -> dict[str, torch.Tensor]:
        """Find the tokens of places in a sample's first image; arguments and errors as of `find_grid`."""
        if not self._regions:
            return {}
        grid = find_grid(tensors, image, self._config, n_images)
        marks = {}
        for tokens in self._regions:
            marks[tokens] = image.new_zeros(image.shape)
            marks[tokens][tokens_at(grid, tokens)] = True
        return marks
