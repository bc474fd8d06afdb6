"""Samples that no arm may have: those that evaluation sets were made of, by the names in a list."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.paths import file_digest
from dbp.engine.stage import runtime
from dbp.errors import WorldError
from dbp.narrowing import Narrowing
from dbp.selection.imported import ImportedList

LAYER = "held out"  # the stage that keep lists name


@dataclass(frozen=True)
class HoldOut(Narrowing):
    """Remove the samples that a list of uids names, before anything else is decided.

    `dbp sets` writes such a list. Every later stage, and so every budget and every arm, is without them. Names that
    the pool lacks are counted. Near-duplicates under other uids stay: `dbp evaluate … contamination=` finds them.

    Args:
        file: A DataComp uid file, a text of one uid a line, or a Parquet file with a column `uid`.
    """

    name: ClassVar[str] = "hold_out"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    file: str = runtime()

    def identity(self) -> dict[str, Any]:
        return {"list": file_digest(self.file, "hold_out")}

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        times, num_names, hits, _ = ImportedList("uid", "uid", "once", self.file).times_of(pool)
        num_found = int(np.count_nonzero(hits))
        if num_found == 0 and pool.num_rows >= num_names:
            raise WorldError(
                f"hold_out={self.file!r}: none of its {num_names:,} uids is in the pool, whose uids are such as "
                f"{pool.uids(np.arange(1))[0]!r}, so nothing would be held out. Give the list of this pool, with "
                "pool.uid as it was then, or hold_out=null."
            )
        kept = rows.within(LAYER, times == 0, "sample of an evaluation set", "not held out")
        return kept, {"held out": rows.num_kept - kept.num_kept, "listed, not in the pool": num_names - num_found}
