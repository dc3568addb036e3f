"""Settings from TOML, checked with the place and the remedy of every mistake."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from sonde.errors import InputError


class Section(BaseModel):
    """Settings that belong together; others than these are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Settings(Section):
    """A whole configuration, made of sections."""

    @classmethod
    def load(cls, source: Self | Mapping[str, Any] | str | Path, overrides: Sequence[str] = ()) -> Self:
        """Read a configuration from a TOML file or a mapping of the same form.

        Parameters
        ----------
        source
            Path of a TOML file, a mapping ``{"model": {"name": ...}, ...}``, or a configuration.
        overrides
            ``key=value`` with a dotted key and a TOML value; text may go without quotes: ``model.dtype=float32``.

        Raises
        ------
        InputError
            If the file cannot be read or any value is not as it should be; one line for each mistake.
        """
        if isinstance(source, Section):
            source = source.model_dump(exclude_unset=True)
        where = "configuration"
        if isinstance(source, str | Path):
            where, source = str(source), _read(Path(source))
        data = {section: dict(v) if isinstance(v, Mapping) else v for section, v in source.items()}
        for override in overrides:
            _override(data, override)
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise InputError(f"{where}: " + "; ".join(_explain(e, cls) for e in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no configuration {path}; see `sonde extract --help` for an example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None


def _override(data: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *sections, last = key.strip().split(".")
    if not equals or not last or len(sections) != 1:
        raise InputError(f"--set {override!r}: write it as section.key=value, for example model.dtype=float32")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    section = data.setdefault(sections[0], {})
    if not isinstance(section, dict):
        raise InputError(f"--set {override!r}: {sections[0]!r} is no section of the configuration")
    section[last] = value


def _explain(error: Any, settings: type[Section]) -> str:
    if not error["loc"]:
        return str(error["msg"].removeprefix("Value error, "))
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{place} is missing"
    if error["type"] != "extra_forbidden":
        message = _PLAIN.get(error["type"], error["msg"].removeprefix("Value error, "))
        return f"{place}: {message}" + (f", got {error['input']!r}" if not isinstance(error["input"], dict) else "")
    *parents, key = error["loc"]
    known = list(_section_at(settings, parents).model_fields)
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"{place} is not a setting" + (
        f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
    )


def _section_at(settings: type[Section], parents: Sequence[str | int]) -> type[Section]:
    """The section that a place is in: of lists of sections and of optional ones, the section."""
    for parent in parents:
        if isinstance(parent, str):
            kind: Any = settings.model_fields[parent].annotation
            settings = next(k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, Section))
    return settings


_PLAIN = {
    "tuple_type": 'give a list, such as ["first", "last"]',
    "string_type": "give text in quotes",
    "model_type": "give a table of settings",
    "too_short": "give at least one",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "int_type": "give a whole number",
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
}
