"""What it takes to read COCO's annotations at their published sizes, and to draw a study's questions from them.

Files are made (``benchmarks/coco_data.py``) with as many images, captions and objects as val2017 and train2017 have,
and outlines as long. Reading is timed beside the standard library's JSON parser told to drop outlines as it goes, and
beside reading the bytes alone, in turns in fresh processes, files in the page cache: a process that has parsed before
would tell another's peak of memory. Questions are of 1,000 images: ``nearest`` looks only for those, the others read
all annotations. ``balance`` puts all images in order, and ``asked`` finds weights over all.

    python -m benchmarks.coco [--fast] [--folder DIR]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .coco_data import TRAIN2017, VAL2017, Scale, write_annotations
from .extract_memory import megabytes
from .result import Owed, conclude, launch

Row = dict[str, Any]

_IMAGES = 1000
_ROUNDS = {"full": 3, "fast": 3, "tiny": 1}
_SCALES = {"full": (VAL2017, TRAIN2017), "fast": (VAL2017,), "tiny": (Scale("val2014", 300, 1_500, 2_000),)}
_SECONDS = 10.0


def main(folder: Path, size: str) -> None:
    """Write, read and draw."""
    rows: list[Row] = []
    for scale in _SCALES[size]:
        write_annotations(folder, scale)
        turns = [{way: _apart(folder, scale, way) for way in ("bytes", "json", "sonde")} for _ in range(_ROUNDS[size])]
        for way in turns[0]:
            found = {key: statistics.median(turn[way][key] for turn in turns) for key in ("seconds", "MB")}
            rows.append(
                {"files": scale.name, "captions": scale.captions, "objects": scale.objects, "what": way} | found
            )
        drawn = json.loads(_run(folder, scale, "questions"))
        rows += [{"files": scale.name, "what": what} | found for what, found in drawn.items()]
    last = next(row for row in rows[::-1] if row["what"] == "sonde")
    owed = [Owed(f"seconds to read {last['captions']:,} captions", last["seconds"], _SECONDS, at_most=True)]
    conclude("coco", rows, owed)


def _apart(folder: Path, scale: Scale, way: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_run(folder, scale, way))
    return found


def _run(folder: Path, scale: Scale, what: str) -> str:
    command = [sys.executable, "-m", "benchmarks.coco", "--child", str(folder), scale.name, what]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def child(folder: Path, name: str, what: str) -> Row:
    """Do one thing in this process: seconds it took, and by how many megabytes the peak of memory grew."""
    from sonde.engine.coco import load_coco

    paths = [folder / "annotations" / f"{kind}_{name}.json" for kind in ("captions", "instances")]

    def parse() -> list[Any]:
        return [json.loads(path.read_bytes(), object_hook=_without_outline) for path in paths]

    ways: dict[str, Callable[[], Any]] = {
        "bytes": lambda: [len(path.read_bytes()) for path in paths],
        "json": parse,
        "sonde": lambda: load_coco(folder / "annotations", folder / name),
    }
    return _questions(ways["sonde"]()) if what == "questions" else _measure(ways[what])


def _questions(coco: Any) -> Row:
    from sonde.engine.tasks.asked import Asked
    from sonde.engine.tasks.drawing import drawn
    from sonde.engine.tasks.entailment import NEGATIVES, draw_pairs

    found = {
        f"{_IMAGES} pairs, {negatives}": _measure(lambda negatives=negatives: draw_pairs(coco, negatives, _IMAGES, 0))
        for negatives in NEGATIVES
    }
    found["order, balance"] = _measure(lambda: list(drawn(coco, 0, balance=True)))
    found["weights, asked"] = _measure(lambda: Asked(coco, 2, 0, coco.images))
    return found


def _measure(do: Callable[[], Any]) -> dict[str, float]:
    # Sets the peak back to what is in use.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = megabytes("VmRSS"), time.perf_counter()
    # What is made is held, as its user holds it.
    made = do()
    seconds = time.perf_counter() - start
    del made
    return {"seconds": seconds, "MB": megabytes("VmHWM") - before}


def _without_outline(record: dict[str, Any]) -> dict[str, Any]:
    record.pop("segmentation", None)
    return record


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]), *sys.argv[3:5])))
    else:
        launch(__doc__, main, {"fast": "val2017 alone", "tiny": "too small to mean anything"})
