"""Which files a store has on the Hub, and whether those in a folder are the same."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from .directory import Directory

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_FOLDERS = ("activations", "commits", "labels", "samples", "statistics")
_FILES = ("zarr.json", "log/zarr.json")
PATTERNS = (*_FILES, *(f"{folder}/*" for folder in _FOLDERS))


def is_part(key: str) -> bool:
    """Whether a store has files of this name: none that is hidden, leads out of it, or is not the store's."""
    names = key.split("/")
    if any(name[:1] in ("", ".") for name in names):
        return False
    return key in _FILES or (len(names) > 1 and names[0] in _FOLDERS)


def differing(folder: Directory, files: Mapping[str, RepoFile | None]) -> list[str]:
    """Keys, in order, whose file in the folder is not the one that the Hub lists, None for none."""
    with ThreadPoolExecutor() as pool:
        same = pool.map(lambda item: _is_same(folder.path(item[0]), item[1]), files.items())
        return [key for key, intact in zip(files, same, strict=True) if not intact]


def prune(folder: Directory, wanted: Mapping[str, RepoFile]) -> set[str]:
    """Remove from the folder whatever is not as the Hub lists it, hidden files apart, and return the keys that stay."""
    present = {key for key in folder.walk() if not key.startswith(".")}
    links = {key for key in present if (folder.root / key).is_symlink()}
    wrong = links.union(differing(folder, {key: wanted.get(key) for key in present - links}))
    for key in wrong:
        (folder.root / key).unlink()
    return present - wrong


def make_durable(folder: Directory, keys: Iterable[str]) -> None:
    """Wait until files that somebody else has written, and their names, are on the disk."""
    keys = list(keys)
    for key in keys:
        descriptor = os.open(folder.path(key), os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    folder.sync(sorted({key.rpartition("/")[0] for key in keys}))


def _is_same(path: Path, file: RepoFile | None) -> bool:
    # The Hub lists the SHA-256 of a large file, and of a small one what git calls it by.
    if file is None or not path.is_file() or path.stat().st_size != file.size:
        return False
    digest = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as data:
        found = hashlib.file_digest(data, lambda: digest).hexdigest()
    return found == (file.lfs.sha256 if file.lfs else file.blob_id)
