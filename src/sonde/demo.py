"""The study in miniature: scenes, a tiny model, both tasks with and without cues, probes, one report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .engine import extract
from .engine.coco import load_coco
from .engine.config import DataSection
from .engine.dataset import load_dataset
from .engine.demo_model import write_demo_model
from .engine.scenes import write_scenes
from .errors import StoreError
from .probes import probe, write_report
from .probes.report import claim

_MARKER = ".sonde-demo"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found, one line per task and cue; where its report lies, and everything else in the same folder."""

    lines: tuple[str, ...]
    report: Path


def run_demo(
    folder: Path, *, fast: bool = False, seed: int = 0, say: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Make scenes and a model, extract, probe, report.

    Parameters
    ----------
    folder
        Where everything lies afterwards; an earlier demo there is replaced.
    fast
        Fewer scenes and layers.
    seed
        Of the scenes, the model's random weights and the splits.
    say
        Told what is going on, a line at a time.

    Raises
    ------
    StoreError
        If the folder holds something that is no demo.
    """
    _make_place(folder)
    n_images, n_layers = (120, 4) if fast else (300, 6)
    say(f"rendering {n_images} scenes")
    data = write_scenes(folder / "data", n_images=n_images, seed=seed)
    annotations, images = data / "annotations", data / "images"
    coco = load_coco(annotations, images)
    runs = {
        f"{task}-{'cue' if cue else 'no-cue'}": DataSection(
            task=task, annotations=annotations, images=images, cue=cue, seed=seed
        )
        for task in ("entailment", "recognition")
        for cue in (False, True)
    }
    say("making a tiny LLaVA with random weights")
    texts = [caption.text for captions in coco.captions.values() for caption in captions]
    prompts = [s.prompt or "" for section in runs.values() for s in load_dataset(section).samples]
    model = write_demo_model(folder / "model", [*texts, *prompts], n_layers=n_layers)
    lines, results = [], []
    for name, section in runs.items():
        say(f"{name}: extracting every layer")
        store = extract(
            {
                "model": {"name": str(model), "weights": "random", "seed": seed},
                "data": section.model_dump(exclude_unset=True),
                "capture": {"sites": ["resid_post"], "tokens": ["last", "mean"]},
                "run": {"out": folder / f"{name}.zarr"},
            }
        )
        say(f"{name}: probing")
        labels = "entailment" if section.task == "entailment" else "objects"
        found = probe(store, labels, out=folder / f"{name}.probes", seed=seed)
        results.append(found)
        first: dict[str, Any] = {str(key): value for key, value in found.summary().iloc[0].items()}
        what = f"{name}, {first['metric'].replace('_', ' ')} at {first['site']}/{first['tokens']}"
        lines.append(f"{what}: {claim(first, n_layers)}")
    say("writing the report")
    return Outcome(tuple(lines), write_report(results, folder / "report.html"))


def _make_place(folder: Path) -> None:
    """Make the folder, or empty that of an earlier demo."""
    if folder.exists():
        if not (folder / _MARKER).is_file():
            raise StoreError(f"{folder} exists and is no earlier demo; choose another --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / _MARKER).write_text("made by `sonde demo`, which replaces it\n", encoding="utf-8")
