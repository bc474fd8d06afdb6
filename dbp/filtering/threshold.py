"""Filters on a score: thresholds, or the best fraction. They mask rows and read no vector."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import runtime
from dbp.exact.order import first, score_keys
from dbp.narrowing import Narrowing, PassAll
from dbp.offers import ReadsScore


@dataclass(frozen=True)
class NoFilter(PassAll):
    """Let every row pass."""

    name: ClassVar[str] = "filter"


@dataclass(frozen=True)
class Threshold(ReadsScore, Narrowing):
    """Keep rows whose score is at least `minimum`, or at most `maximum`; rows without a score are removed.

    Args:
        minimum: The lowest value kept, compared in float32. Or:
        maximum: The highest.
        score: Name of the score, of `scores`; empty for the one of `score=`.

    Source: DataComp's clip_score filter with a threshold (score >= threshold, in float32).
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores")

    minimum: float | None
    maximum: float | None = None
    score: str = runtime("")

    def __post_init__(self) -> None:
        is_one = (self.minimum is None) != (self.maximum is None)
        require(is_one, "minimum", self.minimum, f"given, or else maximum={self.maximum}; filter=all takes both")

    def decide(self, rows: KeepList, scores: Scores) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        with np.errstate(invalid="ignore"):
            if self.minimum is not None:
                limit = np.float32(self.minimum)
                return by_score(rows, scores.values >= limit, scores, float(limit), is_minimum=True)
            limit = np.float32(self.maximum)
            return by_score(rows, scores.values <= limit, scores, float(limit), is_minimum=False)


@dataclass(frozen=True)
class TopFraction(ReadsScore, Narrowing):
    """Keep the best-scored fraction of the rows, exactly floor(fraction * rows); ties go by uid hash.

    Args:
        fraction: Of the rows, in (0, 1].
        score: Name of the score, of `scores`; empty for the one of `score=`.

    Source: DataComp's clip_score filter with a fraction. Departure: theirs keeps one row more and all
    ties.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "scores", "pool")

    fraction: float
    score: str = runtime("")

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
        return by_score(rows, keep, scores, scores.worst(keep))


def by_score(
    rows: KeepList, keep: Bool[np.ndarray, " n"], scores: Scores, limit: float, is_minimum: bool | None = None
) -> tuple[KeepList, dict[str, Any]]:
    """Keep rows by their score, with the limit that it was held against, and say so for each row.

    Args:
        keep: Over all rows of the pool.
        limit: Of `scores.values`.
        is_minimum: Whether rows below the limit are removed; the score's direction says so where this is not given.
    """
    missing = np.isnan(scores.values)
    codes, texts = scores.missing.codes_over(rows.num_pool_rows, f"no {scores.label}")
    codes[~missing] = len(texts)
    up = scores.higher_is_better if is_minimum is None else is_minimum
    kept = rows.within(
        "filter",
        keep,
        (codes, [*texts, f"{scores.label} {'below' if up else 'above'} the limit"]),
        f"{scores.label} at or {'above' if up else 'below'} the limit",
        value=scores.values,
        limit=lambda: np.full(rows.num_pool_rows, limit),
    )
    return kept, {"without score": int(np.count_nonzero(rows.mask & missing))}
