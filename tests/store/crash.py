"""What a disk may hold after a power cut: a recorder of file operations, and a model of what survives them.

The model is stricter than any file system: data of a file is on the disk when that file was fsynced, a name (created,
renamed, removed) when its folder was, and nothing else makes either durable.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

Image = dict[str, bytes | None]
"""Content of a folder: relative path -> data of a file, None for a folder."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One request: to ``create``, ``truncate``, ``write`` or ``sync`` a file, ``mkdir``, ``remove`` or ``rename``."""

    kind: str
    path: str
    data: bytes = b""
    target: str = ""


@contextlib.contextmanager
def record(folder: Path) -> Iterator[list[Operation]]:
    """Collect the changes and fsyncs that this process asks for below ``folder``, from all of its threads, in order."""
    operations: list[Operation] = []
    descriptors: dict[int, str] = {}
    # Held over the call and its record, so that the order of records is the order of events.
    lock = threading.RLock()

    def locate(path: Any, dir_fd: int | None = None) -> str:
        base = folder if dir_fd is None else folder / descriptors[dir_fd]
        return os.path.relpath(base / path, folder)

    def note(kind: str, path: str, data: bytes = b"", target: str = "") -> None:
        if not path.startswith(".."):
            operations.append(Operation(kind, path, data, target))

    def watch_open(real: Callable[..., int]) -> Callable[..., int]:
        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            place = locate(path, dir_fd)
            new = not os.path.lexists(folder / place)
            descriptor = real(path, flags, mode, dir_fd=dir_fd)
            descriptors[descriptor] = place
            if new:
                note("create", place)
            elif flags & os.O_TRUNC:
                note("truncate", place)
            return descriptor

        return call

    def watch_write(real: Callable[..., int]) -> Callable[..., int]:
        def call(descriptor: int, data: Any) -> int:
            n = real(descriptor, data)
            note("write", descriptors[descriptor], bytes(memoryview(data).cast("B")[:n]))
            return n

        return call

    def watch_sync(real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int) -> None:
            real(descriptor)
            note("sync", descriptors[descriptor])

        return call

    def watch_close(real: Callable[..., None]) -> Callable[..., None]:
        def call(descriptor: int) -> None:
            descriptors.pop(descriptor, None)
            real(descriptor)

        return call

    def watch_name(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
        def watch(real: Callable[..., None]) -> Callable[..., None]:
            def call(path: Any, *arguments: Any, dir_fd: int | None = None, **options: Any) -> None:
                place = locate(path, dir_fd)
                target = locate(arguments[0]) if kind == "rename" else ""
                real(path, *arguments, **options | ({} if dir_fd is None else {"dir_fd": dir_fd}))
                note(kind, place, target=target)

            return call

        return watch

    def locked(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            with lock:
                return function(*arguments, **options)

        return call

    watchers = {"open": watch_open, "write": watch_write, "fsync": watch_sync, "close": watch_close}
    watchers |= {name: watch_name("rename") for name in ("replace", "rename")}
    watchers |= {name: watch_name("remove") for name in ("unlink", "remove", "rmdir")}
    watchers |= {"mkdir": watch_name("mkdir")}
    with pytest.MonkeyPatch.context() as patch:
        for name, watch in watchers.items():
            patch.setattr(os, name, locked(watch(getattr(os, name))))
        yield operations


@dataclass(slots=True, eq=False)
class File:
    data: bytes = b""
    synced: bytes = b""


@dataclass(slots=True, eq=False)
class Folder:
    """Names now, names on the disk, and the changes in between: each maps names to nodes, or to None if removed."""

    entries: dict[str, "File | Folder"] = field(default_factory=dict)
    synced: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[dict[str, "File | Folder | None"]] = field(default_factory=list)

    def change(self, names: dict[str, "File | Folder | None"]) -> None:
        self.entries = changed(self.entries, names)
        self.pending.append(names)


Names = Mapping[str, File | Folder]


def changed(entries: Names, *changes: Mapping[str, File | Folder | None]) -> dict[str, File | Folder]:
    result: dict[str, File | Folder | None] = dict(entries)
    for change in changes:
        result |= change
    return {name: node for name, node in result.items() if node is not None}


class Disk:
    """A folder, all of it on the disk at first, and what is done to it after that."""

    def __init__(self, folder: Path) -> None:
        self.root = _load(folder)

    def apply(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        node = self.root if operation.path == "." else folder.entries.get(name)
        match operation.kind:
            case "create":
                folder.change({name: File()})
            case "mkdir":
                folder.change({name: Folder()})
            case "remove":
                folder.change({name: None})
            case "rename":
                target, new = self._place(operation.target)
                assert target is folder, "a rename between folders is not one change of one folder"
                folder.change({name: None, new: node})
            case "truncate":
                assert isinstance(node, File)
                node.data = b""
            case "write":
                assert isinstance(node, File)
                node.data += operation.data
            case "sync" if isinstance(node, File):
                node.synced = node.data
            case "sync":
                assert isinstance(node, Folder)
                node.synced, node.pending = dict(node.entries), []

    def issued(self) -> Image:
        """What a crash of the process alone leaves: all that was asked for."""
        return self._image(lambda folder: folder.entries, lambda file: file.data)

    def durable(self) -> Image:
        """What a power cut leaves at worst: only what was synced."""
        return self._image(lambda folder: folder.synced, lambda file: file.synced)

    def states(self, *, reordered: bool) -> Iterator[tuple[str, Image]]:
        """What a power cut may leave, by description; ``reordered``: with each name alone kept, or alone lost."""
        yield "all that was issued", self.issued()
        yield "only what was synced", self.durable()
        yield "all names, unsynced data lost", self._image(lambda folder: folder.entries, lambda file: file.synced)
        yield (
            "all names, half of the unsynced data",
            self._image(
                lambda folder: folder.entries,
                lambda file: file.data if file.data == file.synced else file.data[: len(file.data) // 2],
            ),
        )
        for folder in self._folders(self.root) if reordered else ():
            for i, change in enumerate(folder.pending):
                what, others = " ".join(change), [*folder.pending[:i], *folder.pending[i + 1 :]]
                yield (
                    f"of names only {what}",
                    self._image(_at(folder, change, default=lambda f: f.synced), lambda f: f.synced),
                )
                yield (
                    f"all but {what}",
                    self._image(_at(folder, *others, default=lambda f: f.entries), lambda f: f.data),
                )

    def _place(self, path: str) -> tuple[Folder, str]:
        *parents, name = path.split("/")
        node: File | Folder = self.root
        for part in parents:
            assert isinstance(node, Folder)
            node = node.entries[part]
        assert isinstance(node, Folder)
        return node, name

    def _folders(self, folder: Folder) -> Iterator[Folder]:
        yield folder
        for node in folder.entries.values():
            if isinstance(node, Folder):
                yield from self._folders(node)

    def _image(self, names: Callable[[Folder], Names], data: Callable[[File], bytes]) -> Image:
        image: Image = {}

        def walk(folder: Folder, prefix: str) -> None:
            for name, node in names(folder).items():
                image[prefix + name] = data(node) if isinstance(node, File) else None
                if isinstance(node, Folder):
                    walk(node, f"{prefix}{name}/")

        walk(self.root, "")
        return image


def _at(
    place: Folder, *changes: Mapping[str, File | Folder | None], default: Callable[[Folder], Names]
) -> Callable[[Folder], Names]:
    """The names of one folder after some of its pending changes, those of the others by default."""
    return lambda folder: changed(folder.synced, *changes) if folder is place else default(folder)


def _load(folder: Path) -> Folder:
    entries: dict[str, File | Folder] = {}
    for path in folder.iterdir():
        entries[path.name] = _load(path) if path.is_dir() else File(path.read_bytes(), path.read_bytes())
    return Folder(entries, dict(entries))


def crashes(disk: Disk, operations: Iterable[Operation], *, fsync: bool = True) -> Iterator[tuple[str, Image]]:
    """Every state, once, that a crash in the middle of ``operations`` may leave; the disk is advanced by them.

    Without ``fsync`` those that a crash of the process alone leaves.
    """
    seen = set()
    for i, operation in enumerate(operations):
        disk.apply(operation)
        # New names alone vouch for nothing: their order matters when others are replaced or go.
        states = disk.states(reordered=operation.kind in ("rename", "remove", "sync"))
        for what, image in states if fsync else [("all that was issued", disk.issued())]:
            key = frozenset(image.items())
            if key not in seen:
                seen.add(key)
                yield f"crash after operation {i} ({operation.kind} {operation.path}), {what}", image


class Mirror:
    """A folder that is made to hold one image after the other; only what differs is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._held: Image = {}

    def show(self, image: Image) -> Path:
        kinds = {path: data is None for path, data in image.items()}
        for path in sorted((p for p, data in self._held.items() if kinds.get(p) != (data is None)), reverse=True):
            place = self.folder / path
            if self._held.pop(path) is None:
                place.rmdir()
            else:
                place.unlink()
        for path, data in sorted(image.items(), key=lambda item: item[0]):
            if data is None:
                (self.folder / path).mkdir(exist_ok=True)
            elif self._held.get(path) != data:
                (self.folder / path).write_bytes(data)
        self._held = dict(image)
        return self.folder

    def reset(self) -> None:
        """Forget what the folder holds, after a test has written to it."""
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self._held = {}
