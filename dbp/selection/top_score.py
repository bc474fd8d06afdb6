"""Top score: the rows whose captions fit best, by CLIP score."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.missing import reasons_of
from dbp.data.pool import Pool
from dbp.data.scores import Scores
from dbp.errors import BudgetError
from dbp.selection.base import Selection, ranks, take_first


@dataclass(frozen=True)
class TopScore(Selection):
    """Keep the rows with the highest scores; ties go by uid hash, rows without a score go last."""

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool", "scores")

    def unread(self) -> set[str]:
        return {"seed"}

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, *, scores: Scores, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        values = scores.of(rows.rows)
        missing = np.isnan(values)
        if (~missing).sum() < budget:
            raise BudgetError(
                f"cannot keep {budget:,} rows: {int((~missing).sum()):,} of {len(values):,} have a "
                "score. Lower the budget."
            )
        order = np.lexsort((pool.uid_hashes[rows.rows], -np.where(missing, -np.inf, values)))
        cut = values[order[budget - 1]]
        kept = rows.narrow(
            "select",
            take_first(order, budget),
            np.where(missing, reasons_of(rows.rows, scores.missing, "no score"), "lower score"),
            "top score",
            value=values,
            limit=np.full(len(values), cut),
            rank=ranks(order),
            quota=np.full(len(values), budget),
        )
        return kept, {"lowest kept score": round(float(cut), 6)}
