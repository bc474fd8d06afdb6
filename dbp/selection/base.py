"""What every selection is: rows and a budget in, a keep list of exactly that many rows out."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Int

from dbp.clustering.order import Members, member_order
from dbp.data.clusters import Clusters
from dbp.data.keep_list import KeepList
from dbp.data.missing import reasons_of
from dbp.data.pool import Pool
from dbp.errors import BudgetError
from dbp.selection.budget import Budget
from dbp.stage import Stage
from dbp.work import Work


@dataclass(frozen=True)
class Selection(Stage):
    """Chooses rows among those that survived dedup and filter.

    Args:
        budget: How many rows stay.
        seed: Of what is random; not part of the key where nothing is.
    """

    name: ClassVar[str] = "select"
    makes: ClassVar[type] = KeepList

    budget: Budget
    seed: int

    def run(
        self, work: Work, rows: KeepList, base: KeepList, pool: Pool, **inputs: Any
    ) -> dict[str, Any]:
        budget = self.budget.resolve(base.num_kept, rows.num_kept)
        kept, counts = self.choose(rows, budget, pool, **inputs)
        assert kept.num_kept == budget, f"{kept.num_kept} kept, {budget} asked for"
        kept.save(work.folder)
        return {"rows": rows.num_kept, "kept": kept.num_kept, "keep list": kept.digest, **counts}

    @abstractmethod
    def choose(
        self, rows: KeepList, budget: int, pool: Pool, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        """Choose exactly `budget` of `rows`, with the reason for each; and counts for the manifest."""


@dataclass(frozen=True)
class NoSelection(Stage):
    """Keep what dedup and filter left; takes no budget."""

    name: ClassVar[str] = "select"
    needs: ClassVar[tuple[str, ...]] = ("rows",)
    makes: ClassVar[type] = KeepList

    def run(self, work: Work, rows: KeepList) -> dict[str, Any]:
        rows.save(work.folder)
        return {"rows": rows.num_kept, "kept": rows.num_kept, "keep list": rows.digest}


def take_first(order: Int[np.ndarray, " n"], count: int) -> Bool[np.ndarray, " n"]:
    """The mask of the first `count` positions of an order."""
    keep = np.zeros(len(order), bool)
    keep[order[:count]] = True
    return keep


def ranks(order: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """The place of each position in an order; 0 is first."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return places


@dataclass(frozen=True)
class Member:
    """For each row that selection sees: its cluster, its distance, and its place in its cluster."""

    is_clustered: Bool[np.ndarray, " m"]
    clusters: Clusters  # masked to the rows at hand
    rank: Int[np.ndarray, " c"]  # among the clustered rows, in their order

    def over(self, values: np.ndarray, missing: float | int) -> np.ndarray:
        """Values of the clustered rows spread over all rows."""
        spread = np.full(len(self.is_clustered), missing, values.dtype)
        spread[self.is_clustered] = values
        return spread


def ranked_members(
    rows: KeepList, clusters: Clusters, pool: Pool, members: Members, seed: int, budget: int
) -> Member:
    """Order the members of each cluster among the rows at hand.

    Raises:
        BudgetError: Fewer rows are clustered than the budget asks for.
    """
    is_clustered, view = clusters.of(rows.rows)
    if len(view.rows) < budget:
        raise BudgetError(
            f"cannot keep {budget:,} rows: {len(view.rows):,} of the {rows.num_kept:,} rows at hand are in a "
            "cluster; the others have no embedding. Lower the budget, or set cluster.on=dedup."
        )
    order = member_order(
        members, view.distance_to_centroid, view.rows, pool.uid_hashes[view.rows], seed
    )
    by_cluster = order[np.argsort(view.assignment[order], kind="stable")]
    starts = np.cumsum(view.sizes) - view.sizes
    rank = np.empty(len(order), np.int64)
    rank[by_cluster] = np.arange(len(order)) - starts[view.assignment[by_cluster]]
    return Member(is_clustered, view, rank)


def by_quota(
    rows: KeepList, member: Member, quotas: Int[np.ndarray, " k"], reason: str, kept_reason: str
) -> KeepList:
    """Keep the first `quotas[j]` members of each cluster j, and say so for each row."""
    assignment = member.clusters.assignment
    keep = np.zeros(rows.num_kept, bool)
    keep[member.is_clustered] = member.rank < quotas[assignment]
    absent = reasons_of(rows.rows, member.clusters.missing, "no embedding")
    return rows.narrow(
        "select",
        keep,
        np.where(member.is_clustered, reason, absent),
        kept_reason,
        value=member.over(member.clusters.distance_to_centroid.astype(np.float64), np.nan),
        cluster=member.over(assignment.astype(np.int64), -1),
        rank=member.over(member.rank, -1),
        quota=member.over(quotas[assignment], -1),
    )
