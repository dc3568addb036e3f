"""What sonde can do here, package by package, and the command that brings what is missing."""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

from .errors import InputError, StoreError

State = Literal["ready", "missing", "broken"]

# Of compiled parts that must fit each other and the machine: they may be there and not work.
_IMPORTED = ("numpy", "scipy", "sklearn", "pyarrow", "zarr", "torch", "torchvision", "transformers")
_PROJECTS = {"sklearn": "scikit-learn"}
_OPTIONAL: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("a GPU per --workers", ("dask_cuda",), "dask-cuda"),
    ("vLLM (model.backend)", ("vllm",), "vllm"),
    ("--workers, --scheduler", ("distributed",), "distributed"),
    ("data.hf_dataset", ("datasets",), "datasets"),
    ("store.to_xarray", ("xarray",), "'xarray>=2025.1'"),
    ("reports", ("jinja2", "vl_convert", "altair"), "jinja2 vl-convert-python altair"),
    ("logs to TensorBoard", ("tensorboard",), "tensorboard"),
    ("logs to MLflow", ("mlflow",), "mlflow"),
    ("logs to W&B", ("wandb",), "wandb"),
)
_CLOUDS = (
    ("S3", "s3://bucket/run.zarr", "export AWS_PROFILE=…"),
    ("Google Cloud Storage", "gs://bucket/run.zarr", "gcloud auth application-default login"),
    ("Azure", "abfs://container@account.dfs.core.windows.net/run.zarr", "export AZURE_STORAGE_ACCOUNT_KEY=…"),
)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that sonde can do.

    Attributes
    ----------
    name
        What it is, with the option or setting that asks for it.
    state
        ``ready``; ``missing``: something is not there; ``broken``: what is there cannot be used.
    note
        What was found.
    remedy
        The command that helps, if one does.
    """

    name: str
    state: State
    note: str = ""
    remedy: str = ""


def broken_requirements() -> list[Feature]:
    """Find what sonde cannot do without and that is absent, too old, or cannot be imported."""
    from packaging.requirements import Requirement

    found = []
    for text in importlib.metadata.requires("sonde") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        remedy = f"pip install '{wanted}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            found.append(Feature(requirement.name, "missing", f"sonde needs {wanted}", remedy))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(Feature(requirement.name, "broken", f"{version} is there, sonde needs {wanted}", remedy))
    known = {feature.name for feature in found}
    for module in _IMPORTED:
        name = _PROJECTS.get(module, module)
        if name not in known and (reason := why_not(module)):
            found.append(Feature(name, "broken", reason, f"pip install --force-reinstall {name}"))
    return found


def features() -> Iterator[Feature]:
    """Try everything that sonde can do besides the main job on a CPU."""
    yield _gpu()
    yield _cuml()
    for name, modules, install in _OPTIONAL:
        yield _optional(name, modules, install)
    yield _hub()
    for name, url, remedy in _CLOUDS:
        yield _cloud(name, url, remedy)


def why_not(module: str) -> str:
    """Import a module and say in one line why that fails, or nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module(module)
        # Whatever a package that does not fit this machine raises.
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__}: {reason}" if reason else type(error).__name__
    return ""


def _gpu() -> Feature:
    name = "GPU"
    if reason := why_not("torch"):
        return Feature(name, "broken", reason, "pip install --force-reinstall torch")
    import torch

    if torch.cuda.is_available():
        return Feature(name, "ready", ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count()))))
    has_driver = shutil.which("nvidia-smi") is not None
    if torch.version.cuda is None:
        note = "torch is built without CUDA" if has_driver else "no NVIDIA driver, and torch is built without CUDA"
        return Feature(name, "missing", note, "pip install --force-reinstall torch" if has_driver else "")
    if has_driver:
        return Feature(name, "broken", f"torch is built for CUDA {torch.version.cuda} and can use none", "nvidia-smi")
    return Feature(name, "missing", f"no NVIDIA driver; torch is built for CUDA {torch.version.cuda}")


def _cuml() -> Feature:
    from .probes.libraries import load_library

    name = "cuML (--backend cuml)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load_library("cuml")
        except InputError:
            # A GPU is asked for where the packages are there: what it says about one is above.
            return _optional(name, ("cupy", "cuml"), "cupy-cuda13x cuml-cu13", usable=False)
    return Feature(name, "ready", _version("cuml"))


def _optional(name: str, modules: tuple[str, ...], install: str, *, usable: bool = True) -> Feature:
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        return Feature(name, "missing", f"no {', '.join(absent)}", f"pip install {install}")
    for module in modules:
        if reason := why_not(module):
            return Feature(name, "broken", f"{module}: {reason}", f"pip install --force-reinstall {install}")
    return Feature(name, "ready", _version(modules[-1])) if usable else Feature(name, "missing", "no GPU is usable")


def _version(module: str) -> str:
    distributions = importlib.metadata.packages_distributions().get(module, ())
    return f"{distributions[0]} {importlib.metadata.version(distributions[0])}" if distributions else ""


def _hub() -> Feature:
    from huggingface_hub import constants, get_token

    name = "push, gated models"
    if constants.HF_HUB_OFFLINE:
        return Feature(name, "missing", "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    if get_token() is None:
        return Feature(name, "missing", "not logged in", "hf auth login")
    return Feature(name, "ready", "logged in")


def _cloud(name: str, url: str, remedy: str) -> Feature:
    from .store.buckets import Bucket

    try:
        _, signed = Bucket.of(url).connect(timeout=1, limit=1)
    except StoreError as error:
        return Feature(name, "broken", str(error), remedy)
    return Feature(name, "ready", "credentials") if signed else Feature(name, "missing", "no credentials", remedy)
