"""Where a sample's image is: a file, bytes that something else holds, or an address on the web."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sonde.errors import InputError

from .remote import check_url, fetch

_URL = re.compile(r"\s*https?:/", re.IGNORECASE)
"""One slash: a path has eaten the second."""


class ImageSource(ABC):
    """An image that is no file: its bytes, in a file format such as PNG or JPEG, are read when they are needed.

    Sources are equal if they have the same identity. They travel between processes.
    """

    __slots__ = ()

    @abstractmethod
    def read(self) -> bytes:
        """Return the encoded image.

        Raises
        ------
        InputError
            If it cannot be had.
        """

    @abstractmethod
    def identity(self) -> Mapping[str, str]:
        """What the fingerprint of a data set says of the image."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageSource) and self.identity() == other.identity()

    def __hash__(self) -> int:
        return hash(tuple(self.identity().items()))


Picture = Path | ImageSource
"""An image of a sample."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageBytes(ImageSource):
    """An encoded image in memory.

    Attributes
    ----------
    data
        The content of an image file.

    Raises
    ------
    InputError
        If it is no bytes.
    """

    data: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.data, bytes):
            raise InputError(f"the data of an image are a {type(self.data).__name__}: give the bytes of an image file")

    def __str__(self) -> str:
        return f"of {len(self.data):,} bytes"

    def read(self) -> bytes:
        """Return the encoded image."""
        return self.data

    def identity(self) -> Mapping[str, str]:
        """SHA-256 of the bytes."""
        return content_identity(self.data)


@dataclass(frozen=True, slots=True, eq=False)
class ImageUrl(ImageSource):
    """An image on the web, fetched whenever its sample is prepared; used only where ``data.remote_images`` is set.

    Attributes
    ----------
    url
        Its address, ``http://`` or ``https://``.

    Raises
    ------
    InputError
        If the address is of another kind.
    """

    url: str

    def __post_init__(self) -> None:
        check_url(self.url)

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes:
        """Fetch the encoded image."""
        return fetch(self.url)

    def identity(self) -> Mapping[str, str]:
        """The address, as a file's name would be: not what is there."""
        return {"url": self.url}


def content_identity(data: bytes) -> Mapping[str, str]:
    """Identity of an image by what is in it."""
    return {"sha256": hashlib.sha256(data).hexdigest()}


def whereabouts(picture: Picture) -> Hashable:
    """What tells a picture from its neighbours without a look at its bytes: its path, its address, or the object."""
    if isinstance(picture, Path):
        return picture
    return picture.url if isinstance(picture, ImageUrl) else id(picture)


def is_url(name: str) -> bool:
    """Whether the name of an image is an address on the web."""
    return _URL.match(name) is not None


def named_picture(name: object, folder: Path | None, *, remote: bool) -> Picture:
    """Make a picture of what a table of samples names.

    Parameters
    ----------
    name
        Path of a file, or a URL.
    folder
        Where relative paths begin; None if there is no such place.
    remote
        Whether URLs are let through.

    Raises
    ------
    InputError
        If it is no path, or a URL and those are not let through.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"image {name!r} is no path: give the path of a file")
    if is_url(name):
        if not remote:
            raise InputError(
                f"image {name!r} is a URL: download it and give the path of the file, or set data.remote_images = true"
            )
        return ImageUrl(name.strip())
    if folder is None and not Path(name).is_absolute():
        raise InputError(f"image {name!r} is relative, but to no folder: say in data.images where the files are")
    return Path(name) if folder is None else folder / name
