"""Words and pairs of neighbouring words, counted; and which pairs belong together."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int

from dbp.metadata.rules import spaced

BLOCK = 1 << 20  # words whose pairs are counted together
BREAK = -1  # stands between texts, and where a mark parts two words


def words_of(text: str) -> list[str]:
    """What blanks part in a spaced text, case as it stands; marks without a letter or digit are empty."""
    return [word if any(map(str.isalnum, word)) else "" for word in spaced(text).split(" ") if word]


def mutual_information(pair: int, left: int, right: int, total: int) -> float:
    """Pointwise mutual information of two neighbours: log2(n_xy N / (n_x n_y)), from counts.

    Source: NLTK's measure, which MetaCLIP's builder calls.
    """
    return math.log2(pair * total / (left * right))


class NGrams:
    """Exact counts of words and pairs; about 120 bytes a distinct word and 16 a distinct pair."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts = np.zeros(0, np.int64)
        self._pairs = np.zeros(0, np.uint64)  # sorted: first word's number above the second's
        self._pair_counts = np.zeros(0, np.int64)
        self._waiting: list[int] = []

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of texts; pairs do not reach from one text to the next."""
        numbers = self._numbers
        for text in texts:
            for word in words_of(text):
                self._waiting.append(numbers.setdefault(word, len(numbers)) if word else BREAK)
            self._waiting.append(BREAK)
            if len(self._waiting) >= BLOCK:
                self._count()

    def _count(self) -> None:
        line = np.array(self._waiting, np.int64)
        self._waiting.clear()
        counts = np.bincount(line[line >= 0], minlength=len(self._numbers))
        counts[: len(self._counts)] += self._counts
        self._counts = counts
        left, right = line[:-1], line[1:]
        both = (left >= 0) & (right >= 0)
        codes = left[both].astype(np.uint64) << np.uint64(32) | right[both].astype(np.uint64)
        new, times = np.unique(codes, return_counts=True)
        every = np.concatenate([self._pairs, new])
        order = np.argsort(every, kind="stable")
        every = every[order]
        starts = np.flatnonzero(np.concatenate([[True], every[1:] != every[:-1]]))[: len(every)]
        self._pairs = every[starts]
        added = np.concatenate([self._pair_counts, times])[order]
        self._pair_counts = np.add.reduceat(added, starts) if len(starts) else added

    def words(self, min_count: int) -> list[str]:
        """Words that occur so often, most frequent first; equally frequent ones by the alphabet."""
        self._count()
        texts = list(self._numbers)
        often = np.flatnonzero(self._counts >= min_count).tolist()
        return by_count((texts[number], int(self._counts[number])) for number in often)

    def pairs(self, min_count: int, min_information: float) -> list[str]:
        """Pairs that occur so often and belong together so closely, most frequent first."""
        self._count()
        texts, total = list(self._numbers), int(self._counts.sum())
        often = np.flatnonzero(self._pair_counts >= min_count)
        return by_count(self._close(often, texts, total, min_information))

    def _close(
        self, often: Int[np.ndarray, " p"], texts: list[str], total: int, least: float
    ) -> Iterator[tuple[str, int]]:
        for code, count in zip(self._pairs[often].tolist(), self._pair_counts[often].tolist(), strict=True):
            a, b = code >> 32, code & 0xFFFFFFFF
            own = int(self._counts[a]), int(self._counts[b])
            if mutual_information(count, *own, total) >= least:
                yield f"{texts[a]} {texts[b]}", count


def by_count(counted: Iterable[tuple[str, int]]) -> list[str]:
    """Texts by falling count; of equal counts by the alphabet, so that no order of reading matters."""
    return [text for text, _ in sorted(counted, key=lambda item: (-item[1], item[0]))]
