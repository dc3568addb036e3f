"""Fitted probes as files: safetensors for the numbers, JSON for what they mean."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonde.errors import InputError, ProbeError
from sonde.store import as_float32

from .tables import write_atomically

TENSORS, DESCRIPTION = "probes.safetensors", "probes.json"
VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """A linear map of one (site, tokens, layer) to the targets of one set of labels.

    Attributes
    ----------
    site, tokens, layer, labels, solver
        What it was fitted to, and how.
    kind
        Of the labels.
    targets
        Names of the outputs.
    weights, bias
        float32 ``[target, hidden]`` and ``[target]``, in raw units of the activations.
    alpha
        Penalty of each target.
    """

    site: str
    tokens: str
    layer: int
    labels: str
    solver: str
    kind: str
    targets: tuple[str, ...]
    weights: NDArray[np.float32]
    bias: NDArray[np.float32]
    alpha: tuple[float, ...]

    @property
    def name(self) -> str:
        """``resid_post/last/8``."""
        return f"{self.site}/{self.tokens}/{self.layer}"

    def scores(self, x: NDArray[Any]) -> NDArray[np.float64]:
        """Apply the probe: ``x @ weights.T + bias``, float64 ``[sample, target]``; probabilities if logistic.

        Parameters
        ----------
        x
            Activations ``[sample, hidden]`` of any float dtype.

        Raises
        ------
        ProbeError
            If the hidden size is not the probe's.
        """
        hidden = self.weights.shape[1]
        if x.ndim != 2 or x.shape[1] != hidden:
            raise ProbeError(
                f"activations of shape {x.shape} do not match the hidden size {hidden} of the probe {self.name!r}: "
                "refit the probe or pick another store"
            )
        linear = as_float32(x) @ self.weights.T + self.bias.astype(np.float64)
        if self.solver != "logistic":
            return np.asarray(linear)
        from scipy.special import expit, softmax

        return np.asarray(softmax(linear, axis=1) if self.kind == "multiclass" else expit(linear))

    def predict(self, x: NDArray[Any]) -> NDArray[Any]:
        """Answers: class number ``[sample]``, 0/1 ``[sample, target]``, or the value where labels are numbers."""
        scores = self.scores(x)
        if self.kind == "multiclass":
            return np.asarray(np.argmax(scores, axis=1))
        return scores if self.kind == "regression" else (scores > 0.5).astype(np.int8)


def save_probes(folder: str | os.PathLike[str], probes: Sequence[Probe]) -> Path:
    """Write probes to ``probes.safetensors`` and ``probes.json`` in a folder, which is made if it is not there.

    Raises
    ------
    InputError
        If two probes have the same name.
    StoreError
        If the folder cannot be written.
    """
    from safetensors.numpy import save

    path = Path(folder)
    twice = [name for name, count in Counter(probe.name for probe in probes).items() if count > 1]
    if twice:
        raise InputError(f"two probes are named {twice[0]!r}: save probes of other labels or solvers to other folders")
    # safetensors writes an array's memory as it lies, whatever its strides.
    tensors = {
        f"{probe.name}/{part}": np.ascontiguousarray(getattr(probe, part))
        for probe in probes
        for part in ("weights", "bias")
    }
    described = [{k: v for k, v in asdict(p).items() if k not in ("weights", "bias")} for p in probes]
    write_atomically(path / TENSORS, save(tensors))
    write_atomically(path / DESCRIPTION, json.dumps({"version": VERSION, "probes": described}, indent=1).encode())
    return path


def load_probes(folder: str | os.PathLike[str]) -> list[Probe]:
    """Read what `save_probes` wrote.

    Raises
    ------
    InputError
        If the folder holds no probes, or files that are damaged, of another version, or do not belong together.
    """
    from safetensors.numpy import load

    path = Path(folder)
    try:
        tensors = load((path / TENSORS).read_bytes())
        description = json.loads((path / DESCRIPTION).read_bytes())
        version = description["version"]
        if version == VERSION:
            return [_read(entry, tensors) for entry in description["probes"]]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} holds no probes: there is no {Path(error.filename).name}") from None
    # Bytes of anyone: no list of what safetensors and JSON may raise on them is complete.
    except Exception as error:
        raise InputError(f"the probes in {path} are damaged ({error}); fit them again with `sonde probe`") from error
    raise InputError(f"the probes in {path} are of version {version!r}, this sonde reads {VERSION}: fit them again")


def _read(entry: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Probe:
    lists = {"targets": tuple(entry["targets"]), "alpha": tuple(entry["alpha"])}
    name = f"{entry['site']}/{entry['tokens']}/{entry['layer']}"
    weights, bias = tensors[f"{name}/weights"], tensors[f"{name}/bias"]
    n_targets = len(lists["targets"])
    if weights.ndim != 2 or len(weights) != n_targets or bias.shape != (n_targets,) or len(lists["alpha"]) != n_targets:
        raise ValueError(f"{name} has {n_targets} targets, weights {weights.shape} and bias {bias.shape}")
    return Probe(**entry | lists, weights=weights, bias=bias)
