"""Samples through a frozen model into a store."""

from .config import ExtractConfig
from .extract import extract
from .picture import ImageBytes, ImageUrl
from .sample import Dataset, Sample

__all__ = ["Dataset", "ExtractConfig", "ImageBytes", "ImageUrl", "Sample", "extract"]
