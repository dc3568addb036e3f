"""The configuration of a study: the models, what is asked of all of them, and how their layers are probed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from .engine.config import CaptureSection, DataSection, ExtractConfig, ModelSection, RunSection
from .engine.settings import Section, Settings


class StudySection(Section):
    """``[study]``."""

    out: Path = Field(description="folder of the stores, the probes and the report")


class ModelEntry(ModelSection):
    """One of ``[[models]]``: a ``[model]`` with a label of its own."""

    label: str = Field(pattern=r"^[\w.-]+$", description="what the study calls it, and its files")
    token_budget: int | None = Field(None, ge=1, description="padded tokens per batch, in place of run.token_budget")


class ProbeSection(Section):
    """``[probe]``: as the options of ``sonde probe``."""

    solver: Literal["ridge", "logistic", "mass-mean", "lda"] = Field("ridge", description="kind of probe")
    alphas: tuple[float, ...] | None = Field(None, description="penalties to choose from; the solver's if left out")
    balanced: bool = Field(False, description="weight classes equally (logistic)")
    test_size: float = Field(0.25, gt=0, lt=1, description="share of groups that are tested")
    folds: int = Field(5, ge=2, description="folds of the cross-validation")
    draws: int = Field(1000, ge=1, description="bootstrap draws")
    seed: int = Field(0, description="of the split and the bootstrap")
    permutations: int = Field(0, ge=0, description="permutations of the labels, for the null (ridge)")
    words: bool = Field(False, description="whether what the prompts' words alone tell is scored too")
    device: str | None = Field(None, description="torch device; numpy if left out")


class StudyConfig(Settings):
    """What ``study.toml`` says; ``[data]``, ``[capture]`` and ``[run]`` are those of an extraction."""

    study: StudySection
    models: tuple[ModelEntry, ...] = Field(min_length=1)
    data: DataSection
    capture: CaptureSection = CaptureSection()
    run: RunSection = RunSection()
    probe: ProbeSection = ProbeSection()

    @model_validator(mode="after")
    def _whole(self) -> StudyConfig:
        labels = [model.label for model in self.models]
        twice = next((label for label in labels if labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"two models have the label {twice!r}: give each its own")
        if self.data.task is None:
            raise ValueError("data.task is missing: a study asks tasks, such as task = ['entailment', 'recognition']")
        if self.run.out is not None:
            raise ValueError("run.out is of one extraction: a study's stores lie in the folder study.out")
        return self

    def extraction(self, model: ModelEntry) -> ExtractConfig:
        """The extraction of one of its models."""
        run = self.run.model_dump(exclude_unset=True) | {"out": str(self.store(model))}
        if model.token_budget is not None:
            run["token_budget"] = model.token_budget
        return ExtractConfig.load(
            {
                "model": model.model_dump(exclude_unset=True, exclude={"label", "token_budget"}),
                "data": self.data.model_dump(exclude_unset=True),
                "capture": self.capture.model_dump(exclude_unset=True),
                "run": run,
            }
        )

    def store(self, model: ModelEntry) -> Path:
        """Where the activations of one of its models lie."""
        return self.study.out / f"{model.label}.zarr"

    def probes(self, model: ModelEntry, question: str) -> Path:
        """Where the probes of one question lie."""
        return self.study.out / f"{model.label}.probes" / question
