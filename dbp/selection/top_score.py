"""Top score: the rows whose captions fit best, by CLIP score."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.errors import BudgetError
from dbp.exact.order import first, score_keys
from dbp.selection.base import Selection, in_order


@dataclass(frozen=True)
class TopScore(Selection):
    """Keep the rows with the highest scores; ties go by uid hash, rows without a score go last."""

    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "scores")

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
        cut = float(scores.values[keep].min())
        codes, texts = scores.missing.codes_over(rows.num_pool_rows, "no score")
        codes[scored] = len(texts)
        kept = in_order(
            rows,
            keep,
            keys,
            budget,
            (codes, [*texts, "lower score"]),
            "top score",
            value=scores.values,
            limit=lambda: np.full(rows.num_pool_rows, cut),
        )
        return kept, {"lowest kept score": round(cut, 6)}
