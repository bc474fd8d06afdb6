"""Union, intersection and difference of sorted lists of 128-bit uids, in memory that does not grow with them."""

import bisect
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Int

from dbp.formats.uid_pairs import order_pairs

CHUNK = 1 << 20  # uids of the longest list that are looked at together


def merged(lists: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, Int[np.ndarray, "u k"]]]:
    """Walk through sorted lists side by side: the uids that any holds, and how often each list does.

    Memory does not grow with the lists: a chunk holds about a million uids of the longest.
    """
    longest = max(lists, key=len)
    cuts = [longest[at].item() for at in range(CHUNK, len(longest), CHUNK)]
    starts = [0] * len(lists)
    for cut in [*cuts, None]:
        ends = [_before(pairs, cut) for pairs in lists]
        spans = zip(lists, starts, ends, strict=True)
        parts = [np.asarray(pairs[start:end]) for pairs, start, end in spans]
        starts = ends
        every = np.concatenate(parts)
        order = order_pairs(every)
        source = np.repeat(np.arange(len(lists)), [len(part) for part in parts])[order]
        every = every[order]
        is_new = np.ones(len(every), bool)
        is_new[1:] = every[1:] != every[:-1]
        group = np.cumsum(is_new) - 1
        uids = every[is_new]
        counts = np.bincount(group * len(lists) + source, minlength=len(uids) * len(lists))
        yield uids, counts.reshape(-1, len(lists))


def _before(pairs: np.ndarray, cut: tuple[int, int] | None) -> int:
    """How many sorted pairs stand before a cut."""
    if cut is None:
        return len(pairs)
    return bisect.bisect_left(range(len(pairs)), cut, key=lambda at: pairs[at].item())


def combined(lists: Sequence[np.ndarray], operation: str, keep_repeats: bool) -> Iterator[np.ndarray]:
    """The sorted uids of a union, intersection or difference, chunk by chunk."""
    for uids, counts in merged(lists):
        counts = counts if keep_repeats else np.minimum(counts, 1)
        if operation == "union":
            times = counts.max(axis=1)
        elif operation == "intersection":
            times = counts.min(axis=1)
        else:
            times = np.maximum(counts[:, 0] - counts[:, 1:].sum(axis=1), 0)
        yield np.repeat(uids, times)
