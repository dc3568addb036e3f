"""Images as vLLM takes them: the tensors of the model's own processor, and the positions that are theirs."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sonde.engine.capture import Capture
from sonde.engine.encoded import Encoded
from sonde.engine.inputs import Encoder
from sonde.engine.model import Model
from sonde.engine.picture import ImageBytes
from sonde.engine.pixels import Pictures
from sonde.engine.sample import Sample
from sonde.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch


class Images:
    """Makes what vLLM takes of prepared samples with images.

    It is vLLM's knowledge which tensors are of which image, and ours what is in them. Whether both mean the same is
    seen on a picture that is prepared by either, before the first sample: some of vLLM's models want pixels that are
    not normalised yet, or other tensors than the model's processor makes.

    Parameters
    ----------
    config
        vLLM's, of the whole engine.
    model
        Its processor has prepared the samples.
    """

    def __init__(self, config: Any, model: Model) -> None:
        from vllm.multimodal import MULTIMODAL_REGISTRY

        self._config = config
        self._model = model
        self._processor = MULTIMODAL_REGISTRY.create_processor(config.model_config)
        self._alike = False

    def __call__(self, sample: Encoded, name: str) -> Any:
        """An input of the engine, whose images it knows by a name.

        Raises
        ------
        ModelError
            If vLLM means something else by an image than the model's processor.
        """
        if not self._alike:
            self._ensure_alike()
            self._alike = True
        return self._input(sample, name)

    def _input(self, sample: Encoded, name: str) -> Any:
        from vllm.inputs.engine import mm_input
        from vllm.multimodal.inputs import PlaceholderRange

        items = self._items(sample.other)
        ranges = image_ranges(sample.image, len(items["image"]))
        places = [PlaceholderRange(start, len(mask), None if mask.all() else mask) for start, mask in ranges]
        names = [f"{name}/{i}" for i in range(len(places))]
        return mm_input(sample.sequence["input_ids"][0].tolist(), items, {"image": names}, {"image": places})

    def _items(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        from transformers import BatchFeature
        from vllm.multimodal.inputs import MultiModalKwargsItems

        dtype = self._config.model_config.dtype
        inputs = BatchFeature({key: x.to(dtype) if x.is_floating_point() else x for key, x in tensors.items()})
        try:
            items = MultiModalKwargsItems.from_hf_inputs(inputs, self._processor._get_mm_fields_config(inputs, {}))
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, NotImplementedError) as error:
            raise self._refusal(f"it cannot take {', '.join(tensors)}: {type(error).__name__} {error}") from error
        if set(items) != {"image"}:
            raise self._refusal(f"it makes {', '.join(items) or 'nothing'} of {', '.join(tensors)}")
        return items

    def _ensure_alike(self) -> None:
        """Prepare a picture by either way, and compare."""
        from vllm.renderers import renderer_from_config

        probe = _Probe(self._model, Capture.plan(("resid_post",), ("last",), (0,), self._model.n_layers))
        sample = Sample("picture", prompt="a", images=(_picture(),))
        ours = self._input(probe(0, sample), "ours")
        try:
            (theirs,) = renderer_from_config(self._config).render_cmpl([probe.prompt(sample)])
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError, IndexError) as error:
            raise self._refusal(f"it refuses a picture: {type(error).__name__} {error}") from error
        mine, its = (_tokens(x) for x in (ours, theirs))
        if mine != its:
            raise self._refusal(
                f"an image has the tokens {mine[:8]}… there, {len(mine)} of them, and {its[:8]}…, {len(its)}"
            )
        data, expected = (x["mm_kwargs"]["image"][0].get_data() for x in (ours, theirs))
        for key, value in expected.items():
            if key not in data or not _same(data[key], value):
                raise self._refusal(f"{key} is something else there")

    def _refusal(self, why: str) -> ModelError:
        return ModelError(
            f"vLLM's {type(self._processor).__name__} does not take images as the model's processor prepares them: "
            f'{why}; run the model with backend = "transformers"'
        )


class _Probe(Encoder):
    """Gives vLLM what it gives the model's own processor."""

    def prompt(self, sample: Sample) -> Any:
        images = Pictures(sample.images, self._processor, once=False).images
        return {"prompt": self._render(sample)[0], "multi_modal_data": {"image": list(images)}}


def _picture() -> ImageBytes:
    """No two of its rows, columns or colours are alike."""
    from PIL import Image

    y, x = np.mgrid[:90, :120]
    pixels = np.stack([2 * y, 2 * x, (y + x) % 251], axis=-1).astype(np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "PNG")
        return ImageBytes(file.getvalue())


def _tokens(prompt: Any) -> list[tuple[int, int]]:
    """The positions that are the image's, counted from its first, and the tokens there."""
    (place,) = prompt["mm_placeholders"]["image"]
    own = [i for i in range(place.length) if place.is_embed is None or place.is_embed[i]]
    return [(i - own[0], prompt["prompt_token_ids"][place.offset + i]) for i in own]


def _same(mine: Any, its: Any) -> bool:
    import torch

    if not (isinstance(mine, torch.Tensor) and isinstance(its, torch.Tensor)):
        return bool(mine == its)
    return mine.dtype == its.dtype and mine.shape == its.shape and torch.allclose(mine, its, rtol=1e-2, atol=1e-5)


def image_ranges(image: torch.Tensor, n_images: int) -> list[tuple[int, torch.Tensor]]:
    """Part the positions of images by image.

    Parameters
    ----------
    image
        bool ``[position]``.

    Returns
    -------
    list
        For each image its first position, and from there to its last which are its own, bool.

    Raises
    ------
    InputError
        If it cannot be told which position is of which image.
    """
    positions = image.nonzero().flatten()
    breaks = (positions.diff() > 1).nonzero().flatten() + 1
    pieces = positions.tensor_split(breaks)
    if len(pieces) != n_images:
        # Side by side, or in rows with something between: then all must be as long as each other.
        if len(positions) % n_images:
            raise InputError(
                f"it cannot be told which of {len(positions)} positions is of which of its {n_images} images, which "
                'vLLM must know: run it with backend = "transformers"'
            )
        pieces = positions.view(n_images, -1).unbind()
    return [(int(its[0]), image[its[0] : its[-1] + 1]) for its in pieces]
