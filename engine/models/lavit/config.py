"""LaVIT's configuration: that of a folder, and the published values for what it leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import Blip2VisionConfig, LlamaConfig

from sonde.engine.models.image_text import ImageTextConfig
from sonde.errors import ModelError

# As the published code has them; its checkpoints say nothing of the vision side.
_PUBLISHED: dict[str, Any] = {
    "image_size": 224,
    "patch_size": 14,
    "image_start_id": 32000,
    "image_end_id": 32001,
    "eva": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 4.3637},
    "merger": {"depth": 12, "heads": 16, "mlp_ratio": 4.3637},
}


class LaVITConfig(ImageTextConfig):
    """Of the whole model.

    Attributes
    ----------
    merger_layers, merger_heads, merger_size
        Blocks of the merger, heads of its attention, and the width of its feed-forward part.
    predictor_sizes
        Widths between the layers of what predicts which patches are kept.
    """

    model_type = "lavit"

    merger_layers: int = 12
    merger_heads: int = 16
    merger_size: int = 6144
    predictor_sizes: Any = (1408, 1408, 704, 352, 2)


def read_config(folder: Path, language: str = "language_model") -> LaVITConfig:
    """Read ``config.json`` of the language model's folder, and that of the whole if there is one.

    Raises
    ------
    ModelError
        If a file cannot be read.
    """
    path = folder / "config.json"
    try:
        given = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        text = LlamaConfig.from_pretrained(folder / language, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"the configuration of LaVIT in {folder} cannot be read ({reason}): fetch it again") from error
    whole = _PUBLISHED | given
    eva, merger = (_PUBLISHED[name] | given.get(name, {}) for name in ("eva", "merger"))
    width, patches = eva["width"], (whole["image_size"] // whole["patch_size"]) ** 2
    sizes = given.get("predictor", {}).get("dims", [width, width, width // 2, width // 4, 2])
    return LaVITConfig(
        text_config=text,
        vision_config=Blip2VisionConfig(
            hidden_size=width,
            intermediate_size=int(width * eva["mlp_ratio"]),
            num_hidden_layers=eva["depth"],
            num_attention_heads=eva["heads"],
            image_size=whole["image_size"],
            patch_size=whole["patch_size"],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            initializer_range=0.02,
        ),
        merger_layers=merger["depth"],
        merger_heads=merger["heads"],
        merger_size=int(width * merger["mlp_ratio"]),
        predictor_sizes=tuple(sizes),
        image_start_token_id=whole["image_start_id"],
        image_end_token_id=whole["image_end_id"],
        # The first of the codes that images are generated in: nobody reads its embedding.
        image_token_id=whole["image_end_id"] + 1,
        tokens_per_image=patches,
    )
