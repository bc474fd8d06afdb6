"""Cluster power: clusters share an epoch in proportion to a power of their size (DynamiCS).

Liang et al. 2026 (arXiv 2604.27932), with T rows in an epoch:

    m_c = T n_c^power / sum n^power       rows of cluster c in an epoch
    p_c = m_c / n_c                       how often each of its rows is read, in the mean

Power 1 is a uniform draw, power 0 gives each cluster the same share.
"""

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float64, Int

from dbp.config import require
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.exact.order import ranks
from dbp.selection.base import Selection, candidates
from dbp.selection.quotas import allocate


@dataclass(frozen=True)
class ClusterPower(Selection):
    """Take rows of each cluster in proportion to its size to a power; anew in each epoch, or once.

    Per epoch, the keep list holds all clustered rows with their weights p_c, and training draws each row by (seed,
    epoch, uid); with `clip` an epoch holds fewer than `budget` rows, as in the released code. Static, the
    list holds exactly `budget` draws: with `clip` different rows, else small clusters several times.

    Args:
        power: Of the size; 0.2 as published.
        per_epoch: Draw anew in each epoch.
        clip: Read no row more than once in an epoch, as released.

    Source: MingliangLiang3/DynamiCS. Departures: theirs draws without a seed; m_c is not rounded per epoch.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "clusters")

    power: float
    per_epoch: bool
    clip: bool

    def __post_init__(self) -> None:
        require(0 <= self.power <= 2, "power", self.power, "in [0, 2]")

    def unread(self) -> set[str]:
        return {"seed"} if self.per_epoch else set()  # training draws

    def decide(  # type: ignore[override]
        self, rows: KeepList, base: KeepList, pool: Pool, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        unlimited = not self.clip or self.per_epoch
        budget = self.budget.resolve(base.num_kept, base.num_kept if unlimited else rows.num_kept)
        return self.choose(rows, budget, pool, **inputs)

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, clusters: Clusters, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        unlimited = not self.clip or self.per_epoch
        among = candidates(rows, clusters, pool, "random", self.seed, 1 if unlimited else budget)
        sizes, own = among.sizes, clusters.assignment
        target = budget * shares(sizes, self.power)
        codes, texts = clusters.missing.codes_over(rows.num_pool_rows, "no embedding")
        codes[among.mask] = len(texts)
        weights = np.zeros(rows.num_pool_rows, np.float32)
        if self.per_epoch:
            mean = target / np.maximum(sizes, 1)
            weights[among.mask] = (np.minimum(mean, 1) if self.clip else mean)[own[among.mask]]
            why = "drawn anew in each epoch"
        else:
            upper = sizes if self.clip else np.where(sizes > 0, budget, 0)
            quota = allocate(target, budget, np.zeros_like(sizes), upper)
            tiles, rest = np.divmod(quota, np.maximum(sizes, 1))
            place = ranks(among.keys, among.mask, own)
            at = np.flatnonzero(among.mask)
            weights[at] = tiles[own[at]] + (place[at] < rest[own[at]])
            why = "within the cluster's share"
        keep = weights > 0
        kept = rows.within(
            "select", keep, (codes, [*texts, "beyond the cluster's share"]), why,
            cluster=lambda: own, value=lambda: clusters.distance_to_centroid,
        ).weighted(weights[keep & rows.mask])  # fmt: skip
        return kept, {
            "draws": round(kept.num_draws, 2),
            "most draws of a row": round(float(weights.max(initial=0)), 4),
            "clusters": int(np.count_nonzero(sizes)),
            "clusters read whole": int(np.count_nonzero((target >= sizes) & (sizes > 0))),
        }


def shares(sizes: Int[np.ndarray, " k"], power: float) -> Float64[np.ndarray, " k"]:
    """n_c^power over their sum; 0 for empty clusters. The same bits on every processor.

    Each power is rounded correctly in 28 decimal digits, and the sum and the quotients are exact.
    """
    distinct, inverse, often = np.unique(sizes, return_inverse=True, return_counts=True)
    powers = [Fraction(Decimal(size) ** Decimal(str(power))) if size else Fraction(0) for size in distinct.tolist()]
    total = sum((value * count for value, count in zip(powers, often.tolist(), strict=True)), Fraction(0))
    return np.array([float(value / total) for value in powers])[inverse]
