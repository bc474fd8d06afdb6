"""The diversity form of CABS: the next row is the one with the largest gain, found lazily.

Gains only fall, so one that was worked out earlier is a bound, and few are worked out again.
"""

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Int64, UInt64

from dbp.exact.greedy import sink

TAKEN, OUT = 1, 2  # states of a row; 0 where it is left


def diverse(
    ends: Int64[np.ndarray, " s1"],
    concepts: Int64[np.ndarray, " t"],
    words: UInt64[np.ndarray, " s"],
    count: int,
    most: int,
    parts: int = 1,
) -> Int64[np.ndarray, " b"]:
    """The places of the rows that the diversity form chooses, ascending.

    Args:
        ends: Candidate i holds `concepts[ends[i] : ends[i + 1]]`, each once.
        words: Random words, by which what the concepts leave open is filled.
    """
    names, own = np.unique(concepts, return_inverse=True)
    frequency, targets = np.bincount(own, minlength=len(names)), targets_of(len(names), count, most)
    state, places = np.zeros(len(words), np.uint8), []
    size, want = len(words) // parts, count // parts
    for start in range(0, len(words), size):
        part = slice(start, start + size)
        left = want - pick(ends, own.astype(np.int64), targets, frequency, most, start, start + size, want, state)
        behind = (state[part] == OUT) & (parts > 1)
        order = np.lexsort((words[part], behind, state[part] == TAKEN))[:left]
        places.append(start + np.r_[np.flatnonzero(state[part] == TAKEN), order])
    return np.sort(np.concatenate(places))


def targets_of(num_concepts: int, count: int, most: int) -> Int64[np.ndarray, " c"]:
    """How often each concept should be chosen: equal shares of the batch, from 1 to `most`."""
    share, rest = divmod(count, max(num_concepts, 1))
    found = np.clip(share + (np.arange(num_concepts) < rest), 1, most).astype(np.int64)
    if (total := int(found.sum())) > count:
        found = np.clip(found * count // total, 1, most)
    return found


@numba.njit(nogil=True, cache=True)
@no_type_check
def _gain(ends, concepts, targets, frequency, chosen, most, row):  # type: ignore[no-untyped-def]
    """The mean gain of a row's concepts; minus infinity for a row that is out or has none."""
    total = 0.0
    for at in range(ends[row], ends[row + 1]):
        c = concepts[at]
        if chosen[c] >= most:
            return -np.inf
        if chosen[c] < targets[c]:
            total += (targets[c] - chosen[c]) / targets[c] + 1.0 / frequency[c]
        else:
            total -= 0.5
    return total / (ends[row + 1] - ends[row]) if ends[row + 1] > ends[row] else -np.inf


@numba.njit(
    "int64(int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, int64, int64, uint8[::1])",
    nogil=True,
    cache=True,
)
@no_type_check
def pick(ends, concepts, targets, frequency, most, start, stop, want, state):  # type: ignore[no-untyped-def]
    """Choose up to `want` rows from `start` to `stop` by their gain; mark them, and what is out, in `state`.

    Equal gains go to the earlier row. Sums run in the order of the concepts, so they have the same bits everywhere.
    """
    chosen = np.zeros(len(targets), np.int64)
    gains, places = np.full(stop, -np.inf), np.arange(stop)
    heap, size = np.empty(stop - start, np.int64), 0
    for row in range(start, stop):
        gains[row] = _gain(ends, concepts, targets, frequency, chosen, most, row)
        if gains[row] > -np.inf:
            heap[size] = row
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        sink(heap, size, at, gains, places)
    made = 0
    while size > 0 and made < want:
        row = heap[0]
        new = _gain(ends, concepts, targets, frequency, chosen, most, row)
        if new == gains[row]:
            state[row] = 1
            made += 1
            for at in range(ends[row], ends[row + 1]):
                chosen[concepts[at]] += 1
        gains[row] = new
        if state[row] == 1 or new == -np.inf:
            size -= 1
            heap[0] = heap[size]
        sink(heap, size, 0, gains, places)
    for row in range(start, stop):
        for at in range(ends[row], ends[row + 1]):
            if state[row] == 0 and chosen[concepts[at]] >= most:
                state[row] = 2
    return made
