"""DBP: density-based pruning. Clusters keep rows in proportion to the complexity of their concept.

Abbas et al. 2024 (arXiv 2401.04578):

    C_j = d_inter_j * d_intra_j                         complexity of cluster j
    P_j = softmax(C / temperature)_j                    its share of the budget T
    x   = argmin ||x - T P||^2,  sum x = T, 1 <= x_j <= n_j      quotas

then the x_j members farthest from the centroid are kept.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float64, Int

from dbp.clustering.geometry import complexity, d_inter, d_intra, entropy, softmax
from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.work import Work
from dbp.exact.order import Members
from dbp.selection.base import Selection, by_quota, candidates
from dbp.selection.quotas import allocate

Complexity = Literal["product", "d_intra", "d_inter", "size", "equal"]


@dataclass(frozen=True)
class Density(Selection):
    """Quotas by complexity, then the hardest members of each cluster.

    Args:
        temperature: Divides the complexity in the softmax; lower is sharper.
        num_neighbours: Other centroids that d_inter averages over; all where there are fewer.
        complexity: What stands for C_j: the `product`, one of its factors, the `size`, or `equal`.
        min_per_cluster: Fewest rows of each cluster that has them.
        members: Which rows of a cluster: `hard`, `easy` or `random`.
        balance: Share of budget / k that every cluster keeps at least, in [0, 1]; the larger floor holds.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "clusters")
    version: ClassVar[int] = 2

    temperature: float
    num_neighbours: int
    complexity: Complexity
    min_per_cluster: int
    members: Members
    balance: float = 0.0

    def __post_init__(self) -> None:
        require(self.temperature > 0, "temperature", self.temperature, "above 0")
        require(self.num_neighbours >= 1, "num_neighbours", self.num_neighbours, "at least 1")
        require(0 <= self.balance <= 1, "balance", self.balance, "in [0, 1]")
        require(self.min_per_cluster >= 0, "min_per_cluster", self.min_per_cluster, "at least 0")

    def unread(self) -> set[str]:
        return set() if self.members == "random" else {"seed"}

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, clusters: Clusters, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        among = candidates(rows, clusters, pool, self.members, self.seed, budget)
        table = self.cluster_table(clusters, among.mask, budget)
        kept = by_quota(rows, among, table["quota"], "beyond the cluster's quota", "within the quota")
        shares = table["probability"][table["size"] > 0]
        spread = entropy(shares)
        return kept, {
            "clusters": len(table["size"]),
            "clusters at their size": int(((table["quota"] == table["size"]) & (table["size"] > 0)).sum()),
            "entropy": round(spread, 6),
            "effective clusters": round(float(np.exp(spread)), 2),
        }

    def cluster_table(self, clusters: Clusters, mask: Bool[np.ndarray, " n"], budget: int) -> dict[str, np.ndarray]:
        """For each cluster: size, d_intra, d_inter, complexity, probability, target and quota.

        Of the rows of a mask. Empty clusters have no complexity and a quota of nil.
        """
        sizes, intra, inter = shape(clusters, mask, self.num_neighbours)
        filled = np.flatnonzero(sizes > 0)
        measure = np.full(len(sizes), np.nan)
        measure[filled] = self._measure(sizes[filled], intra[filled], inter[filled])
        probability = np.zeros(len(sizes))
        probability[filled] = softmax(measure[filled], self.temperature)
        floor = max(self.min_per_cluster, int(self.balance * budget / len(sizes)))
        quota = allocate(budget * probability, budget, np.minimum(floor, sizes), sizes)
        return {
            "size": sizes,
            "d_intra": intra,
            "d_inter": inter,
            "complexity": measure,
            "probability": probability,
            "target": budget * probability,
            "quota": quota,
        }

    def _measure(
        self, sizes: Int[np.ndarray, " k"], intra: Float64[np.ndarray, " k"], inter: Float64[np.ndarray, " k"]
    ) -> Float64[np.ndarray, " k"]:
        if self.complexity == "product":
            return complexity(inter, intra)
        choices = {"d_intra": intra, "d_inter": inter, "size": sizes / sizes.sum(), "equal": np.ones(len(sizes))}
        return choices[self.complexity]

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        counts = super().run(work, **inputs)
        rows, clusters = inputs["rows"], inputs["clusters"]
        table = self.cluster_table(clusters, rows.mask & clusters.is_clustered, counts["kept"])
        pq.write_table(pa.table(table), work.folder / "clusters.parquet")
        return counts


def shape(
    clusters: Clusters, mask: Bool[np.ndarray, " n"], num_neighbours: int
) -> tuple[Int[np.ndarray, " k"], Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
    """Size, d_intra and d_inter of each cluster, of the rows of a mask and among the filled clusters.

    Both distances of an empty cluster are NaN; a single filled cluster is 1 away from the others.
    """
    sizes = clusters.sizes_of(mask)
    intra = d_intra(clusters.distance_to_centroid, clusters.assignment, len(sizes), mask)
    filled, inter = np.flatnonzero(sizes > 0), np.full(len(sizes), np.nan)
    inter[filled] = d_inter(clusters.centroids[filled], num_neighbours) if len(filled) > 1 else 1.0
    return sizes, intra, inter


def temperature_for(complexity: Float64[np.ndarray, " k"], share: float) -> float | None:
    """The temperature at which the effective clusters are a share of all, to three digits; None if no one does.

    The entropy of softmax(complexity / temperature) rises with the temperature, so halving finds it.

    Args:
        complexity: Of the filled clusters.
        share: Of k, in (0, 1): exp(entropy) / k.
    """
    low, high = 1e-9, 1e9

    def effective(temperature: float) -> float:
        return float(np.exp(entropy(softmax(complexity, temperature)))) / len(complexity)

    if not effective(low) < share < effective(high):
        return None
    while high > low * 1.0001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if effective(middle) < share else (low, middle)
    return float(f"{low:.3g}")
