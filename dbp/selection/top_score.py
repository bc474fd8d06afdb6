"""Top score: the rows with the best scores, by CLIP score where no other is named."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.engine.stage import runtime
from dbp.errors import BudgetError
from dbp.exact.order import first, score_keys
from dbp.offers import ReadsScore
from dbp.selection.base import Selection, in_order


@dataclass(frozen=True)
class TopScore(ReadsScore, Selection):
    """Keep the rows with the best scores; ties go by uid hash, rows without a score come last.

    Args:
        score: Name of the score, of `scores`; empty for the one of `score=`.
    """

    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "scores")

    score: str = runtime("")

    def unread(self) -> set[str]:
        return {"seed"}

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, scores: Scores, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        scored = rows.mask & ~np.isnan(scores.values)
        if (count := int(np.count_nonzero(scored))) < budget:
            raise BudgetError(
                f"cannot keep {budget:,} rows: {count:,} of {rows.num_kept:,} have a score. Lower the budget."
            )
        keys = score_keys(scores, pool.uid_hashes)
        keep = first(keys, scored, budget)
        cut = scores.worst(keep)
        codes, texts = scores.missing.codes_over(rows.num_pool_rows, f"no {scores.label}")
        codes[scored] = len(texts)
        kept = in_order(
            rows,
            keep,
            keys,
            budget,
            (codes, [*texts, f"worse {scores.label}"]),
            f"best {scores.label}",
            value=scores.values,
            limit=lambda: np.full(rows.num_pool_rows, cut),
        )
        return kept, {f"{'lowest' if scores.higher_is_better else 'highest'} kept score": round(cut, 6)}
