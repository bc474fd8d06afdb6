"""What every selection is: rows and a budget in, a keep list of exactly that many rows out."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int, UInt32, UInt64

from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.errors import BudgetError
from dbp.exact.order import Members, first_of_each, member_keys, ranks
from dbp.narrowing import Narrowing, PassAll
from dbp.selection.budget import Budget


@dataclass(frozen=True)
class Selection(Narrowing):
    """Chooses rows among those that survived dedup and filter.

    Args:
        budget: How many rows stay.
        seed: Of what is random; not part of the key where nothing is.
    """

    name: ClassVar[str] = "select"

    budget: Budget
    seed: int

    def decide(  # type: ignore[override]
        self, rows: KeepList, base: KeepList, pool: Pool, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        budget = self.budget.resolve(base.num_kept, rows.num_kept)
        kept, counts = self.choose(rows, budget, pool, **inputs)
        assert kept.num_kept == budget, f"{kept.num_kept} kept, {budget} asked for"
        return kept, counts

    @abstractmethod
    def choose(self, rows: KeepList, budget: int, pool: Pool, **inputs: Any) -> tuple[KeepList, dict[str, Any]]:
        """Choose exactly `budget` of `rows`, with the reason for each; and counts for the manifest."""


@dataclass(frozen=True)
class NoSelection(PassAll):
    """Keep what dedup and filter left; takes no budget."""

    name: ClassVar[str] = "select"


@dataclass(frozen=True)
class Candidates:
    """The clustered rows that selection may take, and the order within their clusters."""

    mask: Bool[np.ndarray, " n"]
    clusters: Clusters
    keys: UInt32[np.ndarray, " n"]

    @property
    def sizes(self) -> Int[np.ndarray, " k"]:
        """Candidates in each cluster."""
        return self.clusters.sizes_of(self.mask)


def candidates(
    rows: KeepList, clusters: Clusters, pool: Pool, members: Members, seed: int, budget: int
) -> Candidates:
    """Order the members of each cluster among the rows at hand.

    Raises:
        BudgetError: Fewer rows are clustered than the budget asks for.
    """
    mask = rows.mask & clusters.is_clustered
    if (count := int(np.count_nonzero(mask))) < budget:
        raise BudgetError(
            f"cannot keep {budget:,} rows: {count:,} of the {rows.num_kept:,} rows at hand are in a "
            "cluster; the others have no embedding. Lower the budget, or set cluster.on=dedup."
        )
    hashes = pool.uid_hashes if members == "random" else None
    keys = member_keys(members, clusters.distance_to_centroid, hashes, seed)
    return Candidates(mask, clusters, keys)


def by_quota(
    rows: KeepList, among: Candidates, quotas: Int[np.ndarray, " k"], reason: str, kept_reason: str
) -> KeepList:
    """Keep the first `quotas[j]` members of each cluster j, and say so for each row."""
    clusters = among.clusters
    keep = first_of_each(among.keys, clusters.assignment, among.mask, quotas)
    codes, texts = clusters.missing.codes_over(rows.num_pool_rows, "no embedding")
    codes[among.mask] = len(texts)

    def quota() -> np.ndarray:
        return np.where(among.mask, quotas[clusters.assignment], -1)

    return rows.within(
        "select",
        keep,
        (codes, [*texts, reason]),
        kept_reason,
        value=lambda: clusters.distance_to_centroid,
        cluster=lambda: clusters.assignment,
        rank=lambda: ranks(among.keys, among.mask, clusters.assignment),
        quota=quota,
    )


def in_order(
    rows: KeepList,
    keep: Bool[np.ndarray, " n"],
    keys: UInt64[np.ndarray, " n"],
    budget: int,
    reasons: Any,
    kept_reason: str,
    **columns: np.ndarray | Callable[[], np.ndarray],
) -> KeepList:
    """Keep rows that one order over all puts first, and say so for each row."""
    return rows.within(
        "select",
        keep,
        reasons,
        kept_reason,
        rank=lambda: ranks(keys, rows.mask),
        quota=lambda: np.full(rows.num_pool_rows, budget),
        **columns,
    )
