"""From a URL to the place it names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from sonde.errors import StoreError

from .buckets import SCHEMES
from .directory import Directory
from .location import Location

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]+)://(.*)", re.DOTALL)
# What pathlib makes of a URL: one of the slashes is gone.
_FLATTENED = re.compile(r"([a-z][a-z0-9+.-]+):/(?!/)(.*)", re.DOTALL)
# What fsspec can read but not keep a store in, or only as a part of another URL.
_NO_PLACES = {
    *("http", "https", "data", "git", "github", "gist", "zip", "tar", "libarchive", "reference", "generic", "dask"),
    *("blockcache", "cached", "filecache", "simplecache", "dir", "async_wrapper", "asyncwrapper", "asynclocal"),
}
_PLACES = "a path, file://, s3://, gs://, az://, abfs://, memory://, sftp://, hf:// or another file system of fsspec"


def locate(url: str | os.PathLike[str] | Location, *, fsync: bool = True) -> Location:
    """Resolve a path or URL to a location, without a look at whether something is there.

    Parameters
    ----------
    url
        A path or ``file://`` URL is a `Directory`; ``s3``, ``gs`` (``gcs``), ``az``, ``abfs`` (``abfss``) are
        `ObjectStorage`; any other scheme that fsspec knows is a `FileSystem`. ``s3:/bucket/…``, as pathlib writes it,
        is understood. Only ``file://`` URLs are percent-decoded. A location is returned as it is.
    fsync
        Whether a directory waits for its disk.

    Raises
    ------
    StoreError
        If the scheme is unknown, its package is not installed, or the URL has a query, a fragment or ``..`` in it.
    """
    if isinstance(url, Location):
        return url
    text = os.fspath(url)
    match = _URL.fullmatch(text)
    if match is None:
        match = _FLATTENED.fullmatch(text)
        if match is None or match[1] not in {*SCHEMES, *_known()}:
            return Directory(Path(text).expanduser().absolute(), fsync=fsync)
    scheme, rest = match[1].lower(), match[2]
    if match.re is _FLATTENED and scheme in ("file", "local"):
        rest = f"/{rest}"
    wrong = next((part for part in ("?", "#") if part in rest), None)
    wrong = wrong or next((part for part in rest.split("/") if part in (".", "..")), None)
    if wrong:
        raise StoreError(f"{text!r} has {wrong!r} in it, which the URL of a store cannot have")
    if scheme == "file":
        return Directory(_path(text, rest), fsync=fsync)
    head, *folders = (rest.lstrip("/") if scheme == "memory" else rest).split("/")
    normal = f"{scheme}://{'/'.join((head, *filter(None, folders)))}"
    if scheme in SCHEMES:
        from .objects import ObjectStorage

        return ObjectStorage(normal)
    if scheme in _NO_PLACES or scheme not in _known():
        raise StoreError(f"{text!r}: stores cannot live in {scheme}://; give {_PLACES}")
    from .filesystem import FileSystem

    return FileSystem(normal)


def _known() -> set[str]:
    import fsspec

    return {*fsspec.available_protocols(), *fsspec.registry}


def _path(text: str, rest: str) -> Path:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise StoreError(f"{text!r} names a file of the host {host!r}: write file:///… for a path of this machine")
    return Path("/", unquote(path))
