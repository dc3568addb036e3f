"""LaVIT: EVA's patches, of which some are kept and merged, in a LLaMA."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Blip2VisionModel, LlamaModel

from sonde.engine.models.image_text import ImageTextModel

from .config import LaVITConfig
from .merger import Merger
from .selector import Selector, kept


class LaVITModel(ImageTextModel):
    """LaVIT without its head, and without what generates images."""

    config_class = LaVITConfig
    chooses_image_tokens = True

    def __init__(self, config: LaVITConfig) -> None:
        super().__init__(config)
        vision: Any = Blip2VisionModel(config.vision_config)
        # The last block's output goes on as it is.
        vision.post_layernorm = nn.Identity()
        self.vision = vision
        self.merger = Merger(config)
        self.projection = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)
        self.selector = Selector(config.predictor_sizes)

    def choose(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See images, and choose which of their patches become tokens.

        Parameters
        ----------
        pixel_values
            ``[image, channel, height, width]``.
        noise
            ``[image, patch, 2]``, added to the log-probabilities of keeping and of dropping; None: the likelier.

        Returns
        -------
        features
            ``[vector, hidden]``: those of the kept patches, in raster order, those of all images end to end.
        kept
            bool ``[image, patch]``.
        """
        patches = self.vision(pixel_values).last_hidden_state[:, 1:]
        chosen = kept(self.selector(patches), noise)
        return self.projection(self.merger(patches, chosen))[chosen], chosen

    def image_features(self, pixel_values: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        """What the language model is given of images, ``[vector, hidden]``; see `choose`."""
        return self.choose(pixel_values, **inputs)[0]
