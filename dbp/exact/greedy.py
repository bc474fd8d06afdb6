"""Greedy choice for sums of logarithms: the next pick has the largest gain, found lazily.

A pick adds `share * p (log(2 + m) - log(1 + m))` for each of its concepts, with m picks so far that hold it, and
the like for its bin. Gains only fall, so a gain that was worked out earlier is a bound, and most kinds are never
looked at again. Logarithms are of IEEE operations alone (`clocks`), so the choice is the same on every processor.
"""

from typing import no_type_check

import numba
import numpy as np

from dbp.exact.clocks import _log


@numba.njit(nogil=True, cache=True)
@no_type_check
def _is_before(gains, keys, a, b):  # type: ignore[no-untyped-def]
    return gains[a] > gains[b] or (gains[a] == gains[b] and keys[a] < keys[b])


@numba.njit(nogil=True, cache=True)
@no_type_check
def sink(heap, size, at, gains, keys):  # type: ignore[no-untyped-def]
    """Let an entry of a heap sink to its place: the largest gain lies on top, of equal ones the smallest key."""
    while True:
        best, child = at, 2 * at + 1
        for other in (child, child + 1):
            if other < size and _is_before(gains, keys, heap[other], heap[best]):
                best = other
        if best == at:
            return
        heap[at], heap[best] = heap[best], heap[at]
        at = best


@numba.njit(nogil=True, cache=True)
@no_type_check
def _step(count):  # type: ignore[no-untyped-def]
    return _log(2.0 + count) - _log(1.0 + count)


@numba.njit(nogil=True, cache=True)
@no_type_check
def greedy(ends, concepts, bins, sizes, keys, weights, bin_weights, share, budget, taken):  # type: ignore[no-untyped-def]
    """Pick `budget` rows of kinds that differ in their concepts and bins; return the value of the objective.

    Args:
        ends: int64 (g + 1,): kind i has `concepts[ends[i] : ends[i + 1]]`.
        concepts: int64, numbers of concepts.
        bins: int64 (g,).
        sizes: int64 (g,), rows of each kind; at least the budget in all.
        keys: uint64 (g,), the smaller goes first of equal gains.
        weights: float64, p of each concept.
        bin_weights: float64, u of each bin.
        share: Of the concepts in the objective; the bins have the rest.
        taken: int64 (g,), filled: rows picked of each kind.
    """
    held = np.zeros(len(weights), np.int64)
    in_bin = np.zeros(len(bin_weights), np.int64)
    gains = np.empty(len(sizes))
    heap = np.empty(len(sizes), np.int64)
    size = 0
    for kind in range(len(sizes)):
        gain = 0.0
        for at in range(ends[kind], ends[kind + 1]):
            gain += weights[concepts[at]] * _step(0.0)
        gains[kind] = share * gain + (1.0 - share) * bin_weights[bins[kind]] * _step(0.0)
        taken[kind] = 0
        if sizes[kind] > 0:
            heap[size] = kind
            size += 1
    for at in range(size // 2 - 1, -1, -1):
        sink(heap, size, at, gains, keys)
    value, picked = 0.0, 0
    while picked < budget:
        kind = heap[0]
        gain = 0.0
        for at in range(ends[kind], ends[kind + 1]):
            gain += weights[concepts[at]] * _step(np.float64(held[concepts[at]]))
        gain = share * gain + (1.0 - share) * bin_weights[bins[kind]] * _step(np.float64(in_bin[bins[kind]]))
        if gain < gains[kind]:
            gains[kind] = gain
            sink(heap, size, 0, gains, keys)
            continue
        value += gain
        picked += 1
        taken[kind] += 1
        in_bin[bins[kind]] += 1
        for at in range(ends[kind], ends[kind + 1]):
            held[concepts[at]] += 1
        if taken[kind] == sizes[kind]:
            size -= 1
            heap[0] = heap[size]
            sink(heap, size, 0, gains, keys)
    return value
