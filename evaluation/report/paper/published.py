"""Numbers that papers report, with their units and how well their sources were read.

The files of `numbers/` are transcriptions: numbers stand as the papers print them, also where two places
of one paper disagree; an empty cell means that no number was found. Units differ by file, so each table that reads
one declares its unit in `papers/`.
"""

import csv
import io
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from dbp.errors import ConfigError

NUMBERS = Path(__file__).parent / "numbers"
Unit = Literal["percent", "fraction"]
Mark = Literal["verified", "secondary", "unverified", "own"]

SCALE = {"percent": 100.0, "fraction": 1.0}
SYMBOLS: dict[Mark, str] = {"verified": "", "secondary": "‡", "unverified": "†", "own": "¶"}
LEGEND: dict[Mark, str] = {
    "secondary": "‡ derived, or read in a source other than the paper",
    "unverified": "† not verified: from memory, or assumed",
    "own": "¶ of your own transcription",
}


@dataclass(frozen=True)
class Published:
    """A number of a paper."""

    value: float | None  # in [0, 1]; none where no number was found
    printed: str  # in percent, with the digits that the paper has
    mark: Mark  # how well its source was read
    source: str  # where it was read


@cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a file of `numbers/`, each by column."""
    text = (NUMBERS / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(io.StringIO(text)))


def read_number(text: str, unit: Unit, mark: Mark, source: str, where: str) -> Published:
    """A number from its text.

    Raises:
        ConfigError: It is no number, or none that the unit allows.
    """
    text = text.strip()
    if not text:
        return Published(None, "", mark, source)
    try:
        value = float(text) / SCALE[unit]
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ConfigError(
            f"{where}={text!r}: it must be a number from 0 to {SCALE[unit]:g}, since its unit is {unit}"
        )
    return Published(value, _in_percent(text, unit), mark, source)


def mark_of(row: dict[str, str]) -> Mark:
    """How well the source of a row was read."""
    if row["verified"] != "yes":
        return "unverified"
    is_primary = row.get("source_kind", "primary") == "primary"
    is_derived = row.get("note", "").startswith(("derived", "as re-run"))
    return "verified" if is_primary and not is_derived else "secondary"


def _in_percent(text: str, unit: Unit) -> str:
    """The same number in percent, with no digit that the paper has not."""
    if unit == "percent":
        return text
    digits = max(len(text.partition(".")[2]) - 2, 0)
    return f"{100 * float(text):.{digits}f}"
