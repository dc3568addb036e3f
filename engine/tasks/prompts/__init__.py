"""The prompts of the tasks, as data: one TOML file per task, several paraphrases each."""

import tomllib
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from pathlib import Path
from string import Formatter

from sonde.errors import InputError

NO_CUE, CUE, ASKED = "no-cue", "cue", "asked"
# Names of the lists in a file.
_KINDS = {NO_CUE: "plain", CUE: "cue", ASKED: "asked"}


def cue_name(cue: bool | str) -> str:
    """Name of a cue as settings have it: false, true or ``"asked"``."""
    return (CUE if cue else NO_CUE) if isinstance(cue, bool) else cue


def load_prompts(task: str, cue: bool | str, file: Path | None = None) -> list[str]:
    """All paraphrases of a task's prompt, with their fields still open.

    Parameters
    ----------
    task
        Name of the task, and of its file.
    cue
        Whether the prompt names the categories of the data set (never which of them are present), or asks for one.
    file
        A TOML file of the user's in place of ours: a table for each task, and in it a list for each cue.

    Raises
    ------
    InputError
        If the file cannot be read, lacks them, or one has a field that the task does not fill.
    """
    kind = _KINDS[cue_name(cue)]
    where = f"{task}.toml" if file is None else str(file)
    tables = _read(file)
    prompts = (tables.get(task, {}) if file is not None else _read_ours(task)).get(kind)
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise InputError(f'{where} has no list of prompts {kind!r} of the task {task!r}: write [{task}] {kind} = ["…"]')
    for prompt in prompts:
        _check_fields(prompt, task, kind, where)
    return prompts


def load_prompt(task: str, *, cue: bool | str, index: int, file: Path | None = None) -> str:
    """One paraphrase of a task's prompt; arguments as of `load_prompts`.

    Raises
    ------
    InputError
        If there is no such paraphrase.
    """
    prompts = load_prompts(task, cue, file)
    if not 0 <= index < len(prompts):
        raise InputError(
            f"prompt {index} of task {task!r} ({_KINDS[cue_name(cue)]}) does not exist: there are {len(prompts)}, "
            f"numbered 0 to {len(prompts) - 1}"
        )
    return prompts[index]


@lru_cache
def _read_ours(task: str) -> dict[str, list[str]]:
    return tomllib.loads(resources.files(__name__).joinpath(f"{task}.toml").read_text(encoding="utf-8"))


def _read(file: Path | None) -> dict[str, dict[str, list[str]]]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file of prompts {file}: correct data.prompts_file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"the prompts {file} cannot be read as TOML ({error}): correct the file") from error


_FIELDS = {
    ("entailment", "plain"): {"caption"},
    ("entailment", "cue"): {"caption", "categories"},
    ("recognition", "plain"): set(),
    ("recognition", "cue"): {"categories"},
    ("recognition", "asked"): {"category"},
}


def _check_fields(prompt: str, task: str, kind: str, where: str) -> None:
    wanted = _FIELDS[task, kind]
    try:
        fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    except ValueError as error:
        raise InputError(f"{where}: the prompt {prompt!r} cannot be read ({error}); write {{{{ for a brace") from error
    if sorted(fields) != sorted(wanted):
        named = " and ".join(f"{{{name}}}" for name in sorted(wanted)) or "no field"
        raise InputError(f"{where}: the prompt {prompt!r} of {task} ({kind}) must have {named} once, and no other")


def fill(template: str, fields: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """Put texts into a prompt's fields.

    Parameters
    ----------
    template
        As from `load_prompt`.
    fields
        Text of each field, by name.

    Returns
    -------
    text, places
        The prompt, and by name the characters (start, stop) that each field became.
    """
    text, places = "", {}
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            places[name] = (len(text), len(text) + len(fields[name]))
            text += fields[name]
    return text, places
