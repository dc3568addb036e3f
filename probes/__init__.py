"""Statistics, probes, results and the report."""

from typing import TYPE_CHECKING, Any

from .bootstrap import Difference
from .codelength import Codelength, online_codelength
from .control import ControlTask, control_task
from .discriminant import LdaFit, LinearFit, lda, mean_difference
from .dual import statistics_for
from .eigenbasis import Basis, Eigenbasis, eigenbases
from .erasure import Eraser, leace
from .fit import ALPHAS, Fit, fit_layer
from .information import v_information
from .leave_one_out import RidgeChoice, ridge_gcv, ridge_loo
from .logistic import LogisticFit, LogisticPath, UnconvergedWarning, logistic_cv, logistic_path
from .permutation import p_value, permutation_null
from .probe import Probe, load_probes, save_probes
from .problem import Problem
from .report import write_report
from .results import Results
from .ridge import RidgeFit, RidgePath, ridge_cv, ridge_path
from .rows import ArrayRows, Rows
from .run import probe
from .splits import Split, split_groups
from .statistics import FoldStatistics, Moments, accumulate, with_targets
from .transfer import Transfer, transfer
from .tridiagonal import TridiagonalBasis, ridge_bases

if TYPE_CHECKING:
    from .estimators import LogisticProbe, MeanDifferenceProbe, RidgeProbe

# Loaded at first use: their base classes are scikit-learn's.
_ESTIMATORS = ("LogisticProbe", "MeanDifferenceProbe", "RidgeProbe")

__all__ = [
    "ALPHAS",
    "ArrayRows",
    "Basis",
    "Codelength",
    "ControlTask",
    "Difference",
    "Eigenbasis",
    "Eraser",
    "Fit",
    "FoldStatistics",
    "LdaFit",
    "LinearFit",
    "LogisticFit",
    "LogisticPath",
    "LogisticProbe",
    "MeanDifferenceProbe",
    "Moments",
    "Probe",
    "Problem",
    "Results",
    "RidgeChoice",
    "RidgeFit",
    "RidgePath",
    "RidgeProbe",
    "Rows",
    "Split",
    "Transfer",
    "TridiagonalBasis",
    "UnconvergedWarning",
    "accumulate",
    "control_task",
    "eigenbases",
    "fit_layer",
    "lda",
    "leace",
    "load_probes",
    "logistic_cv",
    "logistic_path",
    "mean_difference",
    "online_codelength",
    "p_value",
    "permutation_null",
    "probe",
    "ridge_bases",
    "ridge_cv",
    "ridge_gcv",
    "ridge_loo",
    "ridge_path",
    "save_probes",
    "split_groups",
    "statistics_for",
    "transfer",
    "v_information",
    "with_targets",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _ESTIMATORS:
        raise AttributeError(f"module 'sonde.probes' has no attribute {name!r}")
    from . import estimators

    return getattr(estimators, name)
