"""A feature store and probing engine for (multimodal) language models.

>>> store = sonde.extract("extract.toml")              # doctest: +SKIP
>>> results = sonde.probe(store, "entailment")         # doctest: +SKIP
>>> results.best()                                     # doctest: +SKIP
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from .callbacks import Callback
from .errors import CorruptStoreError, InputError, ModelError, ProbeError, SondeError, StoreError, WorkerError

if TYPE_CHECKING:
    from .engine import Dataset, ExtractConfig, Sample, extract
    from .engine.manifest import read_manifest
    from .probes import Results, load_probes, probe
    from .probes import write_report as report
    from .store import Labels, Store
    from .store.store import open_store as open

__version__ = importlib.metadata.version("sonde")

# Loaded at first use: `import sonde` and `sonde --help` stay fast.
_ROOMS = ("engine", "store", "probes")
_LAZY = {
    "Dataset": ("sonde.engine.sample", "Dataset"),
    "ExtractConfig": ("sonde.engine.config", "ExtractConfig"),
    "Labels": ("sonde.store.labels", "Labels"),
    "Results": ("sonde.probes.results", "Results"),
    "Sample": ("sonde.engine.sample", "Sample"),
    "Store": ("sonde.store.store", "Store"),
    "extract": ("sonde.engine.extract", "extract"),
    "load_probes": ("sonde.probes.probe", "load_probes"),
    "open": ("sonde.store.store", "open_store"),
    "probe": ("sonde.probes.run", "probe"),
    "read_manifest": ("sonde.engine.manifest", "read_manifest"),
    "report": ("sonde.probes.report", "write_report"),
}

__all__ = [
    "Callback",
    "CorruptStoreError",
    "Dataset",
    "ExtractConfig",
    "InputError",
    "Labels",
    "ModelError",
    "ProbeError",
    "Results",
    "Sample",
    "SondeError",
    "Store",
    "StoreError",
    "WorkerError",
    "__version__",
    "extract",
    "load_probes",
    "open",
    "probe",
    "read_manifest",
    "report",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"sonde.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module 'sonde' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
