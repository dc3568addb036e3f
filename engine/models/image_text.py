"""A language model that images are put into: what the models of ours have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

if TYPE_CHECKING:
    from sonde.engine.config import ModelSection


class ImageTextConfig(PreTrainedConfig):
    """Configuration of an `ImageTextModel`.

    Attributes
    ----------
    text_config, vision_config
        Of the language model, and of the vision tower.
    image_token_id
        Stands for image content in the input, once for every vector that an image becomes.
    image_start_token_id, image_end_token_id
        Stand around an image.
    tokens_per_image
        How many vectors an image becomes, at most.
    """

    sub_configs: ClassVar[dict[str, Any]] = {"text_config": PreTrainedConfig, "vision_config": PreTrainedConfig}

    text_config: Any = None
    vision_config: Any = None
    tie_word_embeddings: bool = False
    image_token_id: int = 0
    image_start_token_id: int = 0
    image_end_token_id: int = 0
    tokens_per_image: int = 0


class ImageTextModel(PreTrainedModel, ABC):
    """A language model whose token embeddings are those of images where these stand.

    What a class of its own adds: ``self.language_model``, a model of transformers without head; its vision side, whose
    blocks are a ``ModuleList`` in ``self.vision``; and `image_features`. It is made by `build`.
    """

    config_class = ImageTextConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    language_model: Any
    vision: Any

    def get_decoder(self) -> Any:
        """The language model."""
        return self.language_model

    def get_input_embeddings(self) -> Any:
        """The language model's table of token embeddings."""
        return self.language_model.get_input_embeddings()

    @abstractmethod
    def image_features(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images.

        Parameters
        ----------
        pixel_values
            ``[image, channel, height, width]``.

        Returns
        -------
        Tensor
            ``[vector, hidden]``, those of all images end to end.
        """

    def image_places(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Where images stand: bool ``[sequence, position]``."""
        places: torch.Tensor = input_ids == self.config.image_token_id
        return places

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **inputs: torch.Tensor,
    ) -> Any:
        """Run the language model over token ids with images in them.

        Parameters
        ----------
        input_ids
            int64 ``[sequence, position]``.
        pixel_values
            ``[image, channel, height, width]``, images in the order of the sequences.
        image_features
            ``[vector, hidden]``, in place of pixels: what `image_features` makes of them.
        inputs
            What else `image_features` takes.

        Returns
        -------
        BaseModelOutputWithPast
            Of the language model; its `last_hidden_state` is behind the final norm.
        """
        embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image_features = self.image_features(pixel_values, **inputs)
        if image_features is not None:
            places = self.image_places(input_ids).unsqueeze(-1)
            embeds = embeds.masked_scatter(places, image_features.to(embeds.dtype))
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )


def build(
    cls: type[ImageTextModel],
    config: ImageTextConfig,
    section: ModelSection,
    fill: Callable[[ImageTextModel], None] | None = None,
) -> ImageTextModel:
    """Make a model as ``[model]`` says: with the weights that ``fill`` puts into it, or with random ones."""
    options: dict[str, Any] = {"dtype": getattr(torch, section.dtype)}
    if section.attention:
        options["attn_implementation"] = section.attention

    def make() -> ImageTextModel:
        make_modules: Any = cls._from_config
        model: Any = make_modules(config, **options)
        model.post_init()
        return cast(ImageTextModel, model)

    if section.weights == "random" or fill is None:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(section.seed)
            return make()
    with no_init_weights():
        model = make()
    fill(model)
    return model
