"""A study: the same questions asked of several models, from the images to one report, in one command."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .callbacks import Callback
from .engine import Dataset, ExtractConfig, Sample, extract
from .engine.dataset import load_dataset
from .errors import InputError
from .probes import probe, write_report
from .probes.findings import NO_CUE, Answer, Findings
from .probes.sentences import sentences
from .store import Store
from .study_config import ModelEntry, StudyConfig

# Columns of a study's samples that say which question a sample is, and are none.
_DESCRIBING = ("task", "cue", "prompt", "asked")


@dataclass(frozen=True, slots=True)
class Question:
    """One task, with one cue or none.

    Attributes
    ----------
    task, cue, labels
        Names; the labels are the answers.
    n_prompts
        In how many paraphrases it is put.
    texts
        Prompt of each sample by id.
    """

    task: str
    cue: str
    labels: str
    n_prompts: int
    texts: dict[str, str]

    @property
    def name(self) -> str:
        """As folders are called."""
        return f"{self.task}-{self.cue}"


@dataclass(frozen=True, slots=True, eq=False)
class Study:
    """A finished study.

    Attributes
    ----------
    answers
        One for each model and question.
    findings
        What comes of them.
    report
        The page.
    skipped
        Samples without activations, by model.
    """

    answers: tuple[Answer, ...]
    findings: Findings
    report: Path
    skipped: dict[str, int]

    @property
    def sentences(self) -> list[str]:
        """What was found, in words."""
        return [sentence for of_one in sentences(self.findings).values() for sentence in of_one]


def run_study(
    config: StudyConfig | str | Path,
    *,
    say: Callable[[str], None] = lambda text: None,
    callbacks: Sequence[Callback] | None = None,
) -> Study:
    """Extract, probe and report; go on with what an earlier run of the same study left.

    Parameters
    ----------
    config
        A study, or the file of one.
    say
        Told what is going on, a line at a time.
    callbacks
        Who is told how each extraction and each probing run goes; as of `sonde.extract`.

    Raises
    ------
    InputError
        If the configuration, the data or what was asked cannot be used.
    ModelError
        If a model cannot be loaded.
    StoreError
        If the study's folder holds something else.
    """
    config = StudyConfig.load(config)
    dataset = load_dataset(config.data)
    questions = questions_of(dataset)
    answers: list[Answer] = []
    skipped: dict[str, int] = {}
    for model in config.models:
        store = _extract(config.extraction(model), dataset, f"{model.label}: extracting", say, callbacks)
        skipped[model.label] = len(store.skipped)
        for question in questions:
            answers.append(_ask(config, model, store, question, say, callbacks))
    say("comparing, and writing the report")
    findings = Findings.of(answers)
    report = write_report([answer.results for answer in answers], config.study.out / "report.html", findings)
    return Study(tuple(answers), findings, report, skipped)


def questions_of(dataset: Dataset) -> list[Question]:
    """Find what a data set of tasks asks, in the order of its samples.

    Raises
    ------
    InputError
        If its samples do not say of which task and cue they are.
    """
    if not {"task", "cue"} <= set(dataset.labels):
        raise InputError('data.task is one task: give a study a list of them, such as task = ["entailment"]')
    asked = [name for name in dataset.labels if name not in _DESCRIBING]
    samples: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in dataset.samples:
        for name in asked:
            if sample.labels.get(name) is not None:
                key = (str(sample.labels["task"]), str(sample.labels["cue"]), name)
                samples.setdefault(key, []).append(sample)
    return [
        Question(*key, len({one.labels.get("prompt") for one in of}), {one.id: one.prompt or "" for one in of})
        for key, of in samples.items()
    ]


def _extract(
    config: ExtractConfig,
    dataset: Dataset,
    step: str,
    say: Callable[[str], None],
    callbacks: Sequence[Callback] | None,
) -> Store:
    """Extract one model, unless that is done: then its weights need not even be there."""
    assert config.run.out is not None
    done = _finished(Path(config.run.out), config, dataset)
    if done is not None:
        return done
    say(step)
    return extract(config, resume=True, callbacks=callbacks)


def _finished(path: Path, config: ExtractConfig, dataset: Dataset) -> Store | None:
    if not (path / "zarr.json").is_file():
        return None
    store = Store.open(path)
    before = store.schema.config
    wanted = config.model_dump(mode="json", exclude_none=True)
    same = all(before.get(part, {}) == wanted[part] for part in ("model", "capture"))
    return store if store.complete and same and store.schema.data.get("fingerprint") == dataset.fingerprint() else None


def _ask(
    config: StudyConfig,
    model: ModelEntry,
    store: Store,
    question: Question,
    say: Callable[[str], None],
    callbacks: Sequence[Callback] | None,
) -> Answer:
    """Probe every layer for one question."""
    asked, folder = config.probe, config.probes(model, question.name)
    if not (folder / "results.parquet").is_file():
        say(f"{model.label}: probing {question.name}")
    results = probe(
        store,
        question.labels,
        where={"task": question.task, "cue": question.cue},
        title=question.task if question.cue == NO_CUE else f"{question.task}, {question.cue}",
        solver=asked.solver,
        alphas=asked.alphas,
        class_weight="balanced" if asked.balanced else None,
        test_size=asked.test_size,
        n_folds=asked.folds,
        n_draws=asked.draws,
        seed=asked.seed,
        permutations=asked.permutations,
        transfer="prompt" if question.n_prompts > 1 else None,
        texts=question.texts if asked.words else None,
        device=asked.device,
        out=folder,
        resume=True,
        callbacks=callbacks,
    )
    return Answer(model.label, question.task, question.cue, results, folder)
