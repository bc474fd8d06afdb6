"""Entries from the pool's own captions, where no dictionary is at hand."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dbp.config import require
from dbp.data.keep_list import KeepList
from dbp.data.pool import Pool
from dbp.engine.progress import progress
from dbp.exact.order import first, keyed_hash
from dbp.metadata.base import EntrySource
from dbp.metadata.ngrams import NGrams

CAPTIONS = 4096  # held at once


@dataclass(frozen=True)
class FromCaptions(EntrySource):
    """Frequent words of the captions, then pairs of neighbours that belong together.

    Args:
        min_count: Occurrences of a word, at least.
        min_pair_count: Occurrences of a pair, at least.
        min_information: Pointwise mutual information of a pair, at least; in bits.
        sample: Captions that are counted, at most: those with the smallest hashes of their uid. Bounds the
            memory, 1 to 2 GB for 2 million captions of ten words.

    Source: MetaCLIP's two sources from Wikipedia (Xu et al. 2024, table 1), applied to captions; ours.
    """

    needs: ClassVar[tuple[str, ...]] = ("rows", "pool")

    min_count: int
    min_pair_count: int
    min_information: float
    sample: int

    def __post_init__(self) -> None:
        for name in ("min_count", "min_pair_count", "sample"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")

    def texts(self, *, rows: KeepList, pool: Pool, **inputs: Any) -> Iterable[str]:  # type: ignore[override]
        chosen = np.flatnonzero(first(keyed_hash(pool.uid_hashes, 0), rows.mask, self.sample))
        counted = NGrams()
        with progress("entries", len(chosen), "captions") as bar:
            for start in range(0, len(chosen), CAPTIONS):
                block = chosen[start : start + CAPTIONS]
                counted.add(pool.captions(block))
                bar.advance(len(block))
        yield from counted.words(self.min_count)
        yield from counted.pairs(self.min_pair_count, self.min_information)
