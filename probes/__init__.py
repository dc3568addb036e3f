"""Statistics, probes, results and the report."""

from typing import TYPE_CHECKING, Any

from .fit import ALPHAS, Fit, fit_layer
from .logistic import LogisticFit, LogisticPath, UnconvergedWarning, logistic_cv, logistic_path
from .probe import Probe, load_probes, save_probes
from .problem import Problem
from .report import write_report
from .results import Results
from .ridge import RidgeFit, RidgePath, ridge_cv, ridge_path
from .rows import ArrayRows, Rows
from .run import probe
from .splits import Split, split_groups
from .statistics import FoldStatistics, Moments, accumulate

if TYPE_CHECKING:
    from .estimators import LogisticProbe, MeanDifferenceProbe, RidgeProbe

# Loaded at first use: their base classes are scikit-learn's.
_ESTIMATORS = ("LogisticProbe", "MeanDifferenceProbe", "RidgeProbe")

__all__ = [
    "ALPHAS",
    "ArrayRows",
    "Fit",
    "FoldStatistics",
    "LogisticFit",
    "LogisticPath",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "Moments",
    "Probe",
    "Problem",
    "Results",
    "RidgeFit",
    "RidgePath",
    "RidgeProbe",
    "Rows",
    "Split",
    "UnconvergedWarning",
    "accumulate",
    "fit_layer",
    "load_probes",
    "logistic_cv",
    "logistic_path",
    "probe",
    "ridge_cv",
    "ridge_path",
    "save_probes",
    "split_groups",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module 'sonde.probes' has no attribute {name!r}")
    from . import estimators

    return getattr(estimators, name)
