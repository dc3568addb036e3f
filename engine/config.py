"""The configuration of an extraction: TOML, checked with the place and the remedy of every mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from .settings import Section, Settings

Column = Literal["id", "prompt", "messages", "image", "images", "group", "split"]
"""What a column of a data set can be besides a label."""


Task = Literal["entailment", "recognition"]
Cue = bool | Literal["asked"]
Index = Annotated[int, Field(ge=0)]


class ModelSection(Section):
    """``[model]``: which model, and how it runs."""

    name: str = Field(description="hub id, or folder of a checkpoint")
    revision: str | None = Field(None, description="branch, tag or commit on the hub")
    dtype: Literal["bfloat16", "float16", "float32"] = Field("bfloat16", description="of weights and arithmetic")
    backend: Literal["transformers", "vllm"] = Field("transformers", description="what runs the model")
    attention: str | None = Field(
        None, description="attention kernel of transformers: sdpa, eager, flash_attention_2; or of vLLM: FLASH_ATTN, …"
    )
    device: str | None = Field(None, description="torch device; the first GPU where there is one, else the CPU")
    tensor_parallel: int | None = Field(None, ge=1, description="GPUs that one model is parted among; of vLLM")
    memory: float | None = Field(
        None, gt=0, le=1, description="share of a GPU's memory that vLLM takes; 0.8 if left out"
    )
    weights: Literal["pretrained", "random"] = Field("pretrained", description="random: benchmarks and controls")
    seed: int = Field(0, description="of random weights, and of visual tokens that are sampled")
    checkpoint: str | None = Field(None, description="which of a folder's checkpoint files, where it has several")
    visual_tokens: Literal["sample", "argmax"] = Field(
        "sample", description="how a model that chooses its visual tokens does: LaVIT samples them, as published"
    )
    trust_remote_code: bool = Field(False, description="run code that comes with the model; none here needs it")

    @model_validator(mode="after")
    def _of_backend(self) -> ModelSection:
        foreign = ("tensor_parallel", "memory") if self.backend == "transformers" else ("checkpoint",)
        for setting in foreign:
            if getattr(self, setting) is not None:
                raise ValueError(f"{setting} is not for the backend {self.backend!r}: leave it out")
        return self


class DataSection(Section):
    """``[data]``: a task on COCO annotations, a manifest, a folder of images, or a data set of Hugging Face."""

    task: Task | tuple[Task, ...] | None = Field(
        None, description="what is asked about COCO's images; a list asks all about each image, in all prompts"
    )
    annotations: Path | None = Field(None, description="folder of captions_*.json and instances_*.json")
    images: Path | None = Field(None, description="folder of the images, of a task or that an hf_dataset names")
    name: str | None = Field(None, description="which pair of annotation files, such as val2017")
    cue: Cue | tuple[Cue, ...] | Literal["both"] = Field(
        False, description='name all categories in the prompt; "asked": one, and ask whether it is there'
    )
    asked_per_image: int = Field(
        2, ge=2, multiple_of=2, description='categories that an image is asked for one at a time, with the cue "asked"'
    )
    prompt: Index | tuple[Index, ...] | Literal["all"] = Field(0, description="which paraphrases of the task's prompt")
    prompts_file: Path | None = Field(None, description="TOML file of the user's own prompts")
    negatives: Literal["swap", "random", "shared-category", "nearest"] = Field(
        "swap", description="captions that do not hold"
    )
    balance: bool = Field(False, description="draw images of rare categories first, where there is a limit")
    manifest: Path | None = Field(None, description="JSONL, CSV or Parquet with one row per sample")
    image_folder: Path | None = Field(None, description="folder of images; subfolders are the classes of a label")
    prompts: tuple[str, ...] | None = Field(None, min_length=1, description="asked of every image")
    hf_dataset: str | None = Field(None, description="data set on the hub, or folder of one")
    hf_config: str | None = Field(None, description="which of its configurations")
    hf_split: str | tuple[str, ...] | None = Field(None, description="which of its splits: train, test[:100], a list")
    hf_revision: str | None = Field(None, description="branch, tag or commit on the hub")
    columns: dict[Column, str] | None = Field(
        None, description="which columns of an hf_dataset are the id, the prompt, the image, …; the others are labels"
    )
    remote_images: bool = Field(False, description="let images be http(s) URLs, fetched as the run goes")
    limit: int | None = Field(
        None, ge=1, description="at most this many samples, groups whole; images, where task is a list"
    )
    seed: int = Field(0, description="of what is drawn: samples, where there is a limit, and a task's questions")
    prompt_format: Literal["auto", "raw", "chat"] = Field(
        "auto", description="through the chat template, or as they are; auto: chat for image-text models that have one"
    )
    truncate: int | None = Field(None, ge=1, description="cut text-only prompts to this many tokens")

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        named = [name for name in _SOURCES if getattr(self, name) is not None]
        if len(named) > 1:
            raise ValueError(f"give either {named[0]} or {named[1]}, not both")
        several = [name for name in ("cue", "prompt") if isinstance(getattr(self, name), tuple | str)]
        if not isinstance(self.task, tuple) and several and self.cue != "asked":
            raise ValueError(f"{several[0]} says several, which a list of tasks is asked with: write task = ['…']")
        if self.task is not None and (self.annotations is None or self.images is None):
            raise ValueError(
                f"the task {self.task!r} needs both annotations and images: name the two folders in [data]"
            )
        if self.image_folder is not None and self.prompts is None:
            raise ValueError('image_folder needs prompts: say what is asked of each image, such as ["What is it?"]')
        for setting, sources in _SOURCES_OF.items():
            if getattr(self, setting) is not None and all(getattr(self, source) is None for source in sources):
                raise ValueError(f"{setting} is for {' or '.join(sources)}: name one, or leave {setting} out")
        return self

    @field_validator("prompts", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def source(self) -> str | None:
        """What names the samples, as the configuration says it; None if nothing does."""
        return next((str(getattr(self, name)) for name in _SOURCES if getattr(self, name) is not None), None)


_SOURCES = ("task", "manifest", "image_folder", "hf_dataset")
_SOURCES_OF = {
    "prompts": ("image_folder", "hf_dataset"),
    **dict.fromkeys(("hf_config", "hf_split", "hf_revision", "columns"), ("hf_dataset",)),
    **dict.fromkeys(("annotations", "name", "prompts_file"), ("task",)),
    "images": ("task", "hf_dataset"),
}


class CaptureSection(Section):
    """``[capture]``: which activations are kept."""

    sites: tuple[str, ...] = Field(("resid_post",), min_length=1, description="where in a block")
    tokens: tuple[str, ...] = Field(("last",), min_length=1, description="which positions, and how they are reduced")
    layers: Literal["all"] | tuple[int, ...] | dict[str, Literal["all"] | tuple[int, ...]] = Field(
        "all", description="numbers from 0, or a table of them by site"
    )
    dtype: Literal["bfloat16", "float16", "float32", "int8"] | None = Field(
        None, description="of the store; the model's if left out. int8 has a scale for every vector"
    )
    codec: Literal["none", "zstd", "lz4+bitshuffle"] | None = Field(
        None, description="compression of the store's chunks; none if left out"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _layers(cls, value: Any) -> Any:
        for layers in value.values() if isinstance(value, dict) else [value]:
            if layers != "all" and not (
                isinstance(layers, list | tuple) and all(type(layer) is int for layer in layers)
            ):
                raise ValueError('give "all", a list of layer numbers, such as [0, 8, 16], or a table of them by site')
        return value


class RunSection(Section):
    """``[run]``: where to, and how."""

    out: str | None = Field(None, description="path or URL of the store: run.zarr, s3://bucket/run.zarr")
    token_budget: int | None = Field(None, ge=1, description="padded tokens per batch")
    range_size: int | None = Field(None, ge=1, description="samples per range; planned if left out")
    encoders: int = Field(0, ge=0, description="processes that decode images and prepare samples; 0: threads")
    shared_prefix: bool = Field(
        True, description="compute what prompts about one image begin with once, where it can be"
    )
    fsync: bool = Field(True, description="wait for the disk; off where fsync hurts, a power cut may cost ranges")
    on_error: Literal["fail", "skip"] = Field("fail", description="of a sample that cannot be read or is too long")

    @field_validator("out", mode="before")
    @classmethod
    def _out(cls, value: Any) -> Any:
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class ExtractConfig(Settings):
    """One extraction: what ``extract.toml`` says."""

    model: ModelSection
    data: DataSection | None = None
    capture: CaptureSection = CaptureSection()
    run: RunSection = RunSection()

    def with_token_budget(self, token_budget: int | None) -> ExtractConfig:
        """The same with a number of padded tokens for a batch."""
        return self.model_copy(update={"run": self.run.model_copy(update={"token_budget": token_budget})})
