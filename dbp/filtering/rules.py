"""Filters on the caption's words and the picture's size, from the index alone."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.stage import Stage
from dbp.work import Work


@dataclass(frozen=True)
class Rules(Stage):
    """Keep pairs with enough words, characters and pixels, and a moderate aspect ratio.

    Args:
        min_words: Words divided by white space, at least.
        min_characters: Characters of the caption, at least.
        min_side: Pixels of the shorter side, at least.
        max_aspect_ratio: Longer side over shorter side, at most.

    Source: DataComp's basic filter (3 words, 6 characters, 200 pixels, ratio 3), without its language
        rule, which needs a downloaded model.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 1
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")
    makes: ClassVar[type] = KeepList

    min_words: int
    min_characters: int
    min_side: int
    max_aspect_ratio: float

    def __post_init__(self) -> None:
        require(self.max_aspect_ratio >= 1, "max_aspect_ratio", self.max_aspect_ratio, "at least 1")

    def run(self, work: Work, rows: KeepList, pool: Pool) -> dict[str, Any]:
        width, height = (pool.column(name)[rows.rows] for name in ("width", "height"))
        shorter = np.minimum(width, height)
        ratio = np.maximum(width, height) / np.maximum(shorter, 1)
        characters = pool.column("caption_length")[rows.rows]
        words = np.full(rows.num_kept, self.min_words)
        if self.min_words > 0:
            words = np.array([len(pool.caption(int(row)).split()) for row in rows.rows])
        failures = (
            ("too few words", words < self.min_words, words, self.min_words),
            (
                "too few characters",
                characters < self.min_characters,
                characters,
                self.min_characters,
            ),
            ("picture too small", shorter < self.min_side, shorter, self.min_side),
            ("picture too long", ratio > self.max_aspect_ratio, ratio, self.max_aspect_ratio),
        )
        reason = np.full(rows.num_kept, "", object)
        value = np.full(rows.num_kept, np.nan)
        limit = np.full(rows.num_kept, np.nan)
        for why, failed, measured, bound in failures:
            new = failed & (reason == "")
            reason[new], value[new], limit[new] = why, np.asarray(measured, float)[new], bound
        kept = rows.narrow(
            "filter", reason == "", reason, "passes the rules", value=value, limit=limit
        )
        kept.save(work.folder)
        found = {why: int(failed.sum()) for why, failed, _, _ in failures}
        return {"rows": rows.num_kept, "kept": kept.num_kept, **found}
