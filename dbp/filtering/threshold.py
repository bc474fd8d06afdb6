"""Filters on a score: a threshold, or the best fraction. They mask rows and read no vector."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.missing import reasons_of
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.stage import Stage
from dbp.work import Work


@dataclass(frozen=True)
class NoFilter(Stage):
    """Let every row pass."""

    name: ClassVar[str] = "filter"
    needs: ClassVar[tuple[str, ...]] = ("rows",)
    makes: ClassVar[type] = KeepList

    def run(self, work: Work, rows: KeepList) -> dict[str, Any]:
        rows.save(work.folder)
        return {"rows": rows.num_kept, "kept": rows.num_kept}


@dataclass(frozen=True)
class Threshold(Stage):
    """Keep rows whose score is at least `minimum`; rows without a score go.

    Source: DataComp's clip_score filter with a threshold (score >= threshold).
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores")
    makes: ClassVar[type] = KeepList

    minimum: float

    def run(self, work: Work, rows: KeepList, scores: Scores) -> dict[str, Any]:
        values = scores.of(rows.rows)
        with np.errstate(invalid="ignore"):
            keep = values >= self.minimum
        return _save(work, rows, keep, scores, np.full(len(values), self.minimum))


@dataclass(frozen=True)
class TopFraction(Stage):
    """Keep the best-scored fraction of the rows, exactly floor(fraction * rows); ties go by uid hash.

    Source: DataComp's clip_score filter with a fraction. Departure: theirs keeps one row more and all
    ties.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores", "pool")
    makes: ClassVar[type] = KeepList

    fraction: float

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "above 0 and at most 1")

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many."""
        return int(Decimal(str(self.fraction)) * num_rows)

    def run(self, work: Work, rows: KeepList, scores: Scores, pool: Pool) -> dict[str, Any]:
        values = scores.of(rows.rows)
        count = self.at_most(rows.num_kept)
        order = np.lexsort(
            (pool.uid_hashes[rows.rows], -np.where(np.isnan(values), -np.inf, values))
        )
        keep = np.zeros(rows.num_kept, bool)
        keep[order[:count]] = True
        keep &= ~np.isnan(values)
        cut = values[keep].min() if keep.any() else np.inf
        return _save(work, rows, keep, scores, np.full(len(values), cut))


def _save(
    work: Work, rows: KeepList, keep: np.ndarray, scores: Scores, limit: np.ndarray
) -> dict[str, Any]:
    values = scores.of(rows.rows)
    missing = np.isnan(values)
    absent = reasons_of(rows.rows, scores.missing, "no score")
    kept = rows.narrow(
        "filter",
        keep,
        np.where(missing, absent, "score below the limit"),
        "score at or above the limit",
        value=values,
        limit=limit,
    )
    kept.save(work.folder)
    return {"rows": rows.num_kept, "kept": kept.num_kept, "without score": int(missing.sum())}
