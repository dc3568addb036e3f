"""Data sets that are a folder of images: every image is asked the same prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from sonde.errors import InputError

from .sample import Dataset, Sample

SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
"""Of files that count as images, in upper case too."""

LABEL = "folder"


def read_image_folder(folder: str | Path, prompts: Sequence[str]) -> Dataset:
    """Make a sample of every image below a folder and each of the prompts.

    A sample's id is the image's path below the folder, in POSIX form, with ``#k`` behind it for prompt k where there
    are several; all samples of an image are one group. Images come in the order of these paths. Where the folder has
    subfolders with images, the one that an image lies in, at whatever depth, is its label ``folder``, as in
    torchvision's ``ImageFolder``; an image that lies directly in the folder has none. Names that begin with a dot are
    passed over.

    Raises
    ------
    InputError
        If there is no such folder, no image in it, or no prompt.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"there is no folder {root}: say in data.image_folder where the images are")
    if not prompts:
        raise InputError('no prompt for the images: say what is asked of each, such as data.prompts = ["What is it?"]')
    names = sorted(path.relative_to(root).as_posix() for path in _images(root))
    if not names:
        raise InputError(f"no images in {root} or below: there must be files with {', '.join(sorted(SUFFIXES))}")
    classes = sorted({name.partition("/")[0] for name in names if "/" in name})
    samples = []
    for name in names:
        labels = {LABEL: name.partition("/")[0] if "/" in name else None} if classes else {}
        for k, prompt in enumerate(prompts):
            sample_id = name if len(prompts) == 1 else f"{name}#{k}"
            samples.append(Sample(sample_id, prompt=prompt, images=(root / name,), group=name, labels=labels))
    return Dataset(tuple(samples), {LABEL: tuple(classes)} if classes else {}, root)


def _images(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Image files below a folder; links to folders are followed, but not to those that hold them."""
    here = folder.resolve()
    if here in above:
        return
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _images(path, above | {here})
        elif path.suffix.lower() in SUFFIXES and path.is_file():
            yield path
