"""Whether what stands behind a position leaves it as it is: then a sample needs no mask against what pads it."""

from __future__ import annotations

from .capture import Capture
from .model import Model
from .recorder import Recorder
from .sharing import PREFIX_ATTENTION
from .widths import some_tokens, text_batch

# Tokens of the probe: those that both texts begin with, and those behind them.
_SAME, _OTHER = 2, 8


def is_causal(model: Model) -> bool:
    """Find out whether a model's positions are independent of those behind them.

    Its attention must not say that it is bidirectional, and two texts that begin with the same tokens must be the same
    there, to rounding. What says nothing counts as no: a mask is never wrong.
    """
    import torch

    if model.module.config.model_type in PREFIX_ATTENTION:
        return False
    if any(getattr(module, "is_causal", None) is False for module in model.blocks.layers.modules()):
        return False
    capture = Capture.plan(("resid_post",), ("first", "index:1", "last"), [model.n_layers - 1], model.n_layers)
    ids = some_tokens(model, _SAME + 2 * _OTHER)["input_ids"][0]
    recorder = Recorder(model.module, model.blocks, capture)
    try:
        same, *others = torch.split(ids, [_SAME, _OTHER, _OTHER])
        texts = torch.stack([torch.cat([same, other]) for other in others])
        states = recorder.run(text_batch(capture, {"input_ids": texts})).reduced["resid_post"][0].float()
    finally:
        recorder.close()
    change, size = (states[0] - states[1]).abs(), states[0].abs()
    rounding = 4 * torch.finfo(model.module.dtype).eps
    if (change.amax(dim=1) > rounding * size.amax(dim=1))[:_SAME].any():
        return False
    # By the middle value as well: a first position may have a few that are thousands of times as large as the others.
    of_middle = change.median(dim=1).values / size.median(dim=1).values
    return bool((of_middle[:_SAME] <= rounding / 2).all() and of_middle[_SAME] > 2 * rounding)
