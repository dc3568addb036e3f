"""From a URL to the place it names."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sonde.errors import StoreError

from .directory import Directory
from .location import Location


def locate(url: str | os.PathLike[str], *, fsync: bool = True) -> Location:
    """Resolve a path or URL to a location.

    Raises
    ------
    StoreError
        For other URL schemes.
    """
    text = os.fspath(url)
    if "://" not in text:
        return Directory(Path(text).expanduser().absolute(), fsync=fsync)
    parts = urlsplit(text)
    if parts.scheme != "file":
        raise StoreError(f"{text}: stores live in local folders; extract to a path and copy it there")
    return Directory(Path(unquote(parts.path)), fsync=fsync)
