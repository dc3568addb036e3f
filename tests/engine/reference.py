"""What a store must hold: one sample at a time through the ordinary model with its head, as transformers has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonde.engine import Sample

ENCODERS = ("bert", "roberta")
_LAST_BLOCK = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "llava": "model.language_model.layers",
    "qwen2_5_vl": "model.language_model.layers",
    "kosmos-2": "text_model.model.layers",
}
_PLACEHOLDER = {"llava": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
_IMAGE_TOKEN = {"llava": "<image>", "qwen2_5_vl": "<|image_pad|>"}


class Reference:
    """The head model of a checkpoint and its processor."""

    def __init__(self, folder: Path, model_type: str, dtype: str = "float32") -> None:
        import torch
        import transformers as hf

        self.model_type = model_type
        self.takes_images = model_type in ("llava", "qwen2_5_vl", "kosmos-2")
        if self.takes_images:
            head, self.processor = hf.AutoModelForImageTextToText, hf.AutoProcessor.from_pretrained(folder)
        else:
            head = hf.AutoModelForMaskedLM if model_type in ENCODERS else hf.AutoModelForCausalLM
            self.processor = hf.AutoTokenizer.from_pretrained(folder)
        self.model = head.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._last_block: Any = None
        blocks = self.model.get_submodule(_LAST_BLOCK.get(model_type, "model.layers"))
        blocks[-1].register_forward_hook(self._keep)

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self._last_block = output[0] if isinstance(output, tuple) else output

    def inputs(self, sample: Sample, *, chat: bool) -> Any:
        """Model inputs of one sample."""
        images = [Image.open(path).convert("RGB") for path in sample.images]
        if chat:
            turns = sample.messages or ({"role": "user", "content": [{"type": "text", "text": sample.prompt}]},)
            turns = [dict(turn) for turn in turns]
            turns[0]["content"] = [{"type": "image", "image": image} for image in images] + turns[0]["content"]
            return self.processor.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
        if not self.takes_images:
            return self.processor(sample.prompt, return_tensors="pt")
        text = _PLACEHOLDER.get(self.model_type, "") * len(images) + str(sample.prompt)
        return self.processor(text=text, images=images or None, return_tensors="pt")

    def run(self, sample: Sample, *, chat: bool = False) -> dict[tuple[str, str, int], NDArray[np.float32]]:
        """(site, tokens, layer) -> vector, for every site, tokens and layer that the sample has."""
        import torch

        inputs = self.inputs(sample, chat=chat)
        floats = {k: v.to(self.model.dtype) for k, v in inputs.items() if v.is_floating_point()}
        inputs = dict(inputs) | floats
        # Kosmos-2 refuses text alone; its language model takes it.
        alone = self.model_type == "kosmos-2" and not sample.images
        model = self.model.text_model if alone else self.model
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states
        states = [state[0].float().numpy() for state in states]
        last = self._last_block[0].float().numpy()
        streams = {("embed", 0): states[0]}
        layers = len(states) - 1
        for layer in range(layers):
            streams["resid_pre", layer] = states[layer]
            streams["resid_post", layer] = states[layer + 1] if layer < layers - 1 else last
        if self.model_type in ENCODERS:
            np.testing.assert_array_equal(states[-1], last)
        else:
            streams["final_norm", layers - 1] = states[-1]
        image = self._image_positions(inputs)
        out = {}
        for (site, layer), x in streams.items():
            out[site, "last", layer], out[site, "first", layer] = x[-1], x[0]
            out[site, "mean", layer], out[site, "text_mean", layer] = x.mean(axis=0), x[~image].mean(axis=0)
            if image.any():
                out[site, "image_mean", layer] = x[image].mean(axis=0)
        return out

    def _image_positions(self, inputs: Any) -> NDArray[np.bool_]:
        ids = inputs["input_ids"][0].numpy()
        if "image_embeds_position_mask" in inputs:
            return np.asarray(inputs["image_embeds_position_mask"][0].numpy(), dtype=bool)
        token = _IMAGE_TOKEN.get(self.model_type)
        if token is None:
            return np.zeros(len(ids), dtype=bool)
        return np.asarray(ids == self.processor.tokenizer.convert_tokens_to_ids(token))
