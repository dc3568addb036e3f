"""Whether what pads a sample leaves it as it is: on its own, or with a mask."""

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
        one, other = recorder.run(text_batch(capture, {"input_ids": texts})).reduced["resid_post"][0].float()
    finally:
        recorder.close()
    change, size, rounding = (one - other).abs(), one.abs(), 4 * torch.finfo(model.module.dtype).eps
    if (change.amax(dim=1) > rounding * size.amax(dim=1))[:_SAME].any():
        return False
    # By the middle value as well: a first position may have a few that are thousands of times as large as the others.
    of_middle = change.median(dim=1).values / size.median(dim=1).values
    return bool((of_middle[:_SAME] <= rounding / 2).all() and of_middle[_SAME] > 2 * rounding)


def keeps_padding_out(model: Model) -> bool:
    """Find out whether a text's states are the same alone and padded, with a mask against what pads it.

    Some encoders take no notice of it (FNet), or of some of it (MobileBERT, Nyströmformer).
    """
    import torch

    capture = Capture.plan(("resid_pre", "resid_post"), ("all",), "all", model.n_layers)
    text = some_tokens(model, _OTHER)["input_ids"]
    tokenizer = getattr(model.processor, "tokenizer", model.processor)
    padded = torch.nn.functional.pad(text, (0, _OTHER), value=int(tokenizer.pad_token_id or 0))
    mask = (torch.arange(padded.shape[1], device=text.device) < _OTHER).to(text.dtype).unsqueeze(0)
    recorder = Recorder(model.module, model.blocks, capture)
    try:
        runs = [
            recorder.run(text_batch(capture, inputs)).kept
            for inputs in ({"input_ids": text}, {"input_ids": padded, "attention_mask": mask})
        ]
    finally:
        recorder.close()
    for site, alone in runs[0].items():
        alone, beside = alone.float(), runs[1][site][:, :_OTHER].float()
        change, size = (alone - beside).abs().median(dim=2).values, alone.abs().median(dim=2).values
        if not (change <= 16 * torch.finfo(model.module.dtype).eps * size).all():
            return False
    return True
