"""SSP: self-supervised prototypes, the rows farthest from their centroid.

Sorscher et al. 2022 name the score; no code was published. What is defined here: `scope=global` keeps the
members overall after a floor of balance * budget / k members of each cluster (or all of a smaller one),
the floor, too, filled in the order of members; `scope=cluster` keeps one rate of every cluster.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.clustering.order import Members, keyed_hash
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.selection.base import Selection, by_quota, ranked_members
from dbp.selection.quotas import allocate


@dataclass(frozen=True)
class Prototypes(Selection):
    """Keep the hardest (or easiest, or random) rows by distance to their centroid.

    Args:
        members: Which end: `hard` is farthest from the centroid.
        scope: `global` ranks all rows together; `cluster` keeps the same rate of each cluster.
        balance: For `global`: share of budget / k that every cluster keeps at least, in [0, 1].
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "clusters")

    members: Members
    scope: Literal["global", "cluster"]
    balance: float

    def __post_init__(self) -> None:
        require(0 <= self.balance <= 1, "balance", self.balance, "in [0, 1]")

    def unread(self) -> set[str]:
        seed = set() if self.members == "random" else {"seed"}
        return seed | ({"balance"} if self.scope == "cluster" else set())

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, clusters: Clusters, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        member = ranked_members(rows, clusters, pool, self.members, self.seed, budget)
        view = member.clusters
        if self.scope == "cluster":
            targets = budget * view.sizes / max(view.sizes.sum(), 1)
            quotas = allocate(targets, budget, np.zeros_like(view.sizes), view.sizes)
        else:
            quotas = self._global_quotas(member.rank, view, pool, budget)
        kept = by_quota(
            rows, member, quotas, f"not {self.members} enough", f"{self.members} member"
        )
        return kept, {
            "clusters": view.num_clusters,
            "clusters kept whole": int((quotas == view.sizes).sum()),
        }

    def _global_quotas(
        self, rank: np.ndarray, view: Clusters, pool: Pool, budget: int
    ) -> np.ndarray:
        """Kept rows of each cluster when the floor is taken first and the rest overall."""
        floor = int(self.balance * budget / view.num_clusters)
        in_floor = rank < np.minimum(floor, view.sizes)[view.assignment]
        if self.members == "random":
            key: np.ndarray = keyed_hash(pool.uid_hashes[view.rows], self.seed)
        else:
            key = view.distance_to_centroid * (-1 if self.members == "hard" else 1)
        order = np.lexsort((view.rows, key, ~in_floor))
        return np.bincount(view.assignment[order[:budget]], minlength=view.num_clusters)
