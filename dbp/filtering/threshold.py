"""Filters on a score: a threshold, or the best fraction. They mask rows and read no vector."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.exact.order import first, score_keys
from dbp.narrowing import Narrowing, PassAll


@dataclass(frozen=True)
class NoFilter(PassAll):
    """Let every row pass."""

    name: ClassVar[str] = "filter"


@dataclass(frozen=True)
class Threshold(Narrowing):
    """Keep rows whose score is at least `minimum`; rows without a score go.

    Source: DataComp's clip_score filter with a threshold (score >= threshold, in float32).
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores")

    minimum: float

    def decide(self, rows: KeepList, scores: Scores) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        with np.errstate(invalid="ignore"):
            keep = scores.values >= np.float32(self.minimum)
        return by_score(rows, keep, scores, float(np.float32(self.minimum)))


@dataclass(frozen=True)
class TopFraction(Narrowing):
    """Keep the best-scored fraction of the rows, exactly floor(fraction * rows); ties go by uid hash.

    Source: DataComp's clip_score filter with a fraction. Departure: theirs keeps one row more and all
    ties.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores", "pool")

    fraction: float

    def __post_init__(self) -> None:
        require(0 < self.fraction <= 1, "fraction", self.fraction, "above 0 and at most 1")

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many."""
        return int(Decimal(str(self.fraction)) * num_rows)

    def decide(  # type: ignore[override]
        self, rows: KeepList, scores: Scores, pool: Pool
    ) -> tuple[KeepList, dict[str, Any]]:
        scored = rows.mask & ~np.isnan(scores.values)
        keep = first(score_keys(scores, pool.uid_hashes), scored, self.at_most(rows.num_kept))
        cut = float(scores.values[keep].min()) if keep.any() else float("inf")
        return by_score(rows, keep, scores, cut)


def by_score(rows: KeepList, keep: np.ndarray, scores: Scores, limit: float) -> tuple[KeepList, dict[str, Any]]:
    """Keep rows by their score, with the limit that it was held against, and say so for each row."""
    missing = np.isnan(scores.values)
    codes, texts = scores.missing.codes_over(rows.num_pool_rows, "no score")
    codes[~missing] = len(texts)
    kept = rows.within(
        "filter",
        keep,
        (codes, [*texts, "score below the limit"]),
        "score at or above the limit",
        value=scores.values,
        limit=lambda: np.full(rows.num_pool_rows, limit),
    )
    return kept, {"without score": int(np.count_nonzero(rows.mask & missing))}
