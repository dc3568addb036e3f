"""The families of models that the tests run over, and how each was verified."""

from __future__ import annotations

from dataclasses import dataclass

_VERIFIED = "random weights: equals output_hidden_states"
_PORTED = "sonde's own, from the published checkpoint: equals what the published code computes"


@dataclass(frozen=True, slots=True)
class Family:
    """One family of transformers models.

    Attributes
    ----------
    name
        As people call it.
    model_type
        Of its configuration, or of its vision tower where that sets it apart (Pixtral is a LLaVA).
    takes
        Its samples: text, with images or without; "text with images" cannot do without.
    verified
        How it was verified, or why it is not supported.
    supported
        Whether it is.
    since
        First version of transformers that has it, where that is later than the oldest that sonde runs with.
    """

    name: str
    model_type: str
    takes: str
    verified: str = _VERIFIED
    supported: bool = True
    since: str = ""

    def __post_init__(self) -> None:
        if self.since:
            object.__setattr__(self, "verified", f"{self.verified}; needs transformers {self.since} or newer")


FAMILIES: tuple[Family, ...] = (
    Family("BERT", "bert", "text", "trained MiniLM and random weights: equals output_hidden_states"),
    Family("RoBERTa", "roberta", "text"),
    Family("GPT-2", "gpt2", "text"),
    Family("GPT-NeoX", "gpt_neox", "text"),
    Family("OPT", "opt", "text"),
    Family("Llama", "llama", "text"),
    Family("Mistral", "mistral", "text"),
    Family("Mixtral", "mixtral", "text"),
    Family("Qwen2", "qwen2", "text"),
    Family("Qwen3", "qwen3", "text"),
    Family("Qwen3-MoE", "qwen3_moe", "text"),
    Family("Qwen3-Next", "qwen3_next", "text"),
    Family("Gemma 2", "gemma2", "text"),
    Family("Gemma 3 (text)", "gemma3_text", "text"),
    Family("Phi", "phi", "text"),
    Family("Phi-3", "phi3", "text"),
    Family("OLMo-2", "olmo2", "text"),
    Family("Cohere", "cohere", "text"),
    Family("Cohere 2", "cohere2", "text"),
    Family("DeepSeek-V3", "deepseek_v3", "text"),
    Family("gpt-oss", "gpt_oss", "text"),
    Family("Granite", "granite", "text"),
    Family("OLMo-3", "olmo3", "text"),
    Family("SmolLM3", "smollm3", "text"),
    Family("EXAONE 4", "exaone4", "text"),
    Family("StarCoder2", "starcoder2", "text"),
    Family("Falcon", "falcon", "text"),
    Family("BLOOM", "bloom", "text"),
    Family("GPT-J", "gptj", "text"),
    Family("LFM2", "lfm2", "text"),
    Family("Mamba-2", "mamba2", "text"),
    Family("LLaVA", "llava", "text and images"),
    Family("LLaVA-NeXT", "llava_next", "text and images"),
    Family("LLaVA-OneVision", "llava_onevision", "text and images"),
    Family("Qwen2-VL", "qwen2_vl", "text and images"),
    Family("Qwen2.5-VL", "qwen2_5_vl", "text and images"),
    Family("Qwen3-VL", "qwen3_vl", "text and images", "random weights: equals hooks on the inputs of its blocks"),
    Family("Qwen3.5", "qwen3_5", "text and images"),
    Family("InternVL", "internvl", "text and images"),
    Family("Gemma 3", "gemma3", "text and images"),
    Family("Gemma 4", "gemma4", "text and images"),
    Family("Idefics3, SmolVLM", "idefics3", "text and images"),
    Family("SmolVLM2", "smolvlm", "text and images", f"{_VERIFIED}, with Idefics3's processor"),
    Family("PaliGemma", "paligemma", "text with images"),
    Family("Mistral 3", "mistral3", "text and images"),
    Family("Pixtral", "pixtral", "text and images"),
    Family("Llama 4", "llama4", "text and images"),
    Family("Llama 3.2 Vision", "mllama", "text and images"),
    Family("Molmo2", "molmo2", "text and images", since="5.20"),
    Family("BLIP-2 (OPT)", "blip-2", "text and one image"),
    Family("InstructBLIP (decoder-only)", "instructblip", "text and one image"),
    Family("Kosmos-2", "kosmos-2", "text and one image"),
    Family("Qwen-VL", "qwen_vl", "text and images", _PORTED),
    Family("Emu", "emu", "text and images", _PORTED),
    Family("LaVIT", "lavit", "text and images", _PORTED),
    Family("T5, BART", "t5", "text", "not supported, because an encoder-decoder has two streams", supported=False),
)
