"""The prompts of the tasks, as data: one TOML file per task, several paraphrases each."""

import tomllib
from collections.abc import Mapping
from importlib import resources
from string import Formatter

from sonde.errors import InputError


def load_prompt(task: str, *, cue: bool, index: int) -> str:
    """One paraphrase of a task's prompt, with its fields ``{caption}`` and ``{categories}`` still open.

    Parameters
    ----------
    task
        Name of the task, and of its file.
    cue
        Whether the prompt names the categories of the data set (never which of them are present).
    index
        Which paraphrase, from 0.

    Raises
    ------
    InputError
        If there is no such paraphrase.
    """
    kind = "cue" if cue else "plain"
    text = resources.files(__name__).joinpath(f"{task}.toml").read_text(encoding="utf-8")
    prompts: list[str] = tomllib.loads(text)[kind]
    if not 0 <= index < len(prompts):
        raise InputError(
            f"prompt {index} of task {task!r} ({kind}) does not exist: there are {len(prompts)}, "
            f"numbered 0 to {len(prompts) - 1}"
        )
    return prompts[index]


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
