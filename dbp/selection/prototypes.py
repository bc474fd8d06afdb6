"""SSP: self-supervised prototypes, the rows farthest from their centroid.

Sorscher et al. 2022 name the score; no code was published. What is defined here: `scope=global` keeps the
members overall after a floor of balance * budget / k members of each cluster (or all of a smaller one),
the floor, too, filled in the order of members; `scope=cluster` keeps one rate of every cluster.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.exact.order import Members, first, first_of_each
from dbp.selection.base import Candidates, Selection, by_quota, candidates
from dbp.selection.quotas import allocate


@dataclass(frozen=True)
class Prototypes(Selection):
    """Keep the hardest (or easiest, or random) rows by distance to their centroid.

    Args:
        members: Which end: `hard` is farthest from the centroid.
        scope: `global` ranks all rows together; `cluster` keeps the same rate of each cluster.
        balance: For `global`: share of budget / k that every cluster keeps at least, in [0, 1].
    """

    version: ClassVar[int] = 2
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
        among = candidates(rows, clusters, pool, self.members, self.seed, budget)
        sizes = among.sizes
        if self.scope == "cluster":
            targets = budget * sizes / max(sizes.sum(), 1)
            quotas = allocate(targets, budget, np.zeros_like(sizes), sizes)
        else:
            quotas = self._global_quotas(among, sizes, budget)
        kept = by_quota(rows, among, quotas, f"not {self.members} enough", f"{self.members} member")
        return kept, {"clusters": clusters.num_clusters, "clusters kept whole": int((quotas == sizes).sum())}

    def _global_quotas(self, among: Candidates, sizes: np.ndarray, budget: int) -> np.ndarray:
        """Kept rows of each cluster when the floor is taken first and the rest overall."""
        clusters = among.clusters
        floor = np.minimum(int(self.balance * budget / clusters.num_clusters), sizes)
        in_floor = first_of_each(among.keys, clusters.assignment, among.mask, floor)
        rest = first(among.keys, among.mask & ~in_floor, budget - int(floor.sum()))
        return clusters.sizes_of(in_floor | rest)
