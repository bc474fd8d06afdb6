"""The inner loops of MetaCLIP's balancing, compiled by numba: one pass over the entries of some rows."""

from typing import no_type_check

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
@no_type_check
def keep_probabilities(ends, numbers, language, counts, first, thresholds, is_sum, found):  # type: ignore[no-untyped-def]
    """The probability with which each row is kept.

    No sum or product is reordered, and nothing is subtracted from 1 that is near it, so that the result has
    the same bits everywhere and small probabilities keep their digits.

    Args:
        ends, numbers: The entries of each row.
        language: Of each row.
        counts: Captions that hold each entry, by language.
        first: Of each language, what is added to an entry's number to find it there.
        thresholds: Of each language.
        is_sum: Add the entries' probabilities up to 1, instead of 1 - prod(1 - p).
        found: float64 (rows,), filled; 0 where no entry matches.
    """
    for i in range(found.shape[0]):
        start = first[language[i]]
        t = thresholds[language[i]]
        kept = 0.0
        for at in range(ends[i], ends[i + 1]):
            c = counts[start + numbers[at]]
            if c <= t:
                kept = 1.0
                break
            p = t / c
            kept += p if is_sum else p * (1.0 - kept)
        found[i] = min(kept, 1.0)


@numba.njit(nogil=True, cache=True)
@no_type_check
def count_matches(ends, numbers, language, mask, first, counts):  # type: ignore[no-untyped-def]
    """Add the entries of the rows of a mask to the counts of their language."""
    for i in range(mask.shape[0]):
        if mask[i]:
            start = first[language[i]]
            for at in range(ends[i], ends[i + 1]):
                counts[start + numbers[at]] += 1


@numba.njit(nogil=True, cache=True)
@no_type_check
def keyed_number(key, seed):  # type: ignore[no-untyped-def]
    """`keyed_hash` of one key, as a number in [0, 1): its upper 53 bits. A test holds the two together."""
    state = key ^ (seed * np.uint64(0x9E3779B97F4A7C15))
    for _ in range(2):
        state = state + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return np.float64(state >> np.uint64(11)) * (2.0**-53)


@numba.njit(nogil=True, cache=True)
@no_type_check
def draw_lots(probability, hashes, seed, mask, found):  # type: ignore[no-untyped-def]
    """u / p of each row: infinite where p is 0 or the mask is not set. Chance keeps a row where it is below 1."""
    for i in range(found.shape[0]):
        if mask[i] and probability[i] > 0.0:
            found[i] = keyed_number(hashes[i], seed) / probability[i]
        else:
            found[i] = np.inf
