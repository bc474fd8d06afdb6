"""MetaCLIP: rows balanced over the entries of a metadata list.

Xu et al. 2024 (arXiv 2309.16671), section 3:

    c_e = captions that hold entry e
    p_e = t / max(c_e, t)
    keep a row with probability 1 - prod over its entries of (1 - p_e)

Frequent entries (the head) are thinned to about t rows, beside those that other entries keep; rare ones (the
tail) keep all they have. A row without any entry goes. `MetaClip` finds t so that the common budget is kept;
`MetaClipThreshold` takes t.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool

from dbp.config import require
from dbp.data.column import Column
from dbp.data.keep_list import KeepList
from dbp.data.matches import Matches
from dbp.data.pool import Pool
from dbp.engine.stage import Node, Offered
from dbp.engine.work import Work
from dbp.errors import BudgetError, DbpError
from dbp.exact.order import keyed_hash, ranks
from dbp.metadata.base import EntrySource
from dbp.metadata.entry_table import write_entry_table
from dbp.metadata.matching import Matching
from dbp.metadata.rules import Rule
from dbp.narrowing import Narrowing
from dbp.pools.index import Index
from dbp.selection.balance import NO_LIST, Balance, Combine, Languages, counted, no_column
from dbp.selection.base import Selection

NONE, UNLUCKY, LUCKY = "no entry matches", "not drawn", "drawn"
NO_LIST_REASON = "no list of entries for its language"


@dataclass(frozen=True)
class Balancing(Narrowing):
    """Keeps rows by the entries that their captions hold.

    Args:
        metadata: Where the entries come from.
        rule: When a caption holds one: `reference`, as published, `unspaced`, as in MetaCLIP 2, or `folded`.
        combine: `independent`: 1 - prod(1 - p), as the paper and its code draw; `sum`: min(1, sum of p), as
            its notebook shows.
        counts: What c_e counts: all valid rows of the `pool`, as published; or the `rows` that dedup and
            filter left, so that what they took does not thin an entry further.
        seed: Of the rows' random numbers.
        language: A column with each row's language, of `columns` or of the pool's index; entries are then counted
            and thinned in each language apart, at the share of tail that t gives in the reference language.
        reference_language: As that column writes it.
    """

    name: ClassVar[str] = "select"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "matches", "language")

    metadata: EntrySource
    rule: Rule
    combine: Combine
    counts: Literal["pool", "rows"]
    seed: int
    language: str | None = None
    reference_language: str = "en"

    def __post_init__(self) -> None:
        must = "the name of a column: select.metadata has a list for each language"
        require(self.language is not None or not self.metadata.by_language, "language", self.language, must)

    def unread(self) -> set[str]:
        return {"reference_language"} if self.language is None else set()

    def matching(self) -> Matching:
        """The stage that finds the entries of each caption."""
        return Matching(self.rule, self.metadata.by_language)

    def upstream(self, offers: Offered) -> dict[str, Node | None]:
        """The entries, and their matches in the captions of all valid rows."""
        column = None  # of the pool's index, if of anything
        named = offers.named("columns")
        if self.language in named:
            column = offers[f"columns.{self.language}"]
        elif self.language is not None and self.metadata.by_language:
            raise no_column(self.language, named)
        over = offers.beside(rows=offers["valid"], language=column)
        matches = over.beside(entries=over.bind(self.metadata)).bind(self.matching())
        return {"matches": matches, "language": column}

    def unneeded(self) -> set[str]:
        return {"language"} if self.language is None else set()

    def lacks(self, inputs: Mapping[str, Node]) -> Iterator[DbpError]:
        """The column of languages, if the pool cannot have it."""
        if self.language is not None and "language" not in inputs and type(inputs["pool"].stage) is Index:
            yield no_column(self.language, [])

    def balance(self, rows: KeepList, pool: Pool, matches: Matches, language: Column | None = None) -> Balance:
        """What is known of the rows at hand before a threshold is set."""
        languages = Languages.of(
            pool, rows.num_pool_rows, self.language, language, self.reference_language, list(matches.entries.lists)
        )
        return Balance.over(rows, pool, matches, languages, self.counts, self.seed, self.combine)

    def told(self, balance: Balance, threshold: float) -> dict[str, Any]:
        """Counts for the manifest."""
        own = balance.by_language[balance.languages.reference]
        is_head = own > threshold
        found: dict[str, Any] = {
            "threshold": threshold,
            NONE: int(np.count_nonzero(balance.mask)) - balance.num_matched,
            "expected": round(balance.expected(threshold), 2),
            "entries in the head": int(np.count_nonzero(is_head)),
            "entries in the tail": int(np.count_nonzero((own > 0) & ~is_head)),
            "tail's share of matches": round(balance.tail_share(threshold), 6),
        }
        if self.language is not None:
            every = balance.thresholds(threshold).tolist()
            found["thresholds"] = dict(zip(balance.languages.names, every, strict=True))
        return found

    def decided(
        self, rows: KeepList, balance: Balance, threshold: float, keep: Bool[np.ndarray, " n"], **columns: Any
    ) -> KeepList:
        """The keep list: its value is a row's probability, its limit the row's random number."""
        codes = np.zeros(rows.num_pool_rows, np.uint8)
        for block in balance.matches.blocks():
            codes[block.rows] = np.asarray(block.ends[1:]) > np.asarray(block.ends[:-1])
        reasons = [NONE, UNLUCKY]
        if NO_LIST in balance.languages.names:
            codes[balance.languages.of_row == balance.languages.names.index(NO_LIST)] = len(reasons)
            reasons.append(NO_LIST_REASON)

        def probability() -> np.ndarray:
            return np.concatenate([found for _, found in balance.probabilities(threshold)])

        def luck() -> np.ndarray:
            return (keyed_hash(balance.hashes, balance.seed) >> np.uint64(11)) * 2.0**-53

        return rows.within("select", keep, (codes, reasons), LUCKY, value=probability, limit=luck, **columns)

    def run(self, work: Work, **inputs: Any) -> dict[str, Any]:
        counts = super().run(work, **inputs)
        matches: Matches = inputs["matches"]
        balance = self.balance(inputs["rows"], inputs["pool"], matches, inputs.get("language"))
        kept = counted(matches, KeepList.load(work.folder).mask, balance.languages)
        thresholds = balance.thresholds(counts["threshold"])
        names, places = balance.languages.names, balance.languages.places(matches.entries)
        write_entry_table(work.folder, names, places, matches.entries, balance.counts, thresholds, kept)
        return counts


@dataclass(frozen=True)
class MetaClip(Balancing, Selection):
    """Balance to the common budget: the threshold is solved for."""

    def choose(
        self,
        rows: KeepList,
        budget: int,
        pool: Pool,
        *,
        matches: Matches,
        language: Column | None = None,
        **inputs: Any,
    ) -> tuple[KeepList, dict[str, Any]]:
        balance = self.balance(rows, pool, matches, language)
        if balance.num_matched < budget:
            raise BudgetError(
                f"cannot keep {budget:,} rows: {balance.num_matched:,} of the {rows.num_kept:,} rows at "
                f"hand hold one of the {len(matches.entries):,} entries. Lower the budget, or give more "
                "entries (select.metadata)."
            )
        threshold, keep = balance.solve(budget)

        def rank() -> np.ndarray:
            lots = np.concatenate([found for _, found in balance.lots(threshold)])
            taken = np.where(keep, lots, np.maximum(lots, 1))
            return ranks(taken.view(np.uint64), balance.mask & np.isfinite(lots))

        def quota() -> np.ndarray:
            return np.full(rows.num_pool_rows, budget)

        kept = self.decided(rows, balance, threshold, keep, rank=rank, quota=quota)
        return kept, self.told(balance, threshold)


@dataclass(frozen=True, kw_only=True)
class MetaClipThreshold(Balancing):
    """Balance at a given threshold; chance says how many rows that keeps, so it takes no budget.

    Args:
        threshold: t: an entry with more captions is thinned to about so many.
    """

    threshold: float

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.threshold >= 1,
            "threshold",
            self.threshold,
            "at least 1, the captions that an entry keeps; select=metaclip finds it from the budget",
        )

    def decide(  # type: ignore[override]
        self, rows: KeepList, base: KeepList, pool: Pool, matches: Matches, language: Column | None = None
    ) -> tuple[KeepList, dict[str, Any]]:
        balance = self.balance(rows, pool, matches, language)
        kept = self.decided(rows, balance, self.threshold, balance.kept(self.threshold))
        return kept, self.told(balance, self.threshold)
