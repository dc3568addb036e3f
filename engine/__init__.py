"""Samples through a frozen model into a store."""

from .config import ExtractConfig
from .extract import extract
from .run import Progress
from .sample import Dataset, Sample

__all__ = ["Dataset", "ExtractConfig", "Progress", "Sample", "extract"]
