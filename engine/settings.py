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
            raise InputError(f"{where}: " + "; ".join(_explain_all(error.errors(), cls))) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no configuration {path}; see `sonde extract --help` for an example") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the configuration {path} cannot be read ({error}): give a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not valid TOML: {error}; see `sonde extract --help` for an example") from None


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
        raise InputError(f"--set {override!r}: {sections[0]!r} is no section: write it as section.key=value")
    section[last] = value


def _explain_all(errors: Sequence[Any], settings: type[Section]) -> list[str]:
    """A line for each place; of a value that may be one thing or several, each thing that it is not is an error."""
    lines: dict[tuple[Any, ...], list[Any]] = {}
    for error in errors:
        lines.setdefault(_place(error["loc"], settings), []).append(error)
    return [_explain(place, found, settings) for place, found in lines.items()]


def _place(location: Sequence[str | int], settings: type[Section]) -> tuple[str | int, ...]:
    """Where an error is, without the names of types that a value could have been."""
    place: list[str | int] = []
    section: type[Section] | None = settings
    for part in location:
        if section is None and isinstance(part, str) and ("[" in part or part in _TYPES):
            break
        place.append(part)
        if section is not None and isinstance(part, str):
            section = _section_of(section, part) if part in section.model_fields else None
    return tuple(place)


def _explain(place: Sequence[str | int], errors: Sequence[Any], settings: type[Section]) -> str:
    first = errors[0]
    if not place:
        return str(first["msg"].removeprefix("Value error, "))
    named = ".".join(map(str, place))
    if first["type"] == "missing":
        return f"{named} is missing"
    if first["type"] != "extra_forbidden":
        told = dict.fromkeys(_PLAIN.get(e["type"], e["msg"].removeprefix("Value error, ")) for e in errors)
        value = f", got {first['input']!r}" if not isinstance(first["input"], dict) else ""
        return f"{named}: {', or '.join(told)}{value}"
    *parents, key = place
    section: type[Section] | None = settings
    for parent in parents:
        section = _section_of(section, parent) if section is not None and isinstance(parent, str) else section
    known = list(section.model_fields) if section is not None else []
    close = difflib.get_close_matches(str(key), known, n=1)
    return f"{named} is not a setting" + (
        f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
    )


def _section_of(settings: type[Section], name: str) -> type[Section] | None:
    """The section that a setting is: of a list of sections and of one that may be left out, the section."""
    kind: Any = settings.model_fields[name].annotation
    return next((k for k in (kind, *get_args(kind)) if isinstance(k, type) and issubclass(k, Section)), None)


_TYPES = ("bool", "int", "str", "constrained-int")
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
