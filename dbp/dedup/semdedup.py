"""SemDeDup: near duplicates inside fine clusters.

Each row is compared with the rows of its cluster that come earlier in an order (by default hardest
first: farthest from the centroid). Its best similarity and the row that has it are stored, so any
epsilon, or any number of rows to keep, can be applied later without reading a vector.

Abbas et al. 2023, algorithm in section 3 and the published code's chain rule: a row goes if it is more
similar than 1 - epsilon to any earlier row, also to one that itself goes. The greedy rule asks for an
earlier row that stays.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.clustering.kmeans import KMeans
from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.dedup.borders import Borders
from dbp.dedup.pairs import nearest_earlier as nearest_earlier  # the notebook's name for it
from dbp.dedup.similar import Keep, Match, NearestEarlier, SimilarRows
from dbp.engine.stage import Node, Offered, runtime
from dbp.errors import BudgetError, ConfigError
from dbp.exact.order import ascending, first
from dbp.narrowing import Narrowing

Rule = Literal["chain", "greedy"]
KEPT = "no earlier duplicate"


@dataclass(frozen=True)
class SemDeDup(Narrowing):
    """Remove rows that are more similar than 1 - epsilon to an earlier row of their fine cluster.

    Args:
        epsilon: In [0, 2]; larger removes more. Or:
        num_clusters: Of the fine clustering; `auto` for sqrt(0.75 n).
        num_iterations, points_per_centroid: Of its fit.
        keep: Which row of a group stays: `hard` (farthest from the centroid), `easy`, `random`, `score`
            (the best) or `largest` (most pixels).
        seed: Of the fit, and for `keep=random`.
        modality: What is compared: `image`, `text`, `joint` (mean of both cosines), or each side apart:
            a row goes when `both` or `either` of its image and its caption are too similar.
        rule: `chain` compares with every earlier row, as published; `greedy` with earlier rows that stay.
        num_kept: Keep exactly so many rows, the least similar ones, instead of an epsilon; chain only.
        floor: For `greedy`: pairs above this similarity are stored; epsilon can be anything up to
            1 - floor without comparing anew.
        runs: Whether the fine clustering also writes the vectors sorted by cluster: `auto` above 4 GB.
        threads, device: Of the comparison and the fine clustering.
        score: Name of the score of `keep=score`, of `scores`; empty for the one of `score=`.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "similar")

    epsilon: float | None
    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    keep: Keep
    seed: int
    modality: Match
    rule: Rule = "chain"
    num_kept: int | None = None
    floor: float = 0.9
    runs: Literal["auto", "yes", "no"] = runtime("auto")
    threads: int = runtime(1)
    device: str = runtime("auto")
    score: str = runtime("")

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.num_kept is None):
            raise ConfigError(
                f"epsilon={self.epsilon}, num_kept={self.num_kept}: give exactly one of dedup.epsilon and "
                "dedup.num_kept; null unsets the other."
            )
        if self.epsilon is not None:
            require(0 <= self.epsilon <= 2, "epsilon", self.epsilon, "in [0, 2]: 1 - cosine")
        if self.rule == "greedy":
            require(self.num_kept is None, "num_kept", self.num_kept, "null with rule=greedy")
            most = 1 - (self.epsilon or 0)
            require(
                -1 <= self.floor <= most,
                "floor",
                self.floor,
                f"at most 1 - dedup.epsilon = {most:g}, so that every pair above it is stored",
            )
        require(not self.score or self.keep == "score", "score", self.score, "empty unless dedup.keep=score")
        self.comparison()

    def unread(self) -> set[str]:
        return set() if self.rule == "greedy" else {"floor"}

    def at_most(self, num_rows: int) -> int:
        """The most rows that can be left of so many."""
        return num_rows if self.num_kept is None else min(self.num_kept, num_rows)

    def upstream(self, offers: Offered) -> dict[str, Node]:
        """A fine clustering, the most similar earlier row of each row, and what borders between clusters hide."""
        clustering = self.clustering()
        fine = offers.beside(clusters=offers.bind(clustering))
        side = dict.fromkeys(clustering.unneeded())
        return {"similar": fine.bind(self.comparison()), "borders": fine.beside(**side).bind(Borders())}

    def comparison(self) -> NearestEarlier:
        """The stage whose result this one thresholds."""
        floor = self.floor if self.rule == "greedy" else None
        return NearestEarlier(
            self.clustering(), self.keep, self.seed, self.modality, floor, self.threads, self.device, self.score
        )

    def clustering(self) -> KMeans:
        """The fine clustering."""
        side = self.modality if self.modality in ("text", "joint") else "image"
        return KMeans(
            self.num_clusters,
            self.num_iterations,
            self.points_per_centroid,
            self.seed,
            side,
            "pool",
            runs=self.runs,
            threads=self.threads,
            device=self.device,
        )

    def decide(self, rows: KeepList, similar: SimilarRows) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        counts: dict[str, Any] = {}
        if self.rule == "greedy":
            assert self.epsilon is not None, "greedy has an epsilon"
            kept = remove_greedily(rows, similar, self.epsilon)
        elif self.num_kept is not None:
            kept, implied = keep_exactly(rows, similar, self.num_kept)
            counts["epsilon"] = implied
        else:
            assert self.epsilon is not None, "one of the two is given"
            kept = remove_similar(rows, similar, self.epsilon)
        return kept, counts | removed(kept)


def removed(kept: KeepList) -> dict[str, int]:
    """Rows that dedup removed, by reason."""
    found = {n.removeprefix("dedup: "): count for n, count in kept.counts().items() if n.startswith("dedup: ")}
    return {reason: count for reason, count in found.items() if reason != KEPT}


def remove_similar(rows: KeepList, similar: SimilarRows, epsilon: float) -> KeepList:
    """Apply the chain rule at an epsilon to stored similarities.

    The comparison is in float32, as published, so that exact copies go at epsilon = 0 only where their
    stored cosine exceeds 1 - epsilon.
    """
    limit = np.float32(1 - epsilon)
    with np.errstate(invalid="ignore"):
        keep = similar.has_vector & ~(similar.similarity > limit)
    return _decided(rows, similar, keep, 1 - epsilon, similar.similarity, similar.twin)


def keep_exactly(rows: KeepList, similar: SimilarRows, count: int) -> tuple[KeepList, float]:
    """Keep the rows with the lowest stored similarity, exactly so many; of equal ones the lower rows.

    Returns:
        The keep list, and the epsilon that it implies: 1 - the lowest similarity that went.

    Raises:
        BudgetError: More than there are, or fewer than rows without any earlier row.
    """
    usable = rows.mask & similar.has_vector
    alone = usable & np.isneginf(similar.similarity)
    most, least = int(np.count_nonzero(usable)), int(np.count_nonzero(alone))
    if not least <= count <= most:
        raise BudgetError(
            f"cannot keep dedup.num_kept={count:,} rows: {most:,} have a vector, and {least:,} of them "
            "come first in their cluster, so nothing removes them. Give a number between, or fewer clusters."
        )
    gone = usable & ~first(ascending(similar.similarity), usable, count)
    lowest = float(similar.similarity[gone].min()) if gone.any() else 1.0
    keep = usable & ~gone
    kept = _decided(rows, similar, keep, lowest, similar.similarity, similar.twin)
    return kept, round(1 - lowest, 8)


def remove_greedily(rows: KeepList, similar: SimilarRows, epsilon: float) -> KeepList:
    """Remove rows that are more similar than 1 - epsilon to an earlier row that stays."""
    from dbp.exact.kernels import keep_greedily

    pairs = similar.pairs
    assert pairs is not None, "the comparison stored pairs"
    over = pairs.similarity > np.float32(1 - epsilon)
    keep = similar.has_vector.copy()
    value = np.full(rows.num_pool_rows, np.nan, np.float32)
    twin = np.full(rows.num_pool_rows, -1, np.int64)
    keep_greedily(pairs.later[over], pairs.earlier[over], pairs.similarity[over], keep, value, twin)
    return _decided(rows, similar, keep, 1 - epsilon, value, twin)


def _decided(
    rows: KeepList, similar: SimilarRows, keep: np.ndarray, limit: float, value: np.ndarray, twin: np.ndarray
) -> KeepList:
    codes, texts = similar.missing.codes_over(rows.num_pool_rows, "no embedding")
    codes[similar.has_vector] = len(texts)
    return rows.within(
        "dedup",
        keep,
        (codes, [*texts, "duplicate"]),
        KEPT,
        value=lambda: np.where(np.isneginf(value), np.nan, value),
        limit=lambda: np.full(rows.num_pool_rows, limit),
        related_row=twin,
        cluster=similar.cluster,
    )
