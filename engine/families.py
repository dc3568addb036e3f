"""The families of models that the tests run over, and how each was verified."""

from __future__ import annotations

from dataclasses import dataclass

_VERIFIED = "random weights: equals output_hidden_states"


@dataclass(frozen=True, slots=True)
class Family:
    """One family of transformers models: its ``model_type``, what it takes, how it was verified."""

    name: str
    model_type: str
    takes: str
    verified: str = _VERIFIED


FAMILIES: tuple[Family, ...] = (
    Family("BERT", "bert", "text", "trained MiniLM and random weights: equals output_hidden_states"),
    Family("RoBERTa", "roberta", "text"),
    Family("GPT-2", "gpt2", "text"),
    Family("GPT-NeoX", "gpt_neox", "text"),
    Family("OPT", "opt", "text"),
    Family("Llama", "llama", "text"),
    Family("Mistral", "mistral", "text"),
    Family("Qwen2", "qwen2", "text"),
    Family("Qwen3", "qwen3", "text"),
    Family("Gemma 2", "gemma2", "text"),
    Family("Phi-3", "phi3", "text"),
    Family("OLMo-2", "olmo2", "text"),
    Family("LLaVA", "llava", "text and images"),
    Family("Qwen2.5-VL", "qwen2_5_vl", "text and images"),
    Family("Kosmos-2", "kosmos-2", "text and one image"),
)
