"""What a store must hold: one sample at a time through the ordinary model with its head, as transformers has it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonde.engine import Sample
from sonde.engine.config import ModelSection
from sonde.engine.models import find_port

ENCODERS = ("bert", "roberta")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a family without the engine.

    Attributes
    ----------
    blocks
        Name of the stack in the model with its head.
    mark
        What stands for an image in a raw prompt.
    image_token
        The token that stands for image content in the model's input; that of the mark if there is none.
    first_state
        Point of the stream that ``hidden_states`` begins with.
    states_are_inputs
        Whether ``hidden_states`` are what the next block is given.
    language
        Name of the language side, where the model refuses text without an image but its language side takes it.
    vision
        Name of the vision tower's stack; None if its patches cannot be told apart by sample.
    """

    blocks: str = "model.layers"
    mark: str | None = None
    image_token: str | None = None
    first_state: int = 0
    states_are_inputs: bool = True
    language: str | None = None
    vision: str | None = None


_LANGUAGE, _TOWER = "model.language_model.layers", "model.vision_tower.encoder.layers"
_QWEN, _PAD = "<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>"
_OPT = "language_model.model.decoder.layers"
KNOWN = {
    "bert": Known("bert.encoder.layer"),
    "roberta": Known("roberta.encoder.layer"),
    "gpt2": Known("transformer.h"),
    "gpt_neox": Known("gpt_neox.layers"),
    "opt": Known("model.decoder.layers"),
    **dict.fromkeys(("falcon", "bloom", "gptj"), Known("transformer.h")),
    # Its hidden states leave the embeddings out.
    "mamba2": Known("backbone.layers", first_state=1),
    **dict.fromkeys(
        ("llava", "llava_next", "llava_onevision", "paligemma"), Known(_LANGUAGE, "<image>", vision=_TOWER)
    ),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_5"), Known(_LANGUAGE, _QWEN, _PAD, vision="model.visual.blocks")),
    # Adds features of the vision tower behind blocks, which its hidden states leave out.
    "qwen3_vl": Known(_LANGUAGE, _QWEN, _PAD, vision="model.visual.blocks", states_are_inputs=False),
    "kosmos-2": Known("text_model.model.layers", "", language="text_model", vision="vision_model.model.encoder.layers"),
    "internvl": Known(_LANGUAGE, "<IMG_CONTEXT>", vision="model.vision_tower.encoder.layer"),
    "gemma3": Known(_LANGUAGE, "<start_of_image>", "<image_soft_token>", vision=_TOWER),
    "gemma4": Known(_LANGUAGE, "<image>"),
    **dict.fromkeys(
        ("idefics3", "smolvlm"),
        Known("model.text_model.layers", "<image>", vision="model.vision_model.encoder.layers"),
    ),
    **dict.fromkeys(("mistral3", "pixtral"), Known(_LANGUAGE, "[IMG]", vision="model.vision_tower.transformer.layers")),
    "llama4": Known("language_model.model.layers", "<|image|>", "<|patch|>", vision="vision_model.model.layers"),
    "mllama": Known(_LANGUAGE, "<|image|>"),
    "molmo2": Known(_LANGUAGE, "<|image|>", "<im_patch>", vision="model.vision_tower.layers"),
    "qwen_vl": Known("language_model.layers", "<img><imgpad></img>", "<imgpad>", vision="vision.blocks"),
    "emu": Known("language_model.layers", "[IMG]<image>[/IMG]", "<image>", vision="vision.encoder.layers"),
    "lavit": Known("language_model.layers", "<img><image></img>", "<image>", vision="vision.encoder.layers"),
    **dict.fromkeys(
        ("blip-2", "instructblip"),
        Known(_OPT, "", "<image>", language="language_model", vision="vision_model.encoder.layers"),
    ),
}


def known(model_type: str) -> Known:
    """What is known of a family."""
    return KNOWN.get(model_type, Known())


class Reference:
    """The head model of a checkpoint and its processor."""

    def __init__(self, folder: Path, model_type: str, dtype: str = "float32") -> None:
        import torch
        import transformers as hf

        self.model_type = model_type
        self._known = known(model_type)
        self.takes_images = self._known.mark is not None
        self._port = find_port(str(folder))
        if self._port is not None:
            # These are held against what the published code computes; here, runs of one sample against the engine's.
            loaded = self._port.load(folder, ModelSection(name=str(folder), dtype=dtype))
            self.model, self.processor = loaded.module.eval(), loaded.processor
        elif self.takes_images:
            head, self.processor = hf.AutoModelForImageTextToText, hf.AutoProcessor.from_pretrained(folder)
        else:
            head = hf.AutoModelForMaskedLM if model_type in ENCODERS else hf.AutoModelForCausalLM
            self.processor = hf.AutoTokenizer.from_pretrained(folder)
        if self._port is None:
            self.model = head.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self._points: dict[int, NDArray[np.float32]] = {}
        self._patches: dict[int, NDArray[np.float32]] = {}
        blocks = list(self.model.get_submodule(self._known.blocks))
        for point, block in enumerate(blocks):
            block.register_forward_pre_hook(self._keep_input(point), with_kwargs=True)
        blocks[-1].register_forward_hook(self._keep_output(len(blocks)))
        for layer, block in enumerate(self.model.get_submodule(self._known.vision) if self._known.vision else ()):
            block.register_forward_hook(self._keep_patches(layer))

    def _keep_input(self, point: int) -> Any:
        def hook(module: Any, args: Any, kwargs: Any) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            self._points[point] = x[0].float().numpy().copy()

        return hook

    def _keep_output(self, point: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            self._points[point] = x[0].float().numpy().copy()

        return hook

    def _keep_patches(self, layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            self._patches[layer] = x.flatten(0, -2).float().numpy().copy()

        return hook

    def inputs(self, sample: Sample, *, chat: bool) -> Any:
        """Model inputs of one sample."""
        images = [Image.open(path).convert("RGB") for path in sample.images]
        if chat:
            turns = sample.messages or ({"role": "user", "content": [{"type": "text", "text": sample.prompt}]},)
            turns = [dict(turn) for turn in turns]
            turns[0]["content"] = [{"type": "image", "image": image} for image in images] + turns[0]["content"]
            if self._port is not None:
                text = self.processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                return self.processor(text=[text], images=[images] if images else None, return_tensors="pt")
            return self.processor.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
        if not self.takes_images:
            return self.processor(sample.prompt, return_tensors="pt")
        text = str(self._known.mark) * len(images) + str(sample.prompt)
        return self.processor(text=[text], images=[images] if images else None, return_tensors="pt")

    @property
    def points(self) -> dict[int, NDArray[np.float32]]:
        """Point of the stream -> its states in the latest run, ``[position, hidden]``."""
        return dict(self._points)

    def run(self, sample: Sample, *, chat: bool = False) -> dict[tuple[str, str, int], NDArray[np.float32]]:
        """(site, tokens, layer) -> vector, for every site, tokens and layer that the sample has."""
        import torch

        inputs = self.inputs(sample, chat=chat)
        floats = {k: v.to(self.model.dtype) for k, v in inputs.items() if v.is_floating_point() and k != "noise"}
        inputs = dict(inputs) | floats
        model = self.model
        if self._known.language and not sample.images:
            model = model.get_submodule(self._known.language)
            inputs = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        self._points.clear()
        self._patches.clear()
        if getattr(model, "chooses_image_tokens", False) and sample.images:
            inputs = self._chosen(inputs)
        with torch.no_grad():
            outputs = model(**inputs, output_hidden_states=True)
        # BLIP-2 and its like return those of the vision side beside them.
        states = getattr(outputs, "language_model_outputs", outputs).hidden_states
        states = [state[0].float().numpy() for state in states]
        points, last = self._points, max(self._points)
        left_out = [point for point in range(last) if point not in points]
        assert len(states) == last + 1 - len(left_out)
        for point in left_out:
            # The block was passed over, as Mllama does with its cross-attention on text alone.
            points[point] = points[point + 1]
            states.insert(point, points[point])
        if self._known.states_are_inputs:
            for point, state in enumerate(states[:-1], self._known.first_state):
                np.testing.assert_array_equal(state, points[point])
        streams = {("embed", 0): points[0]}
        for layer in range(last):
            streams["resid_pre", layer] = points[layer]
            streams["resid_post", layer] = points[layer + 1]
        if self.model_type in ENCODERS:
            np.testing.assert_array_equal(states[-1], points[last])
        else:
            streams["final_norm", last - 1] = states[-1]
        image = self._image_positions(inputs)
        out = {}
        for (site, layer), x in streams.items():
            out[site, "last", layer], out[site, "first", layer] = x[-1], x[0]
            out[site, "mean", layer], out[site, "text_mean", layer] = x.mean(axis=0), x[~image].mean(axis=0)
            if image.any():
                out[site, "image_mean", layer] = x[image].mean(axis=0)
        for layer, x in self._patches.items():
            out["vision/resid_post", "mean", layer] = out["vision/resid_post", "image_mean", layer] = x.mean(axis=0)
        if image.any():
            x = points[0][image]
            out["connector", "mean", 0] = out["connector", "image_mean", 0] = x.mean(axis=0)
            out["connector", "last", 0] = x[-1]
        return out

    def _chosen(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The inputs with the places alone that the model fills."""
        import torch

        with torch.no_grad():
            features, kept = self.model.choose(inputs["pixel_values"], inputs["noise"])
        ids = inputs["input_ids"]
        there = torch.ones_like(ids, dtype=torch.bool)
        there[ids == self.model.config.image_token_id] = kept.flatten()
        assert not there.all()
        return {"input_ids": ids[there].unsqueeze(0), "image_features": features}

    def _image_positions(self, inputs: Any) -> NDArray[np.bool_]:
        ids = inputs["input_ids"][0].numpy()
        if "image_embeds_position_mask" in inputs:
            return np.asarray(inputs["image_embeds_position_mask"][0].numpy(), dtype=bool)
        token = self._known.image_token or self._known.mark
        if not token:
            return np.zeros(len(ids), dtype=bool)
        return np.asarray(ids == self.processor.tokenizer.convert_tokens_to_ids(token))
