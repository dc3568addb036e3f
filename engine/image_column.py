"""Images in a column of a data set: read row by row from the Arrow files, however large these are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from sonde.errors import InputError

from .picture import ImageSource, Picture, content_identity, named_picture

_BATCH = 1024


@dataclass(frozen=True, slots=True, eq=False)
class ImageColumn:
    """One column of images, encoded as they are stored.

    Attributes
    ----------
    table
        A `datasets.Dataset` of this column alone, in Arrow format: nothing is decoded. Its files are mapped into
        memory, and a copy for another process names these files and leaves their content where it is.
    name
        Of the column.
    """

    table: Any
    name: str

    def read(self, row: int, part: int | None) -> bytes:
        """Return the bytes in a row, or in one part of a row that is a list."""
        cell = self.table[row].column(0)[0]
        if part is not None:
            cell = cell.values[part]
        stored = cell.as_py()
        if not isinstance(stored, dict):
            return bytes(stored)
        if stored["bytes"] is not None:
            return bytes(stored["bytes"])
        try:
            return Path(stored["path"]).read_bytes()
        except OSError as error:
            raise InputError(f"the image {stored['path']} cannot be read: {error.strerror}") from error


@dataclass(frozen=True, slots=True, eq=False)
class ImageCell(ImageSource):
    """One image of a column.

    Attributes
    ----------
    column
        The column.
    row, part
        Where it is; `part` counts in a row that is a list.
    """

    column: ImageColumn = field(repr=False)
    row: int
    part: int | None = None

    def __str__(self) -> str:
        return f"in row {self.row} of {self.column.name!r}"

    def read(self) -> bytes:
        """Read the encoded image.

        Raises
        ------
        InputError
            If it is a file that is not there.
        """
        return self.column.read(self.row, self.part)

    def identity(self) -> Mapping[str, str]:
        """SHA-256 of the bytes, wherever the data set lies."""
        return content_identity(self.read())


def pictures_of(column: ImageColumn, folder: Path | None, *, remote: bool) -> list[list[Picture]]:
    """Make the pictures of every row; the bytes of images are left where they are.

    Parameters
    ----------
    column
        Of images as `datasets` stores them (bytes, or the path of a file), bytes, paths, or lists of any of these.
    folder
        Where relative paths begin.
    remote
        Whether URLs are let through.

    Raises
    ------
    InputError
        If the column is of another type, or a path or URL cannot be used.
    """
    import pyarrow as pa

    kind = column.table.data.schema.field(0).type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    stored = kind.value_type if is_list else kind
    holds_files = pa.types.is_struct(stored) and {"bytes", "path"} <= {f.name for f in stored}
    if not (holds_files or _is_text(stored) or pa.types.is_binary(stored) or pa.types.is_large_binary(stored)):
        raise InputError(f"column {column.name!r} is no image but {kind}: name another in data.columns")
    pictures: list[list[Picture]] = []
    for batch in column.table.iter(_BATCH):
        for cells in _entries(batch.column(0), is_list):
            row = len(pictures)
            try:
                pictures.append(
                    [
                        _picture(ImageCell(column, row, k if is_list else None), cell, folder, remote)
                        for k, cell in enumerate(cells)
                        if cell is not None
                    ]
                )
            except InputError as error:
                raise InputError(f"row {row} of {column.name!r}: {error}") from error
    return pictures


_HELD = object()
"""Stands for bytes that were not looked at."""


def _entries(values: Any, is_list: bool) -> list[list[Any]]:
    """What stands in each row of a batch: None, `_HELD`, or a path; bytes are not touched."""
    import pyarrow.compute as pc

    if is_list:
        lengths = [length or 0 for length in pc.list_value_length(values).to_pylist()]
        flat = [cells[0] for cells in _entries(pc.list_flatten(values), False)]
        stops = accumulate(lengths)
        return [flat[stop - n : stop] for stop, n in zip(stops, lengths, strict=True)]
    if _is_text(values.type):
        return [[text] for text in values.to_pylist()]
    if not hasattr(values.type, "get_field_index"):
        return [[_HELD if there else None] for there in values.is_valid().to_pylist()]
    held = pc.struct_field(values, "bytes").is_valid().to_pylist()
    paths = pc.struct_field(values, "path").to_pylist()
    files = [None if path is None else _File(path) for path in paths]
    return [[_HELD if is_held else file] for is_held, file in zip(held, files, strict=True)]


class _File(str):
    """Path of an image as `datasets` found it."""

    __slots__ = ()


def _picture(cell: ImageCell, stored: Any, folder: Path | None, remote: bool) -> Picture:
    if stored is _HELD:
        return cell
    if isinstance(stored, _File) and not (folder is not None and Path(stored).is_relative_to(folder)):
        # In a cache, whose place says nothing: the image counts by its content.
        return cell
    return named_picture(str(stored), folder, remote=remote)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
