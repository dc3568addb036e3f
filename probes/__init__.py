"""Statistics, probes, results and the report."""

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

__all__ = [
    "ALPHAS",
    "ArrayRows",
    "Fit",
    "FoldStatistics",
    "LogisticFit",
    "LogisticPath",
    "Moments",
    "Probe",
    "Problem",
    "Results",
    "RidgeFit",
    "RidgePath",
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
