"""Annotations in COCO's format: images, their captions and the categories of the objects in them.

Format: https://cocodataset.org/#format-data (Lin et al., *Microsoft COCO: Common Objects in Context*, 2014).
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sonde.errors import InputError

_SOURCE = "COCO's annotations are at https://cocodataset.org/#download"


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image: its id and its file's name in the images folder; width and height in pixels (0: not told)."""

    id: int
    file_name: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True, slots=True)
class CocoCaption:
    """One caption of an image.

    A caption of a ``negatives_<name>.json`` file does not hold: `kind` says what was changed ("attribute",
    "relation" or "object"), and `source` is the id of the true caption that it was made from, if that is told.
    """

    id: int
    image_id: int
    text: str
    kind: str = ""
    source: int | None = None


@dataclass(frozen=True, slots=True)
class CocoCategory:
    """One category of objects."""

    id: int
    name: str
    supercategory: str = ""


@dataclass(frozen=True, slots=True)
class Coco:
    """Images with captions and categories.

    Attributes
    ----------
    name
        What stands between ``captions_`` and ``.json``: ``val2017``, say.
    images_folder
        Folder of the image files.
    images
        All images, in the order of the captions file, then those that only the instances file has.
    categories
        All categories, in order of their ids.
    captions
        Captions by image id, in the order of the file; whitespace is normalised. Every image has a key.
    objects
        Ids of the categories present, ascending, by image id. Every image has a key.
    negatives
        Captions that do not hold, by image id; empty where there is no ``negatives_<name>.json``.
    """

    name: str
    images_folder: Path
    images: tuple[CocoImage, ...]
    categories: tuple[CocoCategory, ...]
    captions: Mapping[int, tuple[CocoCaption, ...]]
    objects: Mapping[int, tuple[int, ...]]
    negatives: Mapping[int, tuple[CocoCaption, ...]]

    def path(self, image: CocoImage) -> Path:
        """Path of an image's file."""
        return self.images_folder / image.file_name

    def paths(self, images: Iterable[CocoImage]) -> list[Path]:
        """Paths of the files of `images`.

        Raises
        ------
        InputError
            If one does not exist; the text names the first that is missing and says how many are.
        """
        paths = [self.path(image) for image in images]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(paths)} images are missing, the first is {missing[0]}: "
                f"give the folder of the images of {self.name!r}"
            )
        return paths


def load_coco(annotations_folder: str | Path, images_folder: str | Path, name: str | None = None) -> Coco:
    """Read ``captions_<name>.json`` and ``instances_<name>.json`` (and ``negatives_<name>.json`` if it is there).

    Parameters
    ----------
    annotations_folder
        Folder of the annotation files.
    images_folder
        Folder of the image files; which of them exist is checked only for those that are used, by `Coco.paths`.
    name
        Which pair of files; may be left out if there is one pair only, or if one is named as the images folder is
        (``val2017``).

    Raises
    ------
    InputError
        If a folder or a file is missing, several pairs could be meant, or a file is not in COCO's format.
    """
    annotations, images = Path(annotations_folder).absolute(), Path(images_folder).absolute()
    if not annotations.is_dir():
        raise InputError(f"no annotations folder {annotations}: {_SOURCE}")
    if not images.is_dir():
        raise InputError(f"no images folder {images}: give the folder that holds the image files")
    name = _choose(annotations, name, images.name)
    captions_path, instances_path = _pair(annotations, name)
    captions_file = _Annotations.read(captions_path)
    instances_file = _Annotations.read(instances_path)
    by_id = captions_file.images() | instances_file.images()
    categories = instances_file.categories()
    negatives_path = annotations / f"negatives_{name}.json"
    negatives = _Annotations.read(negatives_path).captions(by_id) if negatives_path.is_file() else {}
    captions = captions_file.captions(by_id)
    objects = instances_file.objects(by_id, {category.id for category in categories})
    return Coco(
        name=name,
        images_folder=images,
        images=tuple(by_id.values()),
        categories=categories,
        captions={image: captions.get(image, ()) for image in by_id},
        objects={image: objects.get(image, ()) for image in by_id},
        negatives=negatives,
    )


def _pair(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"captions_{name}.json", folder / f"instances_{name}.json"


def _choose(folder: Path, name: str | None, images_name: str) -> str:
    """Name of the pair of files to read."""
    names = {kind: {p.stem.removeprefix(kind) for p in folder.glob(f"{kind}*.json")} for kind in _KINDS}
    pairs = sorted(set.intersection(*names.values()))
    if name is None and len(pairs) > 1 and images_name in pairs:
        return images_name
    if name is None and len(pairs) > 1:
        raise InputError(f"several annotations in {folder}: {', '.join(pairs)}; choose one by its name")
    if name is None and pairs:
        return pairs[0]
    if name in pairs:
        return name
    # No whole pair: the name that half a pair has tells which file is missing.
    halves = sorted(set.union(*names.values()))
    wanted = name if name is not None else (halves or ["<name>"])[0]
    missing = next(path for path in _pair(folder, wanted) if not path.is_file())
    there = f" (there are annotations of {', '.join(pairs)})" if pairs else ""
    raise InputError(f"no file {missing.name} in {folder}{there}: {_SOURCE}")


_KINDS = ("captions_", "instances_")


@dataclass(frozen=True, slots=True)
class _Annotations:
    """One annotation file."""

    path: Path
    content: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path) -> "_Annotations":
        try:
            with path.open(encoding="utf-8") as file:
                content = json.load(file, object_hook=_without_outline)
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}): {_SOURCE}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} is not in COCO's format, it holds a {type(content).__name__}: {_SOURCE}")
        return cls(path, content)

    def _records(self, key: str) -> list[Any]:
        records = self.content.get(key)
        if not isinstance(records, list):
            raise InputError(f"{self.path} is not in COCO's format: it has no list {key!r}; {_SOURCE}")
        return records

    def _malformed(self, key: str, error: Exception) -> InputError:
        return InputError(f"{self.path} is not in COCO's format: an entry of {key!r} is malformed ({error!r})")

    def images(self) -> dict[int, CocoImage]:
        try:
            images = [
                CocoImage(int(r["id"]), str(r["file_name"]), int(r.get("width", 0)), int(r.get("height", 0)))
                for r in self._records("images")
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._malformed("images", error) from error
        if not images:
            raise InputError(f"no images in {self.path}: give annotations of at least one")
        return {image.id: image for image in images}

    def categories(self) -> tuple[CocoCategory, ...]:
        try:
            categories = [
                CocoCategory(int(r["id"]), str(r["name"]), str(r.get("supercategory", "")))
                for r in self._records("categories")
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._malformed("categories", error) from error
        if len({category.id for category in categories}) != len(categories):
            raise InputError(f"{self.path} has two categories with one id: correct the file")
        return tuple(sorted(categories, key=lambda category: category.id))

    def captions(self, images: Mapping[int, CocoImage]) -> dict[int, tuple[CocoCaption, ...]]:
        by_image: dict[int, list[CocoCaption]] = {}
        try:
            for r in self._records("annotations"):
                text = " ".join(r["caption"].split())
                caption = CocoCaption(r["id"], r["image_id"], text, r.get("type", ""), r.get("caption_id"))
                by_image.setdefault(caption.image_id, []).append(caption)
        except (KeyError, TypeError, AttributeError) as error:
            raise self._malformed("annotations", error) from error
        self._refuse_unknown("image", by_image.keys() - images.keys())
        return {image: tuple(captions) for image, captions in by_image.items()}

    def objects(self, images: Mapping[int, CocoImage], categories: set[int]) -> dict[int, tuple[int, ...]]:
        by_image: dict[int, set[int]] = {}
        try:
            for r in self._records("annotations"):
                by_image.setdefault(r["image_id"], set()).add(r["category_id"])
        except (KeyError, TypeError) as error:
            raise self._malformed("annotations", error) from error
        self._refuse_unknown("image", by_image.keys() - images.keys())
        self._refuse_unknown("category", set().union(*by_image.values()) - categories)
        return {image: tuple(sorted(present)) for image, present in by_image.items()}

    def _refuse_unknown(self, what: str, ids: Iterable[int]) -> None:
        unknown = list(ids)
        if unknown:
            raise InputError(
                f"{self.path} annotates {what} {unknown[0]!r}, which it does not list: the file is not whole"
            )


def _without_outline(record: dict[str, Any]) -> dict[str, Any]:
    """Forget outlines while parsing: they are nine tenths of an instances file, and nothing here reads them."""
    record.pop("segmentation", None)
    return record
