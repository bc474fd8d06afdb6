"""Uniform: chance, the control that every method is compared with."""

from dataclasses import dataclass
from typing import Any, ClassVar

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.exact.order import first, keyed_hash
from dbp.selection.base import Selection, in_order


@dataclass(frozen=True)
class Uniform(Selection):
    """Keep the rows with the smallest random number; the number belongs to (seed, uid)."""

    needs: ClassVar[tuple[str, ...]] = ("rows", "base", "pool")

    def choose(self, rows: KeepList, budget: int, pool: Pool, **inputs: Any) -> tuple[KeepList, dict[str, Any]]:
        keys = keyed_hash(pool.uid_hashes, self.seed)
        keep = first(keys, rows.mask, budget)
        return in_order(rows, keep, keys, budget, "not drawn", "drawn"), {}
