"""How long a vector of each site is, seen on a pass over two tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from .batches import Batch, select
from .capture import CONNECTOR, VISION, Capture
from .model import Model
from .recorder import Recorder
from .tokens import Layout

if TYPE_CHECKING:
    import torch


def some_tokens(model: Model, n: int = 2) -> dict[str, torch.Tensor]:
    """Keyword arguments of a pass over ``n`` different tokens of text, from all over the vocabulary.

    None is special: some models leave out what pads a text without being told (XLM).
    """
    import torch

    tokenizer = getattr(model.processor, "tokenizer", model.processor)
    special = {*tokenizer.all_special_ids, model.image_token_id}
    ordinary = [i for i in range(len(tokenizer)) if i not in special]
    ids = [ordinary[len(ordinary) * (k + 1) // (n + 1)] for k in range(n)]
    return {"input_ids": torch.tensor([ids], device=model.device)}


def text_batch(capture: Capture, inputs: dict[str, torch.Tensor]) -> Batch:
    """Sequences of text, as long as each other, on the device that they are on."""
    import torch

    ids = inputs["input_ids"]
    valid = torch.ones(ids.shape, dtype=torch.bool)
    layout = Layout.apart(valid, ~valid)
    selections = {name: selection.to(ids.device) for name, selection in select(capture, layout).items()}
    return Batch(torch.arange(len(ids)), inputs, layout, selections)


def widths(model: Model, capture: Capture) -> dict[str, int]:
    """Length of a vector by site.

    The connector's is that of the stream, which it is put into; the vision tower's is its blocks' own.
    """
    # Of several layers of one site all are as long.
    text = tuple(site for site in capture.sites if site not in (VISION, CONNECTOR))
    if CONNECTOR in capture.sites and "embed" not in text:
        text += ("embed",)
    layers = {site: capture.layers.get(site, (0,)) for site in text}
    found: dict[str, int] = {}
    if text:
        probe = replace(capture, sites=text, tokens=("last",), layers=layers)
        recorder = Recorder(model.module, model.blocks, probe, example=some_tokens(model))
        try:
            states = recorder.run(text_batch(probe, some_tokens(model)))
            found = {site: x.shape[-1] for site, x in states.reduced.items()}
        finally:
            recorder.close()
    if CONNECTOR in capture.sites:
        found[CONNECTOR] = found["embed"]
    if VISION in capture.sites:
        # Where there are both, hidden_size is what the tower is projected to (Qwen2-VL).
        config = model.module.config.vision_config
        sizes = [getattr(config, name, None) for name in ("embed_dim", "hidden_size")]
        found[VISION] = next(size for size in sizes if isinstance(size, int))
    return found
