"""Packages that only some filters need: named before any work where they are not installed."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

from dbp.errors import ConfigError, MissingError

# What tells languages -> its package, the setting that asks for it, and what pip calls it.
PACKAGES = {
    "fasttext": ("fasttext", "language=fasttext:FILE", "fasttext-numpy2-wheel"),
    "cld3": ("gcld3", "language=cld3", "gcld3"),
    "langid": ("langid", "language=langid", "langid"),
}
NLTK = ("nltk", "filter.words=null", "nltk")


def package(name: str, setting: str, install: str) -> Any:
    """An optional package.

    Raises:
        ConfigError: It is not installed; it says how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{setting} needs the package {name}, which cannot be imported ({error}). "
            f"Install it with `pip install {install}`, or leave that rule out."
        ) from error


def package_lacks(name: str, setting: str, install: str) -> Iterator[MissingError]:
    """An optional package, if it is not installed."""
    if name not in sys.modules and importlib.util.find_spec(name) is None:
        way_out = f"Install it with `pip install {install}`, or leave that rule out."
        yield MissingError(f"package {name}, which {setting} needs", way_out)
