"""Tasks: what is asked of a model about annotated images."""

import inspect
from collections.abc import Callable
from typing import Any

from sonde.engine.coco import Coco
from sonde.engine.sample import Dataset
from sonde.errors import InputError

from .entailment import entailment
from .recognition import recognition
from .together import together

TASKS: dict[str, Callable[..., Dataset]] = {"entailment": entailment, "recognition": recognition}
"""Tasks by name: each makes a data set of annotated images and options of its own."""


def build(task: str, coco: Coco, **options: Any) -> Dataset:
    """Make the data set of a task.

    Parameters
    ----------
    task
        A name in `TASKS`.
    coco
        Annotated images.
    options
        Keyword options of the task.

    Raises
    ------
    InputError
        If there is no such task, the task has no such option, or the task refuses an option.
    """
    if task not in TASKS:
        raise InputError(f"unknown task {task!r}: there are {', '.join(TASKS)}")
    known = [name for name in inspect.signature(TASKS[task]).parameters if name != "coco"]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"task {task!r} has no option {unknown[0]!r}: it has {', '.join(known)}")
    return TASKS[task](coco, **options)


__all__ = ["TASKS", "build", "entailment", "recognition", "together"]
