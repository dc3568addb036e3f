"""The test samples that a probe gets most wrong, with what they asked."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pandas as pd

from sonde.errors import StoreError
from sonde.probes.results import Results

from .words import number, records

_YES = 0.5
_PROMPT, _PIXELS = 320, 192


@dataclass(frozen=True, slots=True)
class Question:
    """What a sample asked the model.

    Attributes
    ----------
    prompt
        Its text.
    image
        Its first image as the bytes of an image file, if it has one.
    """

    prompt: str
    image: bytes | None = None


Ask = Callable[[str, Sequence[str]], Mapping[str, Question]]
"""Where a store is, and ids of some of its samples -> what those asked, as far as that is known."""


@dataclass(frozen=True, slots=True)
class Mistake:
    """One line of the page: all of it texts, `picture` a ``data:`` address or empty."""

    id: str
    prompt: str
    picture: str
    target: str
    truth: str
    said: str
    score: str


@dataclass(frozen=True, slots=True)
class Sheet:
    """The mistakes of one probe, the worst first."""

    title: str
    mistakes: list[Mistake]


def worst_sheets(folder: Path, n: int, ask: Ask | None) -> list[Sheet]:
    """List what the best layer's probe of each labels of a run gets most wrong.

    Parameters
    ----------
    folder
        Of one run, with the scores of every test sample.
    n
        Mistakes to list at most.
    ask
        Tells what samples asked; left out, only their ids are known.

    Raises
    ------
    StoreError
        If there are no results or scores.
    """
    results = Results.load(folder)
    [run] = results.runs
    sheets = []
    for line in records(results.summary().drop_duplicates("labels")):
        wrong = _wrong(_scores(folder, line["site"], line["tokens"], line["best_layer"]), run["kind"]).head(n)
        known = {} if ask is None else ask(run["store_path"], wrong["id"].tolist())
        mistakes = [_mistake(row, known.get(row["id"], Question(""))) for row in records(wrong)]
        where = f"layer {line['best_layer']} of {line['site']}, {line['tokens']}"
        sheets.append(Sheet(f"{line['labels']} · {line['store']}, {where} ({line['solver']})", mistakes))
    return sheets


def _scores(folder: Path, site: str, tokens: str, layer: int) -> pd.DataFrame:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "scores.parquet"
    wanted = [("site", "=", site), ("tokens", "=", tokens), ("layer", "=", int(layer))]
    try:
        columns = ["id", "target", "truth", "score"]
        scores: pd.DataFrame = pq.read_table(path, columns=columns, filters=wanted).to_pandas()
        return scores
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read as Parquet ({error}): run `sonde probe` again") from error


def _wrong(scores: pd.DataFrame, kind: str) -> pd.DataFrame:
    """List wrong answers, furthest from the truth first: ``id``, ``target``, ``truth``, ``said`` and ``score``."""
    if kind == "multiclass":
        table = _wrong_classes(scores)
    elif kind == "regression":
        table = scores.assign(truth=scores["truth"].map(number), said=scores["score"].map(number), target="")
        table = table.assign(error=(scores["truth"] - scores["score"]).abs())
    else:
        table = scores.assign(error=(scores["truth"] - scores["score"]).abs())
        table = table[(scores["truth"] > _YES) != (scores["score"] > _YES)]
        yes = table["truth"] > _YES
        table = table.assign(truth=yes.map({True: "yes", False: "no"}), said=yes.map({True: "no", False: "yes"}))
        table = table if kind == "multilabel" else table.assign(target="")
    return table.sort_values("error", ascending=False, kind="stable")


def _wrong_classes(scores: pd.DataFrame) -> pd.DataFrame:
    said = scores.loc[scores.groupby("id", sort=False)["score"].idxmax()].set_index("id")
    true = scores[scores["truth"] > 0].set_index("id").loc[said.index]
    table = said.assign(truth=true["target"], said=said["target"], error=said["score"] - true["score"], target="")
    return table[table["said"] != table["truth"]].reset_index()


def _mistake(row: Mapping[str, object], question: Question) -> Mistake:
    cut = question.prompt if len(question.prompt) <= _PROMPT else f"{question.prompt[:_PROMPT]}…"
    texts = {name: str(row[name]) for name in ("id", "target", "truth", "said")}
    return Mistake(prompt=cut, picture=_thumbnail(question.image), score=number(float(str(row["score"]))), **texts)


def _thumbnail(image: bytes | None) -> str:
    """Shrink an image to an address that holds it; nothing if there is none, or it cannot be read."""
    from PIL import Image

    if image is None:
        return ""
    buffer = BytesIO()
    try:
        with Image.open(BytesIO(image)) as picture:
            small = picture.convert("RGB")
        small.thumbnail((_PIXELS, _PIXELS))
        small.save(buffer, "JPEG", quality=80)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    return f"data:image/jpeg;base64,{b64encode(buffer.getvalue()).decode()}"
