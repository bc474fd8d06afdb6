"""Hierarchical sampling: the budget is shared out evenly from the top of a tree of clusters down to rows.

Vo et al. 2024 (arXiv 2405.15613). A node with target t gives its children min(x, |child|) each, with the one x at
which these sum to t; what is left goes, one each, to children that are larger. |child| counts the rows below it.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int, UInt64

from dbp.clustering.hierarchy import Hierarchy, Levels
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.stage import Node, Offered, runtime
from dbp.errors import BudgetError
from dbp.exact.order import keyed_hash, ranks
from dbp.selection.base import Selection, candidates


@dataclass(frozen=True)
class Hierarchical(Selection):
    """Quotas by a hierarchy over the clustering, then members at random or nearest to the centroid.

    Args:
        levels, nearest, num_resamplings, num_iterations, cluster_seed: Of the hierarchy (`Hierarchy`); the
            clustering itself is its lowest level.
        members: Which rows of a cluster: `random`, or `easy`, those nearest to the centroid.
        most: How often a row is taken at most: a cluster with a quota above its size is taken in whole tiles, and a
            remainder of its first members.

    Source: facebookresearch/ssl-data-curation. Departures: keyed draws; centroids are clustered as fp16 vectors.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "clusters", "levels_above")

    levels: list[int]
    nearest: list[int]
    num_resamplings: int
    num_iterations: int
    cluster_seed: int
    members: Literal["random", "easy"]
    most: int
    threads: int = runtime(1)
    device: str = runtime("auto")

    def __post_init__(self) -> None:
        require(self.most >= 1, "most", self.most, "at least 1")
        self.hierarchy()

    def hierarchy(self) -> Hierarchy:
        """The stage that clusters the centroids."""
        return Hierarchy(
            self.levels, self.nearest, self.num_resamplings, self.num_iterations, self.cluster_seed,
            threads=self.threads, device=self.device,
        )  # fmt: skip

    def upstream(self, offers: Offered) -> dict[str, Node]:
        return {"levels_above": offers.bind(self.hierarchy())}

    def decide(  # type: ignore[override]
        self, rows: KeepList, base: KeepList, pool: Pool, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        budget = self.budget.resolve(base.num_kept, self.most * rows.num_kept)
        return self.choose(rows, budget, pool, **inputs)

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, clusters: Clusters, levels_above: Levels, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        among = candidates(rows, clusters, pool, self.members, self.seed, -(-budget // self.most))
        sizes, own = among.sizes, clusters.assignment
        if (room := self.most * int(sizes.sum())) < budget:
            raise BudgetError(
                f"cannot take {budget:,} rows: {int(sizes.sum()):,} are clustered, and select.most={self.most:,} "
                f"draws of each are {room:,}. Lower the budget, or raise select.most."
            )
        quota = quotas(sizes * self.most, levels_above.parents, budget, self.seed)
        tiles, rest = np.divmod(quota, np.maximum(sizes, 1))
        place = ranks(among.keys, among.mask, own)
        weights = np.zeros(rows.num_pool_rows, np.float32)
        at = np.flatnonzero(among.mask)
        weights[at] = tiles[own[at]] + (place[at] < rest[own[at]])
        codes, texts = clusters.missing.codes_over(rows.num_pool_rows, "no embedding")
        codes[among.mask] = len(texts)
        kept = rows.within(
            "select", weights > 0, (codes, [*texts, "beyond the cluster's share"]), "within the cluster's share",
            value=lambda: clusters.distance_to_centroid, cluster=lambda: own, rank=lambda: place,
            quota=lambda: np.where(among.mask, quota[own], -1),
        ).weighted(weights[rows.mask & (weights > 0)])  # fmt: skip
        return kept, {
            "clusters": int(np.count_nonzero(sizes)),
            "draws": int(kept.num_draws),
            "most draws of a row": int(weights.max(initial=0)),
            "clusters kept whole": int(np.count_nonzero((quota >= sizes) & (sizes > 0))),
        }


def quotas(
    sizes: Int[np.ndarray, " k"], parents: tuple[Int[np.ndarray, " _"], ...], budget: int, seed: int
) -> Int[np.ndarray, " k"]:
    """How many rows of each cluster are taken, shared out from the top.

    Args:
        sizes: The most that each cluster may give.
        parents: Of each level; -1 for a cluster without rows.
        budget: At most the sum of sizes.
    """
    below = [sizes]
    for parent in parents:
        total = np.zeros(int(parent.max(initial=0)) + 1, np.int64)
        np.add.at(total, parent[parent >= 0], below[-1][parent >= 0])
        below.append(total)
    targets = np.array([budget])
    for level in range(len(below) - 1, -1, -1):
        own = below[level]
        parent = parents[level] if level < len(parents) else np.zeros(len(own), np.int64)
        found = np.zeros(len(own), np.int64)
        keys = keyed_hash(np.arange(len(own), dtype=np.uint64), seed + level)
        children = np.flatnonzero(parent >= 0)
        children = children[np.argsort(parent[children], kind="stable")]
        edges = np.flatnonzero(np.r_[True, np.diff(parent[children]) != 0, True]) if len(children) else [0]
        for start, end in pairwise(edges):
            mine = children[start:end]
            found[mine] = fair_shares(own[mine], int(targets[parent[mine[0]]]), keys[mine])
        targets = found
    return targets


def fair_shares(sizes: Int[np.ndarray, " c"], target: int, keys: UInt64[np.ndarray, " c"]) -> Int[np.ndarray, " c"]:
    """min(x, size) for the largest x with a sum of at most the target, and one more for some that are larger.

    Args:
        target: At most the sum of sizes.
        keys: Who is first among those that may have one more.
    """
    ordered = np.sort(sizes)
    before = np.concatenate([[0], np.cumsum(ordered)])
    # With x = ordered[i], those before i are whole: the sum is before[i] + x (c - i), which rises with i.
    reached = before[:-1] + ordered * (len(ordered) - np.arange(len(ordered)))
    at = int(np.searchsorted(reached, target, side="right"))
    level = int(ordered[-1]) if at == len(ordered) else (target - int(before[at])) // (len(ordered) - at)
    found = np.minimum(sizes, level)
    left = target - int(found.sum())
    larger = np.flatnonzero(sizes > level)
    found[larger[np.argsort(keys[larger], kind="stable")][:left]] += 1
    return found
