"""Data sets of Hugging Face, from the hub or from a folder, by the package `datasets`."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sonde.errors import InputError
from sonde.store import Labels
from sonde.store.table import Row

from .image_column import ImageColumn, pictures_of
from .manifest import RESERVED, make_sample
from .sample import Dataset, LabelValue, Sample

log = logging.getLogger(__name__)

_BATCH = 1024
_NUMBERS = ("bool", "float", "int", "uint")
# Columns that say the same in two ways: where one is named, the other is not looked for.
_ALTERNATIVES = (("prompt", "messages"), ("image", "images"))


def read_hugging_face(
    name: str,
    *,
    config: str | None = None,
    split: str | Sequence[str] | None = None,
    revision: str | None = None,
    columns: Mapping[str, str] | None = None,
    prompts: Sequence[str] = (),
    images: Path | None = None,
    remote_images: bool = False,
) -> Dataset:
    """Read a data set with `datasets`; none of its code is run.

    Columns mean what those of a manifest of the same name do; every other one is a label where its type allows:
    numbers, bools, text, classes (as the names of the classes), and lists of names. The others are left out, which is
    logged. Where there is no `id`, it is ``split/row``.

    Parameters
    ----------
    name
        ``user/name`` on the hub, a folder that `save_to_disk` made, or a folder of data files.
    config, revision
        Which configuration and version; the hub's defaults if left out.
    split
        One or several, as `datasets` writes them: ``train``, ``test[:100]``. May be left out where there is one. Of
        several, samples keep the name as their `split`.
    columns
        A manifest's names -> the data set's own.
    prompts
        Asked of every image of a data set that has no prompts.
    images
        Folder that paths of images are relative to; the data set's own if left out.
    remote_images
        Whether images may be URLs.

    Raises
    ------
    InputError
        If `datasets` is not installed, the data set cannot be had, a column is missing, or a row is no sample.
    """
    splits = _load(name, config, split, revision)
    local = Path(name).expanduser().absolute()
    folder = images.absolute() if images is not None else local if local.is_dir() else None
    samples: list[Sample] = []
    classes: dict[str, tuple[str, ...]] = {}
    for part, table in splits.items():
        plan = _plan(name, table, columns or {}, prompts)
        source = f"{name}: {part}" if part else name
        for number, cells in enumerate(_rows(table, plan, folder, remote_images)):
            cells = {"id": f"{part}/{number}" if part else number, **cells}
            if len(splits) > 1 and not cells.get("split"):
                cells["split"] = part.partition("[")[0]
            samples += _samples(Row(f"{source}: row {number}", cells), prompts)
        for label in plan.labels:
            if label in plan.classes:
                classes[label] = tuple(dict.fromkeys((*classes.get(label, ()), *plan.classes[label])))
    try:
        return _with_usable_labels(name, Dataset(tuple(samples), classes, folder))
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _samples(row: Row, prompts: Sequence[str]) -> Iterator[Sample]:
    if not prompts:
        yield make_sample(row, _as_it_is)
    for k, prompt in enumerate(prompts):
        own = row.cells["id"]
        cells = {**row.cells, "prompt": prompt, "group": row.cells.get("group") or own}
        cells["id"] = own if len(prompts) == 1 or own is None else f"{own}#{k}"
        yield make_sample(Row(row.place, cells), _as_it_is)


def _as_it_is(picture: Any) -> Any:
    return picture


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the columns of one split are.

    Attributes
    ----------
    named
        A manifest's names -> the data set's columns.
    labels
        Columns that are labels.
    classes
        Names of classes by column, of those whose values are numbers of classes.
    """

    named: Mapping[str, str]
    labels: tuple[str, ...]
    classes: Mapping[str, tuple[str, ...]]


def _plan(name: str, table: Any, columns: Mapping[str, str], prompts: Sequence[str]) -> _Plan:
    there = ", ".join(map(repr, table.features))
    for meaning, column in columns.items():
        if column not in table.features:
            raise InputError(f"data.columns: {name} has no column {column!r} for the {meaning}: it has {there}")
    named = dict(columns)
    for meaning in RESERVED:
        others = [other for pair in _ALTERNATIVES if meaning in pair for other in pair]
        if meaning in table.features and meaning not in columns.values() and not columns.keys() & {meaning, *others}:
            named[meaning] = meaning
    asks = [meaning for meaning in ("prompt", "messages") if meaning in named]
    if prompts and asks:
        raise InputError(f"{name} has its own {asks[0]}, in the column {named[asks[0]]!r}: leave data.prompts out")
    if not prompts and not asks:
        raise InputError(
            f"{name} has no column 'prompt' or 'messages': it has {there}; say columns = {{ prompt = \"…\" }} in "
            "[data], or ask all its images the same in data.prompts"
        )
    free = [column for column in table.features if column not in (*named.values(), *RESERVED)]
    labels = tuple(column for column in free if _is_label(table.features[column]))
    unused = [column for column in table.features if column not in (*named.values(), *labels)]
    if unused:
        log.warning("%s: left out %s, which are neither labels nor named in data.columns", name, ", ".join(unused))
    read = (*named.values(), *labels)
    return _Plan(named, labels, {c: names for c in read if (names := _class_names(table.features[c]))})


def _rows(table: Any, plan: _Plan, folder: Path | None, remote: bool) -> Iterator[dict[str, Any]]:
    """Cells of every row by a manifest's names; images as pictures, classes by name."""
    pictures = {
        meaning: pictures_of(ImageColumn(_columns(table, [column]), column), folder, remote=remote)
        for meaning, column in plan.named.items()
        if meaning in ("image", "images")
    }
    plain = {column: meaning for meaning, column in plan.named.items() if meaning not in pictures}
    plain |= {label: label for label in plan.labels}
    if not plain:
        yield from ({m: of_row[row] or None for m, of_row in pictures.items()} for row in range(table.num_rows))
        return
    number = 0
    for batch in _columns(table, list(plain)).iter(_BATCH):
        for row in batch.to_pylist():
            cells = {plain[column]: _value(cell, plan.classes.get(column)) for column, cell in row.items()}
            yield cells | {meaning: of_row[number] or None for meaning, of_row in pictures.items()}
            number += 1


def _columns(table: Any, names: list[str]) -> Any:
    return table.select_columns(names).with_format("arrow")


def _value(cell: Any, classes: Sequence[str] | None) -> Any:
    if classes is None or cell is None:
        return cell
    if isinstance(cell, list):
        return [classes[number] for number in cell]
    # -1 is how test splits say that the class is not told.
    return classes[cell] if 0 <= cell < len(classes) else None


def _inner(feature: Any) -> Any:
    """Feature of the entries of a list; None of anything else."""
    return feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)


def _class_names(feature: Any) -> tuple[str, ...]:
    return tuple(getattr(_inner(feature) or feature, "names", None) or ())


def _is_label(feature: Any) -> bool:
    inner = _inner(feature)
    kind = str(getattr(inner or feature, "dtype", ""))
    if inner is not None and kind.startswith("float"):
        return False
    return kind in ("string", "large_string") or kind.rstrip("0123456789") in _NUMBERS


def _with_usable_labels(name: str, dataset: Dataset) -> Dataset:
    """Leave out columns that no probe could use, such as one in which every value is missing."""
    unusable = {}
    for label in dataset.labels:
        try:
            Labels.from_column(label, dataset.column(label), classes=dataset.classes.get(label))
        except InputError as error:
            unusable[label] = str(error)
    if not unusable:
        return dataset
    log.warning("%s: left out labels: %s", name, "; ".join(unusable.values()))

    def kept(labels: Mapping[str, LabelValue]) -> dict[str, LabelValue]:
        return {label: value for label, value in labels.items() if label not in unusable}

    samples = tuple(replace(sample, labels=kept(sample.labels)) for sample in dataset.samples)
    classes = {label: names for label, names in dataset.classes.items() if label not in unusable}
    return replace(dataset, samples=samples, classes=classes)


# Loading


def _load(name: str, config: str | None, split: str | Sequence[str] | None, revision: str | None) -> dict[str, Any]:
    """Return the wanted splits by name; a data set without any is the split ''."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"the data set {name!r} needs the package datasets: pip install datasets") from error
    import pyarrow as pa

    path = Path(name).expanduser()
    if not path.is_dir():
        _check_hub_name(name, path)
    own_errors = (datasets.exceptions.DatasetsError, pa.ArrowException)
    wanted = [split] if isinstance(split, str) else None if split is None else list(split)
    try:
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            if config or revision:
                raise InputError("a folder of save_to_disk has no configurations or revisions: leave them out")
            return _choose(datasets.load_from_disk(str(path)), wanted)
        where = str(path.absolute()) if path.is_dir() else name
        options: dict[str, Any] = {"revision": revision} if revision else {}
        if "trust_remote_code" in inspect.signature(datasets.load_dataset).parameters:
            # Older versions of the package ask at the terminal whether a data set may run its own code.
            options["trust_remote_code"] = False
        if wanted is None:
            wanted = _only(datasets.get_dataset_split_names(where, config, **options))
        return dict(zip(wanted, datasets.load_dataset(where, config, split=wanted, **options), strict=True))
    except InputError as error:
        raise InputError(f"the data set {name!r}: {error}") from error
    except (OSError, ValueError, LookupError, RuntimeError, *own_errors) as error:
        reasons = [str(reason).strip().partition("\n")[0] for reason in (error, error.__cause__) if reason]
        remedy = "" if path.is_dir() else "; give a data set of the hub that can be reached, or a folder of one"
        raise InputError(f"the data set {name!r} cannot be loaded: {': '.join(reasons)}{remedy}") from error


def _check_hub_name(name: str, path: Path) -> None:
    if path.is_file():
        raise InputError(f"the data set {name!r} is a file: give its folder, or say data.manifest")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise InputError(f"there is no folder {name!r}: give one of a data set, or user/name on the hub")


def _choose(loaded: Any, wanted: Sequence[str] | None) -> dict[str, Any]:
    splits = dict(loaded) if isinstance(loaded, dict) else {str(loaded.split or ""): loaded}
    for split in wanted or _only(list(splits)):
        if split not in splits:
            raise InputError(f"it has no split {split!r}: there are {', '.join(map(repr, splits))}")
    return {split: splits[split] for split in wanted or splits}


def _only(splits: list[str]) -> list[str]:
    if len(splits) != 1:
        raise InputError(f"it has the splits {', '.join(splits)}: name one or several in data.hf_split")
    return splits
