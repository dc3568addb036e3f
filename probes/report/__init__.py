"""The report of one or several runs: a single HTML file that needs no network, with tables and figures beside it."""

from .words import claim
from .worst import Question
from .write import write_report

__all__ = ["Question", "claim", "write_report"]
