"""The concepts that rows hold: one each, of clusters or of a text column, or several entries of a caption."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64

from dbp.data.clusters import Clusters
from dbp.data.column import Column
from dbp.data.matches import Matches
from dbp.errors import ConfigError

Kinds = tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " g1"], Int64[np.ndarray, " c"], Int64[np.ndarray, " g"]]


@dataclass(frozen=True)
class Concepts:
    """One of three: a clustering, a column of texts, or matches of entries."""

    clusters: Clusters | None
    columns: Column | None
    matches: Matches | None

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
            raise ConfigError("select.column is a column of numbers, and concepts are texts. Name one of texts.")
        return self.columns

    @property
    def _codes(self) -> Int[np.ndarray, " n"]:
        """The one concept of each row; -1 where it has none."""
        codes = self.clusters.assignment if self.clusters is not None else self._column.codes
        assert codes is not None
        return codes

    def has_any(self, num_rows: int) -> Bool[np.ndarray, " n"]:
        """Rows that hold a concept."""
        if self.matches is None:
            return np.asarray(self._codes >= 0)
        found = np.zeros(num_rows, bool)
        for block in self.matches.blocks():
            found[block.rows] = np.diff(block.ends) > 0
        return found

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
