"""Uniform: chance, the control that every method is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.clustering.order import keyed_hash
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.selection.base import Selection, ranks, take_first


@dataclass(frozen=True)
class Uniform(Selection):
    """Keep the rows with the smallest random number; the number belongs to (seed, uid)."""

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool")

    def choose(
        self, rows: KeepList, budget: int, pool: Pool, **inputs: Any
    ) -> tuple[KeepList, dict[str, Any]]:
        order = np.lexsort((rows.rows, keyed_hash(pool.uid_hashes[rows.rows], self.seed)))
        kept = rows.narrow(
            "select",
            take_first(order, budget),
            "not drawn",
            "drawn",
            rank=ranks(order),
            quota=np.full(len(order), budget),
        )
        return kept, {}
