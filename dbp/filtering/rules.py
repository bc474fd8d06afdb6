"""Filters on the caption's words and the picture's size, from the index alone."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from jaxtyping import Int

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.narrowing import Narrowing

Words = Literal["blanks", "fasttext"]

# fastText's `Dictionary::readWord`: it knows six blanks of ASCII and no others, and gives a line break as `</s>`.
FASTTEXT = re.compile("\n|[^ \n\r\t\v\f\0]+")
COUNT: dict[Words, Callable[[str], int]] = {
    "blanks": lambda caption: len(caption.split()),
    "fasttext": lambda caption: len(FASTTEXT.findall(caption)),
}


@dataclass(frozen=True)
class Rules(Narrowing):
    """Keep pairs with enough words, characters and pixels, and a moderate aspect ratio.

    Args:
        min_words: Words of the caption, at least.
        min_characters: Characters of the caption, at least.
        min_side: Pixels of the shorter side, at least.
        max_aspect_ratio: Longer side over shorter side, at most.
        words: What a word is: what stands between `blanks`, of Unicode; or a token of `fasttext`, where a line
            break is one, too, and a no-break space does not part words.

    Source: DataComp's basic filter (3 words, 6 characters, 200 pixels, ratio 3), without its language
        rule, which needs a downloaded model.
    """

    name: ClassVar[str] = "filter"
    version: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    min_words: int
    min_characters: int
    min_side: int
    max_aspect_ratio: float
    words: Words = "blanks"

    def __post_init__(self) -> None:
        require(self.max_aspect_ratio >= 1, "max_aspect_ratio", self.max_aspect_ratio, "at least 1")

    def decide(self, rows: KeepList, pool: Pool) -> tuple[KeepList, dict[str, Any]]:  # type: ignore[override]
        width, height = (pool.column(name)[rows.mask] for name in ("width", "height"))
        shorter = np.minimum(width, height)
        ratio = np.maximum(width, height) / np.maximum(shorter, 1)
        characters = pool.column("caption_length")[rows.mask]
        words = np.full(rows.num_kept, self.min_words)
        if self.min_words > 0:
            words = word_counts(pool, rows.rows, self.words)
        failures = (
            ("too few words", words < self.min_words, words, self.min_words),
            ("too few characters", characters < self.min_characters, characters, self.min_characters),
            ("picture too small", shorter < self.min_side, shorter, self.min_side),
            ("picture too long", ratio > self.max_aspect_ratio, ratio, self.max_aspect_ratio),
        )
        passes = np.ones(rows.num_kept, bool)
        code = np.zeros(rows.num_kept, np.uint8)
        value, limit = np.full(rows.num_kept, np.nan), np.full(rows.num_kept, np.nan)
        for number, (_, failed, measured, bound) in enumerate(failures):
            new = failed & passes
            code[new], value[new], limit[new] = number, np.asarray(measured, float)[new], bound
            passes &= ~failed
        texts = [why for why, *_ in failures]
        kept = rows.narrow("filter", passes, (code, texts), "passes the rules", value=value, limit=limit)
        return kept, {why: int(failed.sum()) for why, failed, _, _ in failures}


def word_counts(
    pool: Pool, rows: Int[np.ndarray, " m"], words: Words = "blanks", block: int = 1 << 16
) -> Int[np.ndarray, " m"]:
    """Words of captions, by either meaning of a word; captions are read a block at a time."""
    found = np.empty(len(rows), np.int64)
    for at in range(0, len(rows), block):
        captions = pool.captions(rows[at : at + block])
        found[at : at + block] = list(map(COUNT[words], captions))
    return found
