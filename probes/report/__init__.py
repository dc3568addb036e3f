"""The report of one or several runs: a single HTML file that needs no network, with tables and figures beside it."""

from .words import claim
from .write import write_report

__all__ = ["claim", "write_report"]
