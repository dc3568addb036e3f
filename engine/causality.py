"""Whether what stands behind a position leaves it as it is: then a sample needs no mask against what pads it."""

from __future__ import annotations

from .capture import Capture
from .model import Model
from .recorder import Recorder
from .sharing import PREFIX_ATTENTION
from .widths import some_tokens, text_batch


def is_causal(model: Model) -> bool:
    """Find out whether a model's positions are independent of those behind them.

    Its attention must not say that it is bidirectional, and two texts that differ in their last token alone must be the
    same before it, to rounding.
    """
    import torch

    if model.module.config.model_type in PREFIX_ATTENTION:
        return False
    if any(getattr(module, "is_causal", None) is False for module in model.blocks.layers.modules()):
        return False
    capture = Capture.plan(("resid_post",), ("first",), [model.n_layers - 1], model.n_layers)
    ids = some_tokens(model, 4)["input_ids"][0]
    recorder = Recorder(model.module, model.blocks, capture)
    try:
        texts = torch.stack([ids[[0, 1, 2]], ids[[0, 1, 3]]])
        one, other = recorder.run(text_batch(capture, {"input_ids": texts})).reduced["resid_post"][0, :, 0].float()
    finally:
        recorder.close()
    rounding = 4 * torch.finfo(model.module.dtype).eps
    return bool((one - other).abs().max() <= rounding * one.abs().max())
