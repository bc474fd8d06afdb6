"""Exact duplicates: rows whose image bytes are equal, found by their content hash."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.stage import Stage
from dbp.work import Work


@dataclass(frozen=True)
class ExactContent(Stage):
    """Keep the first row of each group with equal content.

    Args:
        with_caption: Two rows are equal only if their captions are equal, too.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")
    makes: ClassVar[type] = KeepList

    with_caption: bool

    def run(self, work: Work, rows: KeepList, pool: Pool) -> dict[str, Any]:
        content = _records(pool, rows, self.with_caption)
        _, first, group = np.unique(content, return_index=True, return_inverse=True)
        twin = first[group.reshape(-1)]
        is_first = twin == np.arange(len(twin))
        kept = rows.narrow(
            "dedup",
            is_first,
            "exact copy",
            "first of its content",
            related_row=np.where(is_first, -1, rows.rows[twin]),
        )
        kept.save(work.folder)
        return {
            "rows": rows.num_kept,
            "kept": kept.num_kept,
            "exact copies": int((~is_first).sum()),
        }


def _records(pool: Pool, rows: KeepList, with_caption: bool) -> np.ndarray:
    columns = ["content_hash"] + (["caption_hash"] if with_caption else [])
    parts = [
        np.frombuffer(b"".join(pool.table[name].to_pylist()), "<u8").reshape(-1, 2)[rows.rows]
        for name in columns
    ]
    return (
        np.ascontiguousarray(np.concatenate(parts, axis=1))
        .view(np.dtype([(f"h{i}", "<u8") for i in range(2 * len(parts))]))
        .reshape(-1)
    )


@dataclass(frozen=True)
class NoDedup(Stage):
    """Leave duplicates where they are."""

    name: ClassVar[str] = "dedup"
    needs: ClassVar[tuple[str, ...]] = ("rows",)
    makes: ClassVar[type] = KeepList

    def run(self, work: Work, rows: KeepList) -> dict[str, Any]:
        rows.save(work.folder)
        return {"rows": rows.num_kept, "kept": rows.num_kept}
