"""Exact duplicates: rows whose image bytes are equal, found by their content hash."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, UInt64

from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.narrowing import Narrowing, PassAll


@dataclass(frozen=True)
class ExactContent(Narrowing):
    """Keep the first row of each group with equal content.

    Args:
        with_caption: Two rows are equal only if their captions are equal, too.
    """

    name: ClassVar[str] = "dedup"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")
    if_few_stay: ClassVar[str] = (
        "one image may stand for all that could not be downloaded, or shards were given twice. Look at "
        "pool.shards, or set dedup.with_caption=true to compare captions, too; `dbp why UID` names the copy"
    )

    with_caption: bool

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        words = [pool.hash_words("content_hash", rows.rows)]
        if self.with_caption:
            words.append(pool.hash_words("caption_hash", rows.rows))
        twin = first_equal(np.concatenate(words, axis=1))
        is_first = twin == np.arange(len(twin))
        kept = rows.narrow(
            "dedup",
            is_first,
            "exact copy",
            "first of its content",
            related_row=np.where(is_first, -1, rows.rows[twin]),
        )
        return kept, {"exact copies": int((~is_first).sum())}


def first_equal(words: UInt64[np.ndarray, "n w"]) -> Int[np.ndarray, " n"]:
    """For each row the first row with equal words.

    One column of 64-bit numbers sorts many times faster than rows of several; rows that agree in the first
    word and not in the others are practically absent, and are told apart after.
    """
    n = len(words)
    order = np.argsort(words[:, 0], kind="stable")
    ordered = words[order]
    new_group = np.ones(n, bool)
    new_group[1:] = ordered[1:, 0] != ordered[:-1, 0]
    group = np.cumsum(new_group) - 1
    differs = np.zeros(n, bool)
    differs[1:] = ~new_group[1:] & (ordered[1:] != ordered[:-1]).any(axis=1)
    if differs.any():
        mixed = np.isin(group, group[differs])
        again = np.lexsort([*(ordered[mixed][:, w] for w in range(words.shape[1])), group[mixed]])
        at = np.flatnonzero(mixed)
        order[at] = order[at][again]
        ordered = words[order]
        new_group[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        group = np.cumsum(new_group) - 1
    first = order[np.flatnonzero(new_group)]
    twin = np.empty(n, np.int64)
    twin[order] = first[group]
    return twin


@dataclass(frozen=True)
class NoDedup(PassAll):
    """Leave duplicates where they are."""

    name: ClassVar[str] = "dedup"
