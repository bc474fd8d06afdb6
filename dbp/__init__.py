"""Curation: from a pool of image-caption pairs to a keep list, with a reason for every row."""

__version__ = "0.1.0"
