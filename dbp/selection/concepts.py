"""The concepts that rows hold: one each, of clusters or of a text column, or several entries of a caption."""

from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Integer

from dbp.data.clusters import Clusters
from dbp.data.column import Column
from dbp.data.matches import MatchedRows, Matches
from dbp.errors import ConfigError

Held = tuple[Int64[np.ndarray, " m1"], Int64[np.ndarray, " t"]]
Kinds = tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " g1"], Int64[np.ndarray, " c"], Int64[np.ndarray, " g"]]


@dataclass(frozen=True)
class Concepts:
    """One of three: a clustering, a column of texts, or matches of entries.

    Args:
        slot: The config group that reads them, for messages.
        separator: What stands between the concepts of a text; none for texts that are one concept each.
    """

    clusters: Clusters | None
    columns: Column | None
    matches: Matches | None
    _: KW_ONLY
    slot: str = "select"
    separator: str | None = None

    @property
    def num(self) -> int:
        """How many concepts there are."""
        if self.matches is not None:
            return len(self.matches.entries)
        return self.clusters.num_clusters if self.clusters is not None else len(self._column.texts)

    @property
    def _column(self) -> Column:
        assert self.columns is not None
        if self.columns.codes is None:
            raise ConfigError(
                f"{self.slot}.column is a column of numbers, and concepts are texts. Name one of texts."
            )
        return self.columns

    @property
    def _codes(self) -> Int[np.ndarray, " n"]:
        """The one concept of each row; -1 where it has none."""
        codes = self.clusters.assignment if self.clusters is not None else self._column.codes
        assert codes is not None
        return codes

    def has_any(self, num_rows: int) -> Bool[np.ndarray, " n"]:
        """Rows that hold a concept."""
        if self.separator is not None:
            ends, _ = self._of_texts
            return np.asarray(np.r_[np.diff(ends) > 0, False][self._codes])  # the last is for rows without a text
        if self.matches is None:
            return np.asarray(self._codes >= 0)
        found = np.zeros(num_rows, bool)
        for block in self.matches.blocks():
            found[block.rows] = np.diff(block.ends) > 0
        return found

    @cached_property
    def _blocks(self) -> list[MatchedRows]:
        """All parts of the matches, mapped: two maps for 65,536 rows, and no numbers in memory."""
        assert self.matches is not None
        return list(self.matches.blocks())

    @cached_property
    def _of_texts(self) -> Held:
        """The concepts of each distinct text."""
        numbers: dict[str, int] = {}
        held = [
            sorted(
                {
                    numbers.setdefault(one, len(numbers))
                    for part in text.split(self.separator)
                    if (one := part.strip())
                }
            )
            for text in self._column.texts
        ]
        return np.cumsum([0, *map(len, held)], dtype=np.int64), np.array([c for own in held for c in own], np.int64)

    def of(self, rows: Int[np.ndarray, " m"]) -> Held:
        """The concepts of rows: the i-th holds `numbers[ends[i] : ends[i + 1]]`, ascending, each once."""
        if self.matches is None:
            codes = np.asarray(self._codes[rows], np.int64)
            if self.separator is not None:
                ends, numbers = self._of_texts
                return _gathered(np.r_[ends, ends[-1]], numbers, np.where(codes < 0, len(ends) - 1, codes))
            return np.r_[0, np.cumsum(codes >= 0)].astype(np.int64), codes[codes >= 0]
        starts = np.array([block.start for block in self._blocks])
        part = np.searchsorted(starts, rows, side="right") - 1
        sizes = np.zeros(len(rows), np.int64)
        pieces: list[tuple[np.ndarray, Held]] = []
        for number in np.unique(part).tolist():
            block, at = self._blocks[number], np.flatnonzero(part == number)
            held = _gathered(block.ends, block.numbers, rows[at] - block.start)
            sizes[at] = np.diff(held[0])
            pieces.append((at, held))
        ends = np.r_[0, np.cumsum(sizes)].astype(np.int64)
        found = np.empty(ends[-1], np.int64)
        for at, (own, numbers) in pieces:
            found[np.repeat(ends[at] - own[:-1], np.diff(own)) + np.arange(len(numbers))] = numbers
        return ends, found

    def kinds(self, mask: Bool[np.ndarray, " n"], bins: Int[np.ndarray, " n"]) -> Kinds:
        """Rows alike in concepts and bin: the kind of each row of a mask (-1 elsewhere), where the concepts of each
        kind begin, these concepts, and the bin of each kind.
        """
        kind = np.full(len(mask), -1, np.int32)
        if self.matches is None:
            num_bins = int(bins.max(initial=0)) + 1
            both = self._codes[mask].astype(np.int64) * num_bins + bins[mask]
            distinct, own = np.unique(both, return_inverse=True)
            kind[mask] = own
            concepts, of_kind = np.divmod(distinct, num_bins)
            return kind, np.arange(len(distinct) + 1), concepts, of_kind
        seen: dict[tuple[bytes, int], int] = {}
        for block in self.matches.blocks():
            for row in (np.flatnonzero(mask[block.rows]) + block.start).tolist():
                kind[row] = seen.setdefault((block.of(row).tobytes(), int(bins[row])), len(seen))
        held = [np.frombuffer(content, np.int64) for content, _ in seen]
        ends = np.cumsum([0, *map(len, held)], dtype=np.int64)
        return kind, ends, np.concatenate(held), np.array([number for _, number in seen], np.int64)


def _gathered(ends: Int[np.ndarray, " n1"], numbers: Integer[np.ndarray, " t1"], at: Int[np.ndarray, " m"]) -> Held:
    """The runs of numbers at some places, one after another."""
    starts, sizes = np.asarray(ends[at], np.int64), np.asarray(ends[at + 1] - ends[at], np.int64)
    made = np.r_[0, np.cumsum(sizes)].astype(np.int64)
    return made, np.asarray(numbers[np.repeat(starts - made[:-1], sizes) + np.arange(made[-1])], np.int64)
