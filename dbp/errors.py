"""Errors that a person can mend: printed without a stack trace, exit status 1.

Every message says what cannot be done, the values, the setting or file they came from, and the way
out. `ConfigError` is for what a person set (a `ValueError`), `WorldError` for what the world did (a
`RuntimeError`). Anything else is a bug of ours and keeps its trace.
"""

import difflib
from collections.abc import Iterable


class DbpError(Exception):
    """The common root, so that the command line can tell messages from bugs."""


class ConfigError(DbpError, ValueError):
    """A setting that cannot be used as given."""


class BudgetError(ConfigError):
    """A budget that the rows at hand cannot meet."""


class WorldError(DbpError, RuntimeError):
    """Something outside the program: a file, a disk, a network."""


class PoolError(WorldError):
    """A shard or its members are not what a pool needs."""


class StoreError(WorldError):
    """An artifact is missing, damaged, or of another kind."""


class MissingError(WorldError):
    """One thing that a run needs and that is not at hand.

    Args:
        what: The thing, and where it was looked for.
        way_out: What to do; things of one kind share it.
    """

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(what, way_out)  # both, so that it passes from one process to another
        self.what, self.way_out = what, way_out

    def __str__(self) -> str:
        return f"{self.what}. {self.way_out}"


def nearest(word: str, words: Iterable[str]) -> str:
    """Say the nearest right spelling, or all of them when nothing is near.

    >>> nearest("temprature", ["temperature", "seed"])
    "Did you mean 'temperature'?"
    """
    words = sorted(words)
    if near := difflib.get_close_matches(word, words, n=1, cutoff=0.6):
        return f"Did you mean '{near[0]}'?"
    return f"It can be: {', '.join(words)}."
