"""TL;DR's selection: an equal fraction of each cluster of codes, after the better half by matching score.

Wang et al. 2023 (arXiv 2305.20087), section 3: pictures are clustered by the codes of a codebook that was trained
to caption them; a fixed share of each cluster is drawn by chance (table 2b: as good as choosing by distance). The
released code also keeps to the half with the better image-text matching score.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.captioning.codes import CodeVectors
from dbp.clustering.kmeans import KMeans
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import Node, Offered, runtime
from dbp.errors import BudgetError
from dbp.exact.order import Members, first, score_keys
from dbp.offers import ReadsScore
from dbp.selection.base import Selection, by_quota, candidates
from dbp.selection.quotas import allocate


@dataclass(frozen=True)
class Tldr(ReadsScore, Selection):
    """An equal fraction of each cluster of codes, to exactly the budget.

    Args:
        vectors: What is clustered: `histogram` of codes, `mean` code vector, or the `published` numbers of
            codes as coordinates, whose distances have no meaning.
        num_clusters: Of the codes; `auto` for sqrt(0.75 n).
        num_iterations, points_per_centroid, cluster_seed: Of the clustering.
        on: Rows to cluster: of the `pool`, left by `dedup`, or left by the filter.
        members: Which rows of a cluster: `random`, as published; `easy`, nearest to its centroid; `hard`.
        matching_fraction: Share of the rows at hand, those with the best scores, that clusters are filled
            from, in (0, 1]; 1 needs no scores.
        threads, device: Of the clustering.
        score: Name of the matching score, of `scores`; empty for the one of `score=`.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "scores", "clusters")

    vectors: Literal["histogram", "mean", "published"]
    num_clusters: int | Literal["auto"]
    num_iterations: int
    points_per_centroid: int
    cluster_seed: int
    on: Literal["pool", "dedup", "filtered"]
    members: Members
    matching_fraction: float
    threads: int = runtime(1)
    device: str = runtime("auto")
    score: str = runtime("")

    def __post_init__(self) -> None:
        share = self.matching_fraction
        require(0 < share <= 1, "matching_fraction", share, "above 0 and at most 1")
        self.clustering()

    def unread(self) -> set[str]:
        return set() if self.members == "random" else {"seed"}

    @property
    def needs_scores(self) -> bool:
        return self.matching_fraction < 1

    def unneeded(self) -> set[str]:
        return set() if self.needs_scores else {"scores"}

    def upstream(self, offers: Offered) -> dict[str, Node]:
        """The clustering of the codes."""
        rows = {"pool": "valid", "dedup": "deduped", "filtered": "filtered"}[self.on]
        codes = CodeVectors(self.vectors).bind(codes=offers["codes"])
        return {"clusters": offers.beside(rows=offers[rows], image=codes).bind(self.clustering())}

    def clustering(self) -> KMeans:
        """The clustering of the codes."""
        return KMeans(
            self.num_clusters,
            self.num_iterations,
            self.points_per_centroid,
            self.cluster_seed,
            "image",
            self.on,
            threads=self.threads,
            device=self.device,
        )

    def choose(  # type: ignore[override]
        self,
        rows: KeepList,
        budget: int,
        pool: Pool,
        *,
        clusters: Clusters,
        scores: Scores | None = None,
        **inputs: Any,
    ) -> tuple[KeepList, dict[str, Any]]:
        better = rows
        if scores is not None and self.needs_scores:
            better = self.better_scored(rows, budget, pool, scores)
        among = candidates(better, clusters, pool, self.members, self.seed, budget)
        sizes = among.sizes
        targets = budget * (sizes / max(int(sizes.sum()), 1))
        quotas = allocate(targets, budget, np.zeros(len(sizes), np.int64), sizes)
        kept = by_quota(better, among, quotas, "beyond the cluster's share", "within the share")
        return kept, {
            "matching": better.num_kept,
            "clusters": int((sizes > 0).sum()),
            "fraction of each cluster": round(budget / max(int(sizes.sum()), 1), 6),
        }

    def better_scored(self, rows: KeepList, budget: int, pool: Pool, scores: Scores) -> KeepList:
        """The share of the rows with the best scores; rows without a score come last.

        Raises:
            BudgetError: It is smaller than the budget.
        """
        count = int(Decimal(str(self.matching_fraction)) * rows.num_kept)
        if count < budget:
            raise BudgetError(
                f"cannot keep {budget:,} rows: select.matching_fraction={self.matching_fraction:g} leaves "
                f"{count:,} of the {rows.num_kept:,} rows at hand. Raise it (1 for no score), or lower the budget."
            )
        keys = score_keys(scores, pool.uid_hashes)
        codes, texts = scores.missing.codes_over(rows.num_pool_rows, f"no {scores.label}")
        codes[~np.isnan(scores.values)] = len(texts)
        return rows.within(
            "matching",
            first(keys, rows.mask, count),
            (codes, [*texts, "worse matching score"]),
            "better matching score",
            value=lambda: scores.values,
        )
