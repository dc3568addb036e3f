"""Annotations in COCO's format: images, their captions and the categories of the objects in them.

Format: https://cocodataset.org/#format-data (Lin et al., *Microsoft COCO: Common Objects in Context*, 2014).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from sonde.errors import InputError

_SOURCE = "COCO's annotations are at https://cocodataset.org/#download"
_PUBLISHED = ("train2014", "val2014", "train2017", "val2017")


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
                f"give the folder of the images of {self.name!r}{_images_at(self.name)}"
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
        raise InputError(f"no annotations folder {annotations}: {_annotations_at(name or images.name)}")
    if not images.is_dir():
        where = _images_at(name or images.name)
        raise InputError(f"no images folder {images}: give the folder that holds the image files{where}")
    name = _choose(annotations, name, images.name)
    captions_path, instances_path = _pair(annotations, name)
    captions_file, instances_file = _read(captions_path, _Captions), _read(instances_path, _Instances)
    for path, images_there in ((captions_path, captions_file.images), (instances_path, instances_file.images)):
        if not images_there:
            raise InputError(f"no images in {path}: give annotations of at least one")
    by_id = {image.id: image for file in (captions_file, instances_file) for image in map(_image, file.images)}
    categories = _categories(instances_path, instances_file.categories)
    negatives_path = annotations / f"negatives_{name}.json"
    negatives = {}
    if negatives_path.is_file():
        negatives = _by_image(negatives_path, _read(negatives_path, _Negatives), by_id)
    captions = _by_image(captions_path, captions_file, by_id)
    objects = _objects(instances_path, instances_file, by_id, {category.id for category in categories})
    return Coco(
        name=name,
        images_folder=images,
        images=tuple(by_id.values()),
        categories=categories,
        captions={image: captions.get(image, ()) for image in by_id},
        objects={image: objects.get(image, ()) for image in by_id},
        negatives=negatives,
    )


def _annotations_at(name: str) -> str:
    """Where annotations are to be had."""
    if name not in _PUBLISHED:
        return _SOURCE
    return (
        f"{_SOURCE}, those of {name} in http://images.cocodataset.org/annotations/annotations_trainval{name[-4:]}.zip"
    )


def _images_at(name: str) -> str:
    return f"; they are at http://images.cocodataset.org/zips/{name}.zip" if name in _PUBLISHED else ""


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
    raise InputError(f"no file {missing.name} in {folder}{there}: {_annotations_at(wanted)}")


_KINDS = ("captions_", "instances_")


# What is read of a file; all else in it, nine tenths of an instances file, is passed over without being built.
class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    width: int = 0
    height: int = 0


class _Caption(msgspec.Struct, gc=False):
    id: int
    image_id: int
    caption: str
    type: str = ""
    caption_id: int | None = None


class _Object(msgspec.Struct, gc=False):
    image_id: int
    category_id: int


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str
    supercategory: str = ""


class _Negatives(msgspec.Struct):
    annotations: list[_Caption]


class _Captions(_Negatives):
    images: list[_Image]


class _Instances(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]


_File = TypeVar("_File", _Captions, _Instances, _Negatives)


def _read(path: Path, kind: type[_File]) -> _File:
    try:
        content = path.read_bytes()
        # Numbers may be written as text.
        found = msgspec.json.decode(content, type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not in COCO's format: {error}; {_SOURCE}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): {_SOURCE}") from error
    return found


def _image(image: _Image) -> CocoImage:
    return CocoImage(image.id, image.file_name, image.width, image.height)


def _categories(path: Path, listed: Sequence[_Category]) -> tuple[CocoCategory, ...]:
    if len({category.id for category in listed}) != len(listed):
        raise InputError(f"{path} has two categories with one id: correct the file")
    ordered = sorted(listed, key=lambda category: category.id)
    return tuple(CocoCategory(category.id, category.name, category.supercategory) for category in ordered)


def _by_image(path: Path, file: _Negatives, images: Mapping[int, CocoImage]) -> dict[int, tuple[CocoCaption, ...]]:
    by_image: dict[int, list[CocoCaption]] = {}
    for c in file.annotations:
        caption = CocoCaption(c.id, c.image_id, " ".join(c.caption.split()), c.type, c.caption_id)
        by_image.setdefault(c.image_id, []).append(caption)
    _refuse_unknown(path, "image", by_image.keys() - images.keys())
    return {image: tuple(captions) for image, captions in by_image.items()}


def _objects(
    path: Path, file: _Instances, images: Mapping[int, CocoImage], categories: set[int]
) -> dict[int, tuple[int, ...]]:
    by_image: dict[int, set[int]] = {}
    for thing in file.annotations:
        by_image.setdefault(thing.image_id, set()).add(thing.category_id)
    _refuse_unknown(path, "image", by_image.keys() - images.keys())
    _refuse_unknown(path, "category", set().union(*by_image.values()) - categories)
    return {image: tuple(sorted(present)) for image, present in by_image.items()}


def _refuse_unknown(path: Path, what: str, ids: Iterable[int]) -> None:
    unknown = list(ids)
    if unknown:
        raise InputError(f"{path} annotates {what} {unknown[0]!r}, which it does not list: the file is not whole")
