"""Published checkpoints: read without running anything in them, and every one of their tensors accounted for."""

from __future__ import annotations

import fnmatch
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde.errors import ModelError

if TYPE_CHECKING:
    import torch

_NAMED = 3


def find_files(folder: Path) -> list[Path]:
    """The files of a checkpoint as transformers lays it out: whole or in shards, safetensors or ``torch.save``.

    Raises
    ------
    ModelError
        If there are none, or their index cannot be read.
    """
    for stem, kind in (("model", "safetensors"), ("pytorch_model", "bin")):
        index, whole = folder / f"{stem}.{kind}.index.json", folder / f"{stem}.{kind}"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
                if any(Path(name).name != name for name in names):
                    raise ValueError("it names files that are not beside it")
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise ModelError(
                    f"the checkpoint's index {index} cannot be read ({error!r}): fetch it again"
                ) from error
            return [folder / name for name in names]
        if whole.is_file():
            return [whole]
    raise ModelError(
        f"the folder {folder} holds no weights: there is no model.safetensors or pytorch_model.bin, and no index of "
        "shards; fetch the whole checkpoint"
    )


def read_tensors(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Read state dictionaries, whole or in parts, and join them.

    Files of ``torch.save`` are read with ``weights_only``, and mapped into memory where their format allows it, as
    safetensors are: what is not looked at takes no memory. A dictionary under the one key ``module``, ``model`` or
    ``state_dict`` is taken out of it.

    Raises
    ------
    ModelError
        If a file cannot be read, holds anything but tensors, or two hold the same name.
    """
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        state = _read(file)
        twice = tensors.keys() & state.keys()
        if twice:
            raise ModelError(
                f"{file} holds {min(twice)!r}, which another file of the checkpoint holds too: fetch it again"
            )
        tensors |= state
    return tensors


def _read(file: Path) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:
            # Files of before torch 1.6 cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"the checkpoint lacks the file {file}: fetch it again") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(f"the checkpoint's file {file} cannot be read: {reason}; fetch it again") from error
    for wrapper in ("module", "model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(x, torch.Tensor) for x in state.values()):
        raise ModelError(f"the checkpoint's file {file} holds no state dictionary of tensors: fetch it again")
    return state


class Filling:
    """Fills a module with the tensors of a checkpoint, each of its parameters once.

    Parameters
    ----------
    module
        Its parameters are written to, in their own dtype.
    tensors
        Of the checkpoint, under its names.
    checkpoint
        What errors call it.
    once
        Whether each tensor is needed once: it is then taken out of ``tensors``, so that files that cannot be mapped
        into memory do not stay there beside the module.
    """

    def __init__(self, module: Any, tensors: dict[str, torch.Tensor], checkpoint: str, *, once: bool = False) -> None:
        self._parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
        self._tensors = tensors
        self._checkpoint = checkpoint
        self._once = once
        self._open = set(self._parameters)
        self._used: set[str] = set()
        self._missing: list[str] = []
        self._misshapen: list[str] = []

    def __call__(self, own: str, *keys: str, make: Callable[..., torch.Tensor] | None = None) -> None:
        """Fill one parameter.

        Parameters
        ----------
        own
            Its name in the module.
        keys
            Names in the checkpoint.
        make
            Makes the parameter of their tensors; left out, there is one and it is the parameter.
        """
        import torch

        missing = [key for key in keys if key not in self._tensors]
        self._used.update(keys)
        self._open.discard(own)
        if missing:
            self._missing += missing
            return
        take = self._tensors.pop if self._once else self._tensors.__getitem__
        parameter, sources = self._parameters[own], [take(key) for key in keys]
        try:
            made = make(*sources) if make else sources[0]
        except (RuntimeError, IndexError):
            # Of shapes that do not go together.
            made = None
        if made is None or made.shape != parameter.shape:
            shapes = " and ".join(f"{key!r} {tuple(x.shape)}" for key, x in zip(keys, sources, strict=True))
            self._misshapen.append(f"{shapes} for {own!r} {tuple(parameter.shape)}")
            return
        with torch.no_grad():
            parameter.copy_(made)

    def has(self, key: str) -> bool:
        """Whether the checkpoint has a tensor of this name."""
        return key in self._tensors

    def ignore(self, *patterns: str) -> None:
        """Account for tensors that nothing is done with, by patterns of their names; they may be missing."""
        for pattern in patterns:
            self._used.update(fnmatch.filter(self._tensors, pattern))

    def finish(self) -> None:
        """Check that every parameter was filled and every tensor accounted for.

        Raises
        ------
        ModelError
            If a tensor is missing, has another shape, or is unexpected; it names the first ones.
        """
        assert not self._open, f"nothing fills {sorted(self._open)}"
        unexpected = sorted(self._tensors.keys() - self._used)
        for what, names in (
            ("lacks", list(map(repr, dict.fromkeys(self._missing)))),
            ("has another shape than the configuration says:", self._misshapen),
            ("holds the unexpected", list(map(repr, unexpected))),
        ):
            if names:
                more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
                raise ModelError(
                    f"the checkpoint {self._checkpoint} {what} {', '.join(names[:_NAMED])}{more}: give the files as "
                    "they were published, of one model"
                )


def third(part: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Takes a third of the rows of a tensor that holds queries, keys and values (0, 1, 2) one after the other."""
    return lambda joined: joined.chunk(3)[part]
