"""The study in miniature: scenes, a tiny model with and without what it learned, both tasks, probes, one report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .engine.demo_model import DEMO_MODEL, WEIGHTS
from .engine.scenes import write_scenes
from .errors import StoreError
from .probes.plot import METRIC_NAMES
from .probes.report import claim
from .study import Study, run_study
from .study_config import StudyConfig

_MARKER = ".sonde-demo"
TRAINED, RANDOM = "trained", "random-weights"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found, one line per task and cue; where its report lies, and everything else in the same folder."""

    lines: tuple[str, ...]
    report: Path


def run_demo(
    folder: Path, *, fast: bool = False, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Make scenes, and ask the layers of a tiny LLaVA about them, as it was trained and with random weights.

    Parameters
    ----------
    folder
        Where everything lies afterwards; an earlier demo there is replaced.
    fast
        Fewer scenes.
    seed
        Of the scenes, the random weights and the splits.
    say
        Told what is going on, a line at a time.

    Raises
    ------
    StoreError
        If the folder holds something that is no demo.
    """
    _make_place(folder)
    n_images = 120 if fast else 400
    say(f"rendering {n_images} scenes")
    data = write_scenes(folder / "data", n_images=n_images, seed=seed)
    # Each has a folder of its own: by that a report tells models apart.
    shutil.copytree(DEMO_MODEL, folder / TRAINED)
    shutil.copytree(DEMO_MODEL, folder / RANDOM, ignore=shutil.ignore_patterns(WEIGHTS))
    config = {
        "study": {"out": folder},
        "models": [
            {"label": TRAINED, "name": str(folder / TRAINED)},
            {"label": RANDOM, "name": str(folder / RANDOM), "weights": "random", "seed": seed},
        ],
        "data": {
            "task": ["entailment", "recognition"],
            "cue": "both",
            "annotations": data / "annotations",
            "images": data / "images",
            "seed": seed,
        },
        "capture": {"sites": ["resid_post"], "tokens": ["last", "mean"]},
        "probe": {"words": True, "seed": seed},
    }
    study = run_study(StudyConfig.load(config), say=say)
    return Outcome(_lines(study), study.report)


def _lines(study: Study) -> tuple[str, ...]:
    """Say of each question what guessing, words alone, random weights and the trained model score."""
    answers = {(answer.model, answer.task, answer.cue): answer for answer in study.answers}
    lines = []
    for row in ({str(name): value for name, value in row.items()} for row in study.findings.models.to_dict("records")):
        answer = answers[TRAINED, row["task"], row["cue"]]
        peak = answer.peak
        lines.append(
            f"{row['task']}-{row['cue']}, {METRIC_NAMES.get(row['metric'], row['metric'])}: "
            f"majority {peak['baseline']:.3f}, words alone {peak['text_baseline']:.3f}, "
            f"random weights {row['other_best']:.3f}, trained {row['best']:.3f} "
            f"({row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]); "
            f"trained, at {peak['site']}/{peak['tokens']}: {claim(peak, answer.n_layers)}"
        )
    return tuple(lines)


def _make_place(folder: Path) -> None:
    """Make the folder, or empty that of an earlier demo."""
    if folder.exists():
        if not (folder / _MARKER).is_file():
            raise StoreError(f"{folder} exists and is no earlier demo; choose another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).write_text("made by `sonde demo`, which replaces it\n", encoding="utf-8")
