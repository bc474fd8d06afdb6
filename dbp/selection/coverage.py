"""Coverage: rows that cover concepts in the proportions of a target, with diminishing returns (SDM's objective).

    max over |A| = budget of  share * sum_i p_i log(1 + m_i(A)) + (1 - share) * sum_b u_b log(1 + |A in bin b|)

m_i(A) counts the chosen rows that hold concept i; bins are equal parts of the rows by score, worst first. "Matched
Data, Better Models" (ICLR 2026) takes units of a sparse autoencoder as concepts; here they are clusters, texts of a
column, or entries of captions. One-hot clusters in their place are an assumption of ours, not published.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64, Int

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.missing import Missing
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import Node, Offered, runtime
from dbp.errors import BudgetError
from dbp.exact.order import first, keyed_hash, ranks, score_keys
from dbp.metadata.base import EntrySource
from dbp.metadata.matching import Matching
from dbp.metadata.rules import Rule
from dbp.offers import ReadsScore
from dbp.selection.base import Selection
from dbp.selection.concepts import Concepts

NO_CONCEPT = "no concept"


@dataclass(frozen=True)
class Coverage(ReadsScore, Selection):
    """Greedy choice by the gain of the objective; rows alike in concepts and bin go by a keyed hash of the uid.

    Args:
        concepts: `clusters`, texts of a `column`, or `entries` that captions hold.
        target: p_i: `uniform`, or the share of rows at hand that hold the concept (`pool`).
        share: Of the concepts in the objective, in (0, 1]; the paper's value is not known. 1 needs no scores.
        bins: u_b, for equal parts of the rows at hand by score, the worst first.
        column: For concepts=column, a name of `columns`.
        metadata: For concepts=entries, where they come from.
        rule: For concepts=entries, when a caption holds one.
        score: Name of the score of the bins; empty for the one of `score=`.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "clusters", "columns", "matches", "scores")

    concepts: Literal["clusters", "column", "entries"]
    target: Literal["uniform", "pool"]
    share: float
    bins: list[float]
    column: str = ""
    metadata: EntrySource | None = None
    rule: Rule = "reference"
    score: str = runtime("")

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "share", self.share, "above 0 and at most 1")
        has_weight = len(self.bins) > 0 and min(self.bins) >= 0 and sum(self.bins) > 0
        require(self.share == 1 or has_weight, "bins", self.bins, "weights of 0 or more, one above 0")
        require(self.concepts != "column" or bool(self.column), "column", self.column, "a name of columns")
        require(self.concepts != "entries" or self.metadata is not None, "metadata", None, "a source of entries")

    def unneeded(self) -> set[str]:
        others = {"clusters": "clusters", "column": "columns", "entries": "matches"}
        left = {need for kind, need in others.items() if kind != self.concepts}
        return left | ({"scores"} if self.share == 1 else set())

    def offered_as(self, need: str) -> str:
        return f"columns.{self.column}" if need == "columns" else super().offered_as(need)

    def upstream(self, offers: Offered) -> dict[str, Node]:
        if self.metadata is None or self.concepts != "entries":
            return {}
        over = offers.beside(rows=offers["valid"])
        return {"matches": over.beside(entries=over.bind(self.metadata)).bind(Matching(self.rule))}

    def choose(  # type: ignore[override]
        self, rows: KeepList, budget: int, pool: Pool, *, scores: Scores | None = None, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        from dbp.exact.greedy import greedy

        held = Concepts(*(inputs.get(name) for name in ("clusters", "columns", "matches")))
        mask = rows.mask & held.has_any(rows.num_pool_rows)
        if scores is not None:
            mask &= ~np.isnan(scores.values)
        if (count := int(np.count_nonzero(mask))) < budget:
            raise BudgetError(
                f"cannot keep {budget:,} rows: {count:,} of {rows.num_kept:,} hold a concept ({self.concepts})"
                f"{'' if scores is None else ' and have a score'}. Lower the budget."
            )
        bin_of = np.zeros(len(mask), np.int64)
        if scores is not None:
            bin_of = bins_of(scores, mask, len(self.bins), pool)
        at = np.flatnonzero(mask)
        kind, ends, concepts, of_kind = held.kinds(mask, bin_of)
        sizes = np.bincount(kind[at], minlength=len(of_kind)).astype(np.int64)
        keys = keyed_hash(pool.uid_hashes, self.seed)
        least = np.full(len(of_kind), np.iinfo(np.uint64).max, np.uint64)
        np.minimum.at(least, kind[at], keys[at])
        weights = target_shares(concepts, np.repeat(sizes, np.diff(ends)), held.num, self.target)
        taken = np.zeros(len(of_kind), np.int64)
        u = np.array(self.bins if scores is not None else [0.0])
        value = greedy(ends, concepts, of_kind, sizes, least, weights, u, self.share, budget, taken)
        place = ranks((keys >> np.uint64(32)).astype(np.uint32), mask, kind)
        keep = mask & (place < np.where(mask, taken[kind], 0))
        missing = next((one.missing for one in (held.clusters, scores) if one is not None), Missing())
        codes, texts = missing.codes_over(rows.num_pool_rows, "no embedding" if held.clusters else NO_CONCEPT)
        codes[mask] = len(texts)
        kept = rows.within(
            "select", keep, (codes, [*texts, "adds less"]), "adds most", rank=lambda: place,
            cluster=lambda: kind, quota=lambda: np.where(mask, taken[kind], -1),
        )  # fmt: skip
        covered = np.unique(concepts[np.repeat(taken > 0, np.diff(ends))])
        found = {"objective": round(float(value), 9), "concepts": held.num}
        return kept, {**found, "concepts covered": len(covered)}


def bins_of(scores: Scores, mask: Bool[np.ndarray, " n"], number: int, pool: Pool) -> Int[np.ndarray, " n"]:
    """The bin of each row of a mask: equal parts by score, the worst first."""
    keys, total = score_keys(scores, pool.uid_hashes), int(np.count_nonzero(mask))
    found = np.zeros(len(mask), np.int64)
    for cut in range(1, number):
        found[first(keys, mask, total - total * cut // number)] = cut
    return found


def target_shares(
    concepts: Int[np.ndarray, " c"], counts: Int[np.ndarray, " c"], number: int, target: str
) -> Float64[np.ndarray, " k"]:
    """p of each concept."""
    held = np.bincount(concepts, weights=counts, minlength=number)
    return (held > 0) / max(int((held > 0).sum()), 1) if target == "uniform" else held / held.sum()
