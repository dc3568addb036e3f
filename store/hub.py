"""Stores on the Hugging Face Hub: a dataset repository whose root is the store.

Everything of the store is there but the records of ``log/``, which tell of the machines that made it and which nothing
depends on. The repository's commits are atomic, and what makes a store is committed last.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from sonde.errors import CorruptStoreError, StoreError

from .card import dataset_card
from .directory import Directory
from .hub_files import PATTERNS, differing, is_part, make_durable, prune
from .hub_repo import HubRepo, clear_errors
from .locate import locate
from .schema import Schema
from .store import Store

_CARD = "README.md"
# The Hub advises against large commits, and tells the kinds of this many files in one answer.
_FILES_PER_COMMIT = 256


def push(
    store: Store,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Copy a complete, intact store to a dataset repository of the Hub, and make that repository if there is none.

    Chunks are committed first, some hundred files at a time, then the commit records, and in one last commit the
    samples, the labels, the root ``zarr.json`` and the dataset card, together with the removal of what the store no
    longer has. Until then a reader of a new repository finds no store in it; a reader of one that is being brought up
    to date finds the store as it was, or, where a range was extracted anew, an error of its checksums. A push that was
    cut off goes on where it stopped when it is made again: files that the Hub has are not sent twice.

    Parameters
    ----------
    store
        In a local folder. It is pushed as it is now: labels or samples that are added in the meantime are not.
    repo_id
        ``owner/name``.
    private
        Make the repository private.
    revision
        Branch to push to, made from ``main`` if there is none; ``main`` if left out.
    token, endpoint
        Of the Hub; those that ``hf auth login`` and ``HF_ENDPOINT`` set if left out.

    Returns
    -------
    str
        URL of the commit that holds the store.

    Raises
    ------
    InputError
        If ``repo_id`` is not of this form.
    StoreError
        If the store is elsewhere, unfinished or damaged; if the repository is public where ``private`` was asked for,
        or holds the store of another model, capture or data; if the Hub cannot be reached or refuses.
    """
    repo = HubRepo.of(repo_id, revision, token, endpoint)
    folder = _intact_folder(store)
    keys = sorted(key for key in folder.walk() if is_part(key))
    # Small, and mutable: read at once, so that they agree with each other whatever is added during the upload.
    last = {key: folder.read(key) for key in keys if _is_last(key)}
    schema = _schema_of(last["zarr.json"], str(folder))
    with clear_errors(repo):
        repo.create(private)
        commit = repo.head()
        there = repo.files(commit)
        old = _schema_of(repo.read("zarr.json", commit), str(repo)) if "zarr.json" in there else None
        if old is not None:
            _refuse_other(repo, old, schema)
        # A card that somebody has written or edited is theirs.
        if _CARD not in there or (old is not None and repo.read(_CARD, commit) == _card(repo, old, there)):
            last[_CARD] = _card(repo, schema, last)
        # By name: activations before the commit records, and the chunks of an array before its zarr.json.
        changed = differing(folder, {key: there.get(key) for key in keys if not _is_last(key)})
        for start in range(0, len(changed), _FILES_PER_COMMIT):
            batch = {key: folder.path(key) for key in changed[start : start + _FILES_PER_COMMIT]}
            repo.commit(f"Add {len(batch)} files of the store", batch)
        left_out = sorted(set(keys) - last.keys() - repo.files(repo.head()).keys())
        if left_out:
            raise StoreError(
                f"{repo} left out {len(left_out)} files: {_some(left_out)}; take the pattern that names them out of "
                "the repository's .gitignore, and push again"
            )
        stale = {key for key in there if is_part(key)} - set(keys)
        return repo.commit("Complete the store", last, remove=stale)


def pull(
    repo_id: str,
    url: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> Store:
    """Copy a store from a dataset repository of the Hub to a local folder.

    The files of one commit arrive in a hidden folder beside the destination, each is held against the hash that the Hub
    lists for it, the store is verified, and only then put in its place by renaming. A pull that was cut off goes on
    where it stopped when it is made again.

    Parameters
    ----------
    repo_id
        ``owner/name``.
    url
        A folder that does not exist or is empty, or one that this commit was pulled to before.
    revision
        Branch, tag or commit; ``main`` if left out.
    token, endpoint
        Of the Hub; those that ``hf auth login`` and ``HF_ENDPOINT`` set if left out.

    Raises
    ------
    InputError
        If ``repo_id`` is not of this form.
    StoreError
        If there is something else at the destination, the repository holds no store, or the Hub cannot be reached or
        refuses.
    CorruptStoreError
        If files were damaged on their way, or the store was damaged when it was uploaded; the text says which.
    """
    repo = HubRepo.of(repo_id, revision, token, endpoint)
    location = locate(url)
    if not isinstance(location, Directory):
        raise StoreError(f"{location} is not a local folder: pull to one, then `sonde copy` the store there")
    root = location.root.resolve()
    _refuse_occupied(root)
    with clear_errors(repo):
        commit = repo.head()
        wanted = {key: file for key, file in repo.files(commit).items() if is_part(key)}
    if "zarr.json" not in wanted:
        raise StoreError(
            f"{repo} holds no store: there is no zarr.json in its root; check the id and the revision, or finish the "
            "push if it was cut off"
        )
    if root.is_dir() and any(root.iterdir()):
        if differing(Directory(root), wanted):
            raise StoreError(f"{root} exists already and is not this store of {repo}: pull to another folder")
        return Store.open(root)
    arrived = Directory(root.with_name(f".{root.name}.pull"))
    with arrived.lock():
        with clear_errors(repo):
            repo.download(commit, arrived.root, PATTERNS)
        damaged = sorted(wanted.keys() - prune(arrived, wanted))
        if damaged:
            raise CorruptStoreError(
                f"{repo}: {len(damaged)} of {len(wanted)} files arrived damaged or not at all: {_some(damaged)}; "
                "pull again, the others are kept"
            )
        shutil.rmtree(arrived.root / ".cache", ignore_errors=True)
        _verify(repo, arrived)
        make_durable(arrived, wanted)
        arrived.root.rename(root)
    Directory(root).sync([""])
    return Store.open(root)


def _is_last(key: str) -> bool:
    """Whether a file is of what makes a store: its root, samples and labels."""
    return not key.startswith(("activations/", "commits/", "statistics/"))


def _intact_folder(store: Store) -> Directory:
    """Return the folder of a store that may be pushed."""
    folder = store.location
    if not isinstance(folder, Directory):
        raise StoreError(f"{folder} is not in a local folder: `sonde copy` it to one, and push that")
    store = Store.open(folder.root)
    if not store.complete:
        raise StoreError(
            f"{folder} is not finished: {len(store.missing)} of {len(store.ranges)} ranges are not committed; finish "
            "it with `sonde extract --resume`, then push"
        )
    damage = [error for damage in store.verify() for error in damage.errors]
    if damage:
        raise CorruptStoreError(
            f"{folder} is damaged and was not pushed: {_some(damage, 1)}; run `sonde verify --repair`"
        )
    return folder


def _schema_of(root: bytes, where: str) -> Schema:
    try:
        attribute = json.loads(root)["attributes"]["sonde"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{where}: its zarr.json is no sonde store's: push to another id") from error
    return Schema.from_json(attribute, where)


def _refuse_other(repo: HubRepo, there: Schema, here: Schema) -> None:
    """Raise unless ``here`` is the store ``there``, or that store with samples appended."""
    for name in ("model", "capture", "data", "dtype"):
        if getattr(there, name) != getattr(here, name):
            raise StoreError(
                f"{repo} holds another store: its {name} is {getattr(there, name)!r}, not {getattr(here, name)!r}; "
                "push to another id"
            )
    if there.parts != here.parts[: len(there.parts)]:
        raise StoreError(
            f"{repo} holds a store of other samples, {there.n_samples} of them where this one has {here.n_samples}; "
            "push to another id"
        )


def _refuse_occupied(root: Path) -> None:
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root} is a file: pull to a folder that does not exist yet")
    if root.is_dir() and any(root.iterdir()) and not (root / "zarr.json").is_file():
        raise StoreError(f"{root} exists already and is not a store: pull to another folder")


def _verify(repo: HubRepo, folder: Directory) -> None:
    """Raise CorruptStoreError if a store that arrived as the Hub has it is damaged."""
    try:
        damage = [error for damage in Store.open(folder.root).verify() for error in damage.errors]
    except CorruptStoreError as error:
        damage = [str(error)]
    if damage:
        # The remedies in these texts are for a store that one extracts oneself.
        what = _some([text.replace(str(folder), str(repo)).partition(";")[0] for text in damage])
        raise CorruptStoreError(f"{repo} holds a damaged store: {what}; have it pushed again, then pull again")


def _some(texts: Sequence[str], n: int = 3) -> str:
    return ", ".join(texts[:n]) + (f" (and {len(texts) - n} more)" if len(texts) > n else "")


def _card(repo: HubRepo, schema: Schema, keys: Iterable[str]) -> bytes:
    labels = {key.split("/")[1] for key in keys if key.startswith("labels/") and key.count("/") > 1}
    return dataset_card(schema, sorted(labels), repo.id)
