"""Which entries each caption holds: for each row of a pool the numbers of its entries.

    part-0000000/ends.npy     int64, one more than the part's rows: where a row's numbers begin and end
    part-0000000/numbers.npy  uint32: the numbers of all rows, ascending within a row, each once
    counts.npy                int64: captions that hold each entry
    metadata.json             the entries

One part stands for a run of rows. A part is opened when it is read and closed after, so that a pool of
any size takes the memory of one part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64, UInt32

from dbp.data.entries import Entries


@dataclass(frozen=True)
class MatchedRows:
    """The entries of some rows that follow one another."""

    start: int  # the first row
    ends: Int64[np.ndarray, " r"]  # row `start + i` has `numbers[ends[i] : ends[i + 1]]`
    numbers: UInt32[np.ndarray, " m"]  # of entries

    @property
    def num_rows(self) -> int:
        return len(self.ends) - 1

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.num_rows)

    def of(self, row: int) -> Int[np.ndarray, " e"]:
        """The numbers of one row's entries."""
        at = row - self.start
        return np.asarray(self.numbers[self.ends[at] : self.ends[at + 1]], np.int64)


@dataclass(frozen=True)
class Matches:
    """The entries that each row's caption holds.

    Laws: each entry stands at most once in a row; `counts` sums over all rows.
    """

    counts: Int64[np.ndarray, " e"]
    entries: Entries
    parts: Sequence[MatchedRows | Path]

    def blocks(self) -> Iterator[MatchedRows]:
        """All rows, in their order, a part at a time."""
        start = 0
        for part in self.parts:
            block = part if isinstance(part, MatchedRows) else _open(part, start)
            yield block
            start += block.num_rows

    @cached_property
    def _starts(self) -> Int[np.ndarray, " p"]:
        return np.array([block.start for block in self.blocks()])

    def of(self, row: int) -> list[str]:
        """The entries that one row's caption holds."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        part = self.parts[at]
        block = part if isinstance(part, MatchedRows) else _open(part, int(self._starts[at]))
        return [self.entries.texts[number] for number in block.of(row)]

    @classmethod
    def load(cls, folder: Path) -> "Matches":
        parts = sorted(folder.glob("part-*"))
        return cls(np.load(folder / "counts.npy"), Entries.load(folder), parts)

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], entries: Sequence[str]) -> "Matches":
        """Matches that are in memory: the numbers of each row's entries."""
        ends = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        numbers = np.array([n for own in rows for n in sorted(own)], np.uint32)
        counts = np.bincount(numbers, minlength=len(entries)).astype(np.int64)
        return cls(counts, Entries(list(entries)), [MatchedRows(0, ends, numbers)])


def _open(part: Path, start: int) -> MatchedRows:
    columns: list[Any] = [np.load(part / f"{n}.npy", mmap_mode="r") for n in ("ends", "numbers")]
    return MatchedRows(start, columns[0], columns[1])
